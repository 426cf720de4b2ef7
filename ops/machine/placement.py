"""Which slots of this machine the workers get: cards, or places on the CPU."""

import os
import socket
from collections.abc import Mapping
from typing import Final

import click
from msgspec import Struct

from contracts.settings import Catalog
from ops.machine.nvml import DriverUnusable, list_gpus, survey, undivided_gpus
from ops.machine.visible_cards import VISIBLE, AmbiguousOrder

# Instead of a slot's name: the slot that this container or pod was given.
AUTO: Final = "auto"


class Slots(Struct, frozen=True):
    """The slot of the degraded worker and its standbys, and the slots of lanes, in the order of use."""

    degraded: str
    lanes: tuple[str, ...]


def needs_cards(profile: str) -> bool:
    """Whether workers of *profile* run on cards. The name alone decides."""
    return profile != "tiny"


def slots(profile: str, *, lanes: int, gpus: int | None) -> Slots:
    """Tiny pipelines run on CPU slots, real ones on a card each; the degraded worker's slot is set aside first.

    *gpus* caps the number of slots. Without it the slots are all cards of this machine that CUDA_VISIBLE_DEVICES
    leaves, in its order, or CPU slots for *lanes* and the degraded worker. Raises click.ClickException when there is no
    card at all.
    """
    if not needs_cards(profile):
        count = lanes + 1 if gpus is None else gpus
        *first, last = (f"cpu-{number}" for number in range(count))
        return Slots(last, tuple(first))
    first_card, *others = _cards()[:gpus]
    return Slots(first_card, tuple(others))


def _cards() -> list[str]:
    try:
        cards = [gpu.uuid for gpu in list_gpus()]
        undivided = [] if cards else undivided_gpus()
        hidden = [] if cards or undivided else survey().hidden
    except (DriverUnusable, AmbiguousOrder) as error:
        raise click.ClickException(str(error)) from error
    if hidden:
        raise click.ClickException(
            f"{VISIBLE}={os.environ.get(VISIBLE)!r} hides all cards of this machine, which are {', '.join(hidden)}: "
            "remove it, or name some of them"
        )
    if undivided:
        raise click.ClickException(
            f"{', '.join(undivided)}: in MIG mode, without an instance to use; `warmlane doctor` says what to do"
        )
    if not cards:
        raise click.ClickException(
            "this machine has no NVIDIA card, and the degraded worker alone needs one; --profile tiny runs anywhere"
        )
    return cards


def given_slot(slot: str, profile: str) -> str:
    """*slot*; for AUTO, the slot that this container or pod was given: the only card that it sees, or its only MIG
    instance. Tiny pipelines run on a CPU slot that has the host's name, which in a pod is the pod's: no two workers of
    a deployment share it.

    Raises click.ClickException where there is no card, or more than one.
    """
    if slot != AUTO:
        return slot
    if not needs_cards(profile):
        return f"cpu-{socket.gethostname().partition('.')[0]}"
    only, *others = _cards()
    if others:
        raise click.ClickException(
            f"--slot auto takes the only card that a worker sees, and here are {only}, {', '.join(others)}: name one "
            "or give this container one card alone"
        )
    return only


def refuse_hidden(slot: str) -> None:
    """Raises click.ClickException where CUDA_VISIBLE_DEVICES hides *slot*. A slot unknown to the driver passes."""
    if slot.startswith("cpu-") or VISIBLE not in os.environ:
        return
    try:
        hidden = survey().hidden
    except DriverUnusable:  # the worker finds out by itself, and waits
        return
    except AmbiguousOrder as error:
        raise click.ClickException(str(error)) from error
    if slot in hidden:
        raise click.BadParameter(
            f"{VISIBLE}={os.environ[VISIBLE]!r} hides {slot}: remove it, or give the worker a card that it leaves",
            param_hint="--slot",
        )


def wanted_lanes(asked: Mapping[str, int] | None, catalog: Catalog) -> dict[str, int]:
    """Lanes per model: what `--lanes` *asked* for, else the settings' own. Raises click.ClickException."""
    if asked is None:
        return {name: model.lanes for name, model in catalog.models.items()}
    unknown = [model for model in asked if model not in catalog.models]
    if unknown:
        raise click.ClickException(
            f"--lanes: no model is called {', '.join(unknown)}; there are {', '.join(catalog.models)}"
        )
    return dict(asked)
