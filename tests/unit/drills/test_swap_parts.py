"""What `make swap-parts` makes of its measurements; `tests/e2e/test_heavy_swaps.py` runs the measuring."""

from typing import Final

import pytest

from contracts.memory import SwapReceipt
from tests.drills.swap_parts import Cache, Limits, Line, beside_limits, part_s

GB: Final = 1_000_000_000


def receipt(load_s: float, *, read_s: float | None = 0.5, first_step_s: float = 1.0) -> SwapReceipt:
    return SwapReceipt(
        slot="cpu-0",
        released_model="anisora",
        loaded_model="phr00t",
        how="unloaded",
        probe="rss",
        release_s=0.25,
        verify_s=0.2,
        load_s=load_s,
        read_s=read_s,
        copy_s=0.125,
        first_step_s=first_step_s,
    )


FOUND: Final[dict[Cache, list[SwapReceipt]]] = {
    "warm": [receipt(9), receipt(1)],
    "cold": [receipt(2), receipt(8)],
    "cold, not read ahead": [receipt(3, first_step_s=2)],
}


def lines(limits: Limits) -> dict[str, Line]:
    return {line.what: line for line in beside_limits(FOUND, limits, weights_bytes=GB, poll_s=0.1)}


def test_the_parts_are_those_of_the_fastest_swap() -> None:
    assert [part_s(FOUND["warm"], part) for part in ("load", "copy")] == [1, 0.125]
    assert part_s([receipt(1, read_s=None)], "read") == 0


def test_each_part_beside_its_limit() -> None:
    found = lines(Limits(cold_read=GB / 2, warm_read=4 * GB, pageable_copy=8 * GB, pinned_copy=16 * GB))
    ratios = {what: line.ratio for what, line in found.items()}
    assert ratios == {
        "proof": pytest.approx(2),
        "read, warm": pytest.approx(2),  # 0.5 s, where 0.25 s would do
        "read, cold: load and first step, less those of a warm one": pytest.approx(0.5),  # 1 s more, of 2 s
        "read, cold, not read ahead: load and first step, less those of a warm one": pytest.approx(1.5),
        "copy, beside pageable": pytest.approx(1),
        "copy, beside pinned": pytest.approx(2),
    }


def test_without_a_card_a_copy_has_no_limit() -> None:
    found = lines(Limits(cold_read=GB, warm_read=GB))
    for kind in ("pageable", "pinned"):
        line = found[f"copy, beside {kind}"]
        assert (line.ratio, line.limit_is) == (None, "no card")
