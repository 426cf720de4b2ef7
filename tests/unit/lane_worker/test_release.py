"""The verdict on a release: what proves it, and everything that does not (FR-001..003)."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lane_worker.residence.release import (
    MemorySample,
    Released,
    StillHeld,
    Unmeasurable,
    Verdict,
    judge,
    own_figure,
)

BASE, TOLERANCE, NEEDED = 400, 128, 1000
EMPTY = MemorySample(0.0, BASE, 2000)
BY_BASE, BY_OWN_FIGURE, BY_NO_PIPELINE = Released("base"), Released("own_figure"), Released("no_pipeline")


OWN_BASE: Final = 50
OURS_GONE: Final = replace(EMPTY, own_bytes=OWN_BASE)
FULL: Final = replace(EMPTY, used_bytes=9000)


def verdict(
    *samples: MemorySample, base_bytes: int | None = BASE, own_base_bytes: int | None = None, no_pipeline: bool = False
) -> Verdict:
    return judge(
        samples,
        base_bytes=base_bytes,
        own_base_bytes=own_base_bytes,
        tolerance_bytes=TOLERANCE,
        needed_bytes=NEEDED,
        no_pipeline=no_pipeline,
    )


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([], Unmeasurable(), id="1-no-sample"),
        pytest.param([EMPTY], Unmeasurable(), id="1-one-lucky-sample"),
        pytest.param([EMPTY, replace(EMPTY, used_bytes=None)], Unmeasurable(), id="1-last-used-missing"),
        pytest.param([replace(EMPTY, free_bytes=None), EMPTY], Unmeasurable(), id="1-earlier-free-missing"),
        pytest.param([EMPTY, replace(EMPTY, free_bytes=999)], StillHeld(1), id="2-no-room-for-the-next"),
        pytest.param([replace(EMPTY, used_bytes=528), replace(EMPTY, free_bytes=1000)], BY_BASE, id="4-just-fits"),
        pytest.param([replace(EMPTY, used_bytes=None), EMPTY, EMPTY], BY_BASE, id="4-missing-before-does-not-matter"),
        pytest.param([replace(EMPTY, used_bytes=0)] * 2, BY_BASE, id="4-below-the-base"),
        pytest.param([EMPTY, replace(EMPTY, used_bytes=529)], StillHeld(1), id="6-one-byte-over"),
        pytest.param([replace(EMPTY, used_bytes=1400), EMPTY], StillHeld(872), id="6-only-the-last-one-fits"),
        pytest.param([EMPTY, EMPTY, FULL], StillHeld(8472), id="6-taken-again"),
    ],
)
def test_by_what_is_in_use(samples: list[MemorySample], expected: Verdict) -> None:
    assert verdict(*samples) == expected


@pytest.mark.parametrize(
    ("samples", "options", "expected"),
    [
        pytest.param([replace(OURS_GONE, free_bytes=0)] * 2, {}, StillHeld(1000), id="2-ours-gone-and-no-room"),
        pytest.param(
            [EMPTY, replace(FULL, free_bytes=999)], {"no_pipeline": True}, StillHeld(8472), id="2-ended-and-no-room"
        ),
        pytest.param(
            [replace(EMPTY, free_bytes=999)] * 2,
            {"no_pipeline": True, "base_bytes": None},
            StillHeld(1),
            id="2-ended-and-no-room-and-no-base",
        ),
        pytest.param([replace(OURS_GONE, used_bytes=9000)] * 2, {}, BY_OWN_FIGURE, id="3-another-has-grown"),
        pytest.param(
            [replace(OURS_GONE, used_bytes=9000)] * 2, {"base_bytes": None}, BY_OWN_FIGURE, id="3-without-a-base"
        ),
        pytest.param([OURS_GONE, replace(OURS_GONE, own_bytes=179)], {}, StillHeld(1), id="3-hidden-by-who-went"),
        pytest.param(
            [replace(OURS_GONE, own_bytes=179)] * 2,
            {"no_pipeline": True, "own_base_bytes": 0},
            StillHeld(51),
            id="3-named-when-it-had-ended",
        ),
        pytest.param([EMPTY, replace(OURS_GONE, own_bytes=9000)], {}, BY_BASE, id="4-reported-once-is-not-enough"),
        pytest.param([FULL] * 2, {}, StillHeld(8472), id="6-no-process-is-listed"),
        pytest.param([FULL] * 2, {"no_pipeline": True}, BY_NO_PIPELINE, id="5-the-host-has-ended"),
        pytest.param([FULL] * 2, {"no_pipeline": True, "base_bytes": None}, BY_NO_PIPELINE, id="5-without-a-base"),
        pytest.param([EMPTY] * 2, {"no_pipeline": True}, BY_BASE, id="4-ended-and-back-at-the-base"),
        pytest.param([FULL] * 2, {"base_bytes": None}, Unmeasurable(), id="6-without-a-base"),
    ],
)
def test_with_others_on_the_card(samples: list[MemorySample], options: dict[str, Any], expected: Verdict) -> None:
    assert verdict(*samples, **{"own_base_bytes": OWN_BASE} | options) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {7: 50}, 50, id="named-with-its-start"),
        pytest.param({8: 1}, {8: 1, 7: 0}, 0, id="beside-others"),
        pytest.param({}, {}, None, id="nobody-is-named"),
        pytest.param({8: 1}, {8: 1, 1007: 50}, None, id="known-by-another-number"),
        pytest.param({7: 1}, {7: 50}, None, id="another-has-its-number"),
    ],
)
def test_the_drivers_figure_of_our_host(before: dict[int, int], after: dict[int, int], expected: int | None) -> None:
    assert own_figure(7, before, after) == expected


figures = st.integers(min_value=-(2**40), max_value=2**40)
known = st.one_of(figures, st.none())
# mostly readable, or few examples would come to a verdict
readable = st.builds(MemorySample, st.just(0.0), figures, figures, known)
samples = st.lists(
    st.one_of(readable, readable, st.builds(MemorySample, st.just(0.0), known, known, known)), max_size=4
)
limits = st.fixed_dictionaries(
    {
        "base_bytes": known,
        "own_base_bytes": known,
        "tolerance_bytes": st.integers(0, 2**40),
        "needed_bytes": st.integers(0, 2**40),
        "no_pipeline": st.booleans(),
    }
)


@given(samples, limits)
def test_nothing_is_loaded_without_room_or_on_one_look(taken: list[MemorySample], limits: dict[str, Any]) -> None:
    """Whatever else is known, nothing is loaded while memory of ours could be in the way."""
    found = judge(taken, **limits)
    if isinstance(found, Released):
        assert len(taken) >= 2
        assert all(each.free_bytes is not None and each.free_bytes >= limits["needed_bytes"] for each in taken[-2:])
    if isinstance(found, StillHeld):
        assert found.bytes > 0


@given(samples, limits)
def test_a_release_names_its_real_proof(taken: list[MemorySample], limits: dict[str, Any]) -> None:
    found, last_two = judge(taken, **limits), taken[-2:]
    tolerance = limits["tolerance_bytes"]

    def all_within(name: str, base: int | None) -> bool:
        figures = [getattr(each, name) for each in last_two]
        return base is not None and all(bytes_ is not None and bytes_ <= base + tolerance for bytes_ in figures)

    match found:
        case Released("own_figure"):
            assert all_within("own_bytes", limits["own_base_bytes"])
        case Released("base"):
            assert all_within("used_bytes", limits["base_bytes"])
        case Released("no_pipeline"):
            assert limits["no_pipeline"]
            assert not all_within("used_bytes", limits["base_bytes"])


@given(samples, limits)
def test_our_own_leftover_is_never_blamed_on_others(taken: list[MemorySample], limits: dict[str, Any]) -> None:
    own_base_bytes = 0
    held = [replace(each, own_bytes=own_base_bytes + limits["tolerance_bytes"] + 1) for each in taken]
    assert not isinstance(judge(held, **limits | {"own_base_bytes": own_base_bytes}), Released)


@given(samples, limits, st.integers(0, 2**40))
def test_more_memory_in_use_never_turns_into_a_release(
    taken: list[MemorySample], limits: dict[str, Any], more: int
) -> None:
    def plus(value: int | None, by: int) -> int | None:
        return None if value is None else value + by

    worse = [
        MemorySample(each.at_s, plus(each.used_bytes, more), plus(each.free_bytes, -more), plus(each.own_bytes, more))
        for each in taken
    ]
    before, after = judge(taken, **limits), judge(worse, **limits)
    if isinstance(after, Released):
        assert isinstance(before, Released)
    if isinstance(before, StillHeld):
        assert isinstance(after, StillHeld)
        assert after.bytes >= before.bytes


@given(samples, samples, limits)
def test_only_the_last_two_count(
    earlier: list[MemorySample], taken: list[MemorySample], limits: dict[str, Any]
) -> None:
    if len(taken) >= 2:
        assert judge([*earlier, *taken], **limits) == judge(taken, **limits)
