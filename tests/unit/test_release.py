"""The verdict on a release: what proves it, and everything that does not (FR-001..003)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lane_worker.runtime.release import (
    Released,
    Sample,
    StillHeld,
    Unmeasurable,
    Verdict,
    judge,
    tolerance_bytes,
)

BASE, TOLERANCE, NEEDED = 400, 128, 1000
EMPTY = Sample(0.0, BASE, 2000)


def verdict(*samples: Sample, base_bytes: int | None = BASE) -> Verdict:
    return judge(samples, base_bytes=base_bytes, tolerance_bytes=TOLERANCE, needed_bytes=NEEDED)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([], Unmeasurable(), id="1-no-sample"),
        pytest.param([EMPTY], Unmeasurable(), id="1-one-lucky-sample"),
        pytest.param([EMPTY, replace(EMPTY, used_bytes=None)], Unmeasurable(), id="1-last-used-missing"),
        pytest.param([replace(EMPTY, free_bytes=None), EMPTY], Unmeasurable(), id="1-earlier-free-missing"),
        pytest.param([EMPTY, replace(EMPTY, used_bytes=529)], StillHeld(1), id="2-one-byte-over"),
        pytest.param([replace(EMPTY, used_bytes=1400), EMPTY], StillHeld(872), id="2-only-the-last-one-fits"),
        pytest.param([EMPTY, replace(EMPTY, free_bytes=999)], StillHeld(1), id="2-no-room-for-the-next"),
        pytest.param([EMPTY, EMPTY, replace(EMPTY, used_bytes=9000)], StillHeld(8472), id="2-taken-again"),
        pytest.param([replace(EMPTY, used_bytes=528), replace(EMPTY, free_bytes=1000)], Released(), id="3-just-fits"),
        pytest.param(
            [replace(EMPTY, used_bytes=None), EMPTY, EMPTY], Released(), id="3-missing-before-does-not-matter"
        ),
        pytest.param([replace(EMPTY, used_bytes=0)] * 2, Released(), id="3-below-the-base"),
    ],
)
def test_judge(samples: list[Sample], expected: Verdict) -> None:
    assert verdict(*samples) == expected


def test_without_a_base_nothing_is_proven() -> None:
    assert verdict(EMPTY, EMPTY, base_bytes=None) == Unmeasurable()


@pytest.mark.parametrize(
    ("held_bytes", "expected"), [(0, 128), (-(10**12), 128), (2559, 128), (2580, 129), (57 * 10**9, 2_850_000_000)]
)
def test_the_tolerance_is_absolute_or_a_share_of_what_was_held(held_bytes: int, expected: int) -> None:
    assert tolerance_bytes(held_bytes, 128) == expected


figures = st.integers(min_value=-(2**40), max_value=2**40)
samples = st.lists(
    st.builds(Sample, st.floats(0, 100), st.one_of(st.none(), figures), st.one_of(st.none(), figures)), max_size=6
)


def fits(sample: Sample, base: int, tolerance: int, needed: int) -> bool:
    return (
        sample.used_bytes is not None
        and sample.free_bytes is not None
        and sample.used_bytes <= base + tolerance
        and sample.free_bytes >= needed
    )


@given(samples, figures, figures, figures)
def test_released_if_and_only_if_the_last_two_fit(taken: list[Sample], base: int, tolerance: int, needed: int) -> None:
    last_two = taken[-2:]
    proven = len(last_two) == 2 and all(fits(sample, base, tolerance, needed) for sample in last_two)
    found = judge(taken, base_bytes=base, tolerance_bytes=tolerance, needed_bytes=needed)
    assert isinstance(found, Released) == proven
    if isinstance(found, StillHeld):
        assert found.bytes > 0


@given(samples, figures, figures, figures, st.integers(0, 2**40), st.sampled_from(["used", "free", "base", "needed"]))
def test_more_memory_in_use_never_turns_into_a_release(
    taken: list[Sample], base: int, tolerance: int, needed: int, more: int, where: str
) -> None:
    def run(taken: list[Sample], base: int, needed: int) -> Verdict:
        return judge(taken, base_bytes=base, tolerance_bytes=tolerance, needed_bytes=needed)

    worse = [
        Sample(
            sample.at_s,
            None if sample.used_bytes is None else sample.used_bytes + (more if where == "used" else 0),
            None if sample.free_bytes is None else sample.free_bytes - (more if where == "free" else 0),
        )
        for sample in taken
    ]
    after = run(worse, base - (more if where == "base" else 0), needed + (more if where == "needed" else 0))
    before = run(taken, base, needed)
    if isinstance(after, Released):
        assert isinstance(before, Released)
    if isinstance(before, StillHeld):
        assert isinstance(after, StillHeld)
        assert after.bytes >= before.bytes


@given(samples, samples, figures, figures, figures)
def test_only_the_last_two_count(earlier: list[Sample], taken: list[Sample], base: int, tol: int, needed: int) -> None:
    if len(taken) >= 2:
        short = judge(taken, base_bytes=base, tolerance_bytes=tol, needed_bytes=needed)
        assert judge([*earlier, *taken], base_bytes=base, tolerance_bytes=tol, needed_bytes=needed) == short
