"""A leak that no single release shows: the trend of what stays, and what is not a trend (ADR 0029)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lane_worker.residence.creep import READINGS, creep_bytes

MB = 1_000_000
TOLERANCE = 48 * MB  # 2.4 MB a release count
LEAST = TOLERANCE // 20


def creep(*stayed: int) -> int | None:
    return creep_bytes(stayed, tolerance_bytes=TOLERANCE)


@pytest.mark.parametrize(
    ("stayed", "expected"),
    [
        pytest.param(range(0, 8 * 32 * MB, 32 * MB), None, id="1-eight-releases"),
        pytest.param(range(0, 9 * 32 * MB, 32 * MB), 32 * MB, id="4-nine"),
        pytest.param([0, 0, 0, 0, 99 * MB, 99 * MB, 99 * MB, 99 * MB, 99 * MB], None, id="3-one-step"),
        pytest.param([0, 0, 0, 9 * MB, 9 * MB, 9 * MB, 11 * MB, 11 * MB, 11 * MB], None, id="3-it-slows-down"),
        pytest.param([0, 99 * MB, 0, 0, 0, 99 * MB, 99 * MB, 0, 0], None, id="2-an-odd-one-in-each-third"),
        # those of Python 3.14, as measured: resident MB after each release, and no leak
        pytest.param([mb * MB for mb in (705, 706, 706, 707, 706, 707, 707, 706, 707)], None, id="3-as-measured"),
        pytest.param([0] * 9, None, id="3-nothing"),
    ],
)
def test_creep(stayed: list[int], expected: int | None) -> None:
    assert creep(*stayed) == expected


def test_no_growth_is_a_trend_however_small_the_tolerance() -> None:
    assert creep_bytes([0] * READINGS, tolerance_bytes=1) is None


noise = st.lists(st.integers(0, 2 * LEAST), min_size=READINGS, max_size=READINGS)


@given(st.integers(0, 2**40), noise, st.integers(0, READINGS), st.integers(0, 2**40))
def test_noise_and_a_single_step_are_no_trend(base: int, noise: list[int], at: int, step: int) -> None:
    assert creep(*(base + each + (step if index >= at else 0) for index, each in enumerate(noise))) is None


@given(st.integers(0, 2**40), noise, st.integers(2 * LEAST, 2**30))
def test_a_leak_is_found_within_nine_releases_through_the_noise(base: int, noise: list[int], leak: int) -> None:
    found = creep(*(base + index * leak + each for index, each in enumerate(noise)))
    assert found is not None
    assert abs(found - leak) <= LEAST


@given(st.lists(st.integers(0, 2**40), max_size=12), st.lists(st.integers(0, 2**40), min_size=9, max_size=9))
def test_only_the_last_nine_count(earlier: list[int], last: list[int]) -> None:
    assert creep(*earlier, *last) == creep(*last)


@given(st.lists(st.integers(0, 2**40), max_size=20), st.integers(0, 2**40), st.integers(1, 2**40))
def test_the_level_of_the_memory_does_not_matter(stayed: list[int], base: int, tolerance: int) -> None:
    moved = creep_bytes([base + each for each in stayed], tolerance_bytes=tolerance)
    assert moved == creep_bytes(stayed, tolerance_bytes=tolerance)
