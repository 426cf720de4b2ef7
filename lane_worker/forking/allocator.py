"""How torch's allocator for cards has to be set up (FR-010), and whether it is. Imports no torch.

A worker gives its fork server what `environment` returns. The fork server checks its own environment with `require`
before it imports torch. `lane_worker/pipelines/allocation.py` then reads back from torch what torch took.
"""

from collections.abc import Mapping
from typing import Final

from contracts.fit import PINNED_ROUND_MAX_BYTES

NAMES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's present and former name of the variable: which of them wins is not the same for all settings."""
NVML_CHECK: Final = "PYTORCH_NVML_BASED_CUDA_CHECK"
WANTED: Final = "expandable_segments:True"
PINNED: Final = "pinned_max_round_threshold_mb"
"""Above how many MiB torch does not round a pinned block up to a power of two (`c10/core/AllocatorConfig.h`)."""
PINNED_MB: Final = str(PINNED_ROUND_MAX_BYTES >> 20)


class AllocatorMisconfigured(Exception):
    """The environment asks for an allocator that Warmlane does not serve with (FR-010). The text says what to do."""


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The allocator's variables: `expandable_segments:True`, the limit of rounding, and what else *base* asks for.

    Raises AllocatorMisconfigured where *base* forbids one of the two, or contradicts itself.
    """
    given = {name: base[name] for name in NAMES if base.get(name)}
    if len(set(given.values())) > 1:
        words = " and ".join(f"{name}={text}" for name, text in given.items())
        raise AllocatorMisconfigured(f"{words} contradict each other: remove one of them")
    text = next(iter(given.values()), "")
    settings = _settings(text)
    segments = settings.get("expandable_segments")
    if segments is None:
        text = ",".join(filter(None, (text, WANTED)))
    elif segments != "True":  # torch takes no other spelling
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has expandable_segments:{segments}: remove it, Warmlane serves with {WANTED} only"
        )
    if settings.get("backend", "native") != "native":
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has backend:{settings['backend']}: remove it, only torch's own allocator has "
            "expandable segments and reports what it holds"
        )
    rounding = settings.get(PINNED)
    if rounding is None:
        text = f"{text},{PINNED}:{PINNED_MB}"
    elif rounding != PINNED_MB:
        raise AllocatorMisconfigured(
            f"{' and '.join(given)} has {PINNED}:{rounding}: remove it, Warmlane counts pinned memory with {PINNED_MB}"
        )
    # asking whether CUDA is there must not start it: it would not survive the fork
    return dict.fromkeys(NAMES, text) | {NVML_CHECK: "1"}


def require(base: Mapping[str, str]) -> None:
    """Raises AllocatorMisconfigured unless *base* is as `environment` makes it."""
    wanted = environment(base)
    for name, text in wanted.items():
        if base.get(name) != text:
            raise AllocatorMisconfigured(f"{name} is {base.get(name)!r} where torch is imported, and has to be {text}")


def _settings(text: str) -> dict[str, str]:
    """The keys of an allocator's setting with their values; of a list in brackets only its beginning."""
    pairs = (part.partition(":") for part in text.split(","))
    return {key.strip(): value.strip() for key, _, value in pairs}
