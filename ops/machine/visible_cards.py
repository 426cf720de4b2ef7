"""Which cards of a machine CUDA_VISIBLE_DEVICES leaves to us. Pure: no driver, no environment.

NVML, which lists the cards, knows nothing of that variable; CUDA, which uses them, obeys it. Sources of the rules: the
CUDA programming guide, "CUDA Environment Variables", and for what it leaves open torch's own reading
(`_parse_visible_devices` and `_transform_uuid_to_ordinals` of `torch/cuda/__init__.py`), which imitates the driver's.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
ORDER: Final = "CUDA_DEVICE_ORDER"
BY_BUS: Final = "PCI_BUS_ID"


class Card(Struct, frozen=True):
    """A card as NVML names it. *slots* are what CUDA can use of it: itself, or its MIG instances.

    A card on which the driver fails has no name and no slots, and keeps its number.
    """

    uuid: str
    name: str
    slots: tuple[str, ...]


class AmbiguousOrder(Exception):
    """CUDA_VISIBLE_DEVICES holds indices, and which cards CUDA means by them is not known. The text says what to do."""


def visible_slots(cards: Sequence[Card], environ: Mapping[str, str]) -> list[str]:
    """The slots of *cards* that *environ* leaves, in the order of *environ*. *cards* are in NVML's order.

    1. The variable is not set: all of them.
    2. It begins with `MIG-` or `GPU-`: its entries are UUIDs of instances or of cards, or beginnings of UUIDs that no
       other one has. A card in MIG mode stands for all its instances, each of which can be a slot; so does a card in
       MIG mode that is named by index.
    3. Otherwise the entries are indices: the number at the beginning of an entry counts. NVML counts cards by the bus,
       and so does CUDA where CUDA_DEVICE_ORDER is PCI_BUS_ID. By default CUDA counts the fastest first, by a rule that
       is not published. Where all cards are of one kind, that is the same order; otherwise AmbiguousOrder is raised.
    4. The first entry that names no card, or more than one, is ignored, and so are all after it: an empty value and -1
       leave nothing.
    5. A card that is named twice leaves nothing at all.
    """
    value = environ.get(VISIBLE)
    if value is None:  # 1
        return [slot for card in cards for slot in card.slots]
    entries = value.split(",")
    if value.startswith("MIG-"):  # 2
        found = _read(entries, lambda entry: _named(entry, "MIG-", (slot for card in cards for slot in card.slots)))
        return [] if found is None else found
    by_uuid = {card.uuid: card for card in cards}
    if value.startswith("GPU-"):
        named = _read(entries, lambda entry: _named(entry, "GPU-", by_uuid))
    else:  # 3
        named = _read(entries, lambda entry: _counted(entry, cards))
        if named and len({card.name for card in cards if card.name}) > 1 and environ.get(ORDER) != BY_BUS:
            raise AmbiguousOrder(
                f"{VISIBLE}={value} counts cards of several kinds, and CUDA may count them in another order than the "
                f"driver: set {ORDER}={BY_BUS} (the order of `nvidia-smi -L`), or name the cards by their UUIDs"
            )
    return [slot for uuid in named or () for slot in by_uuid[uuid].slots]


def _read(entries: Iterable[str], find: Callable[[str], str | None]) -> list[str] | None:
    """What *entries* name; None where one is named twice."""
    found: list[str] = []
    for entry in entries:
        one = find(entry)
        if one is None:  # 4
            break
        if one in found:  # 5
            return None
        found.append(one)
    return found


def _named(entry: str, prefix: str, uuids: Iterable[str]) -> str | None:
    matches = [uuid for uuid in uuids if entry.startswith(prefix) and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _counted(entry: str, cards: Sequence[Card]) -> str | None:
    number = re.match(r"\s*\+?(\d+)", entry)
    return cards[int(number[1])].uuid if number is not None and int(number[1]) < len(cards) else None
