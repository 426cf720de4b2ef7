"""Whether the memory that releases leave behind goes on growing (ADR 0029). Pure."""

import statistics
from collections.abc import Sequence
from typing import Final

THIRD: Final = 3
READINGS: Final = 3 * THIRD
# A leak that would use up a release's tolerance within this many releases is found within READINGS of them.
RELEASES_TO_THE_LIMIT: Final = 20


def creep_bytes(stayed: Sequence[int], *, tolerance_bytes: int) -> int | None:
    """How many more bytes stay after each release, by the latest of *stayed*; None where there is no trend.

    *stayed* is what was in use after each release of one living host, the oldest first.

    1. There are fewer than 9: None.
    2. Of the last 9, the median of each third counts: one odd reading in a third changes nothing.
    3. From third to third it rose by less than a leak that uses up *tolerance_bytes* within 20 releases: None. Both
       rises count: a single step, however high, was taken once and is no creep.
    4. Otherwise it creeps, by the lesser rise, divided by the releases in it.
    """
    if len(stayed) < READINGS:  # 1
        return None
    last = stayed[-READINGS:]
    first, second, third = (statistics.median_low(last[at : at + THIRD]) for at in range(0, READINGS, THIRD))  # 2
    least_bytes = min(second - first, third - second) // THIRD
    return least_bytes if least_bytes >= max(1, tolerance_bytes // RELEASES_TO_THE_LIMIT) else None  # 3, 4
