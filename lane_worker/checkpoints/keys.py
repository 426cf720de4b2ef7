"""Which key of a published file is which parameter: the tables in `data/`, each with its source. Pure."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Final

from msgspec import Struct

# the number of the block that a key belongs to; a table writes {n} for it
_BLOCK: Final = re.compile(r"(?<=block\.)\d+|(?<=blocks\.)\d+")
_BLOCKS: Final = "{n}"


class KeyTable(Struct, frozen=True):
    """Pairs of a published key and the parameter that it becomes. The values move unchanged: no shape differs."""

    targets: dict[str, str]

    def target(self, key: str) -> str | None:
        """The parameter that the published *key* becomes; None for a key that the table does not know."""
        return _look_up(self.targets, key)

    def source(self, parameter: str) -> str | None:
        """The published key that becomes *parameter*; None for one that the table does not know."""
        return _look_up({target: key for key, target in self.targets.items()}, parameter)


def key_table(*names: str) -> KeyTable:
    """The tables `data/NAME.txt`, as one. Raises ValueError for a line that is no pair, or for a name that occurs
    twice."""
    pairs = [pair for name in names for pair in _pairs(_lines(f"{name}.txt"))]
    targets = dict(pairs)
    if not len(targets) == len(set(targets.values())) == len(pairs):
        raise ValueError(f"a name appears twice in {', '.join(names)}")
    return KeyTable(targets)


@cache
def keys_beside() -> frozenset[str]:
    """Keys that a published file may hold beside its parameters; they are left out."""
    return frozenset(_lines("beside.txt"))


def _look_up(names: dict[str, str], key: str) -> str | None:
    if key in names:
        return names[key]
    number = _BLOCK.search(key)
    if number is None:
        return None
    found = names.get(f"{key[: number.start()]}{_BLOCKS}{key[number.end() :]}")
    return None if found is None else found.replace(_BLOCKS, number[0])


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for line in lines:
        key, arrow, target = line.partition(" -> ")
        if not arrow or key.count(_BLOCKS) != target.count(_BLOCKS):
            raise ValueError(f"{line!r} is not KEY -> PARAMETER")
        pairs.append((key, target))
    return pairs


def _lines(file: str) -> list[str]:
    text = resources.files(__package__).joinpath("data", file).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]
