"""Whether a card was given back (design §7, FR-001..003). Pure: no clock, no I/O, no logging."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

TOLERANCE_PERCENT: Final = 5


class Sample(Struct, frozen=True):
    """One look at the memory; *at_s* is monotonic. None is a figure that could not be read, never 0."""

    at_s: float
    used_bytes: int | None
    free_bytes: int | None


class Released(Struct, frozen=True):
    """Proven: the next pipeline may be loaded."""


class StillHeld(Struct, frozen=True):
    """*bytes* more are in use, or fewer are free, than allowed."""

    bytes: int


class Unmeasurable(Struct, frozen=True):
    """The figures prove nothing."""


Verdict = Released | StillHeld | Unmeasurable


def tolerance_bytes(held_bytes: int, absolute_bytes: int) -> int:
    """How far above its base the memory may stay, after a pipeline that had held *held_bytes* (of either sign)."""
    return max(absolute_bytes, held_bytes * TOLERANCE_PERCENT // 100)


def judge(samples: Sequence[Sample], *, base_bytes: int | None, tolerance_bytes: int, needed_bytes: int) -> Verdict:
    """What the last two of *samples* prove. Earlier ones prove nothing: what was free then may be taken now.

    1. There are fewer than two, a figure of the last two is missing, or there is no base: Unmeasurable.
    2. In one of them more than *base_bytes* + *tolerance_bytes* is in use, or less than *needed_bytes* is free:
       StillHeld, by the larger excess.
    3. Otherwise: Released.
    """
    if len(samples) < 2 or base_bytes is None:  # 1
        return Unmeasurable()
    excess_bytes = 0
    for sample in samples[-2:]:
        if sample.used_bytes is None or sample.free_bytes is None:
            return Unmeasurable()
        excess_bytes = max(
            excess_bytes,
            sample.used_bytes - base_bytes - tolerance_bytes,
            needed_bytes - sample.free_bytes,
        )
    return StillHeld(excess_bytes) if excess_bytes > 0 else Released()  # 2, 3
