"""Fallback episodes: what is written next, for every order of events, and what several gateways write together."""

from collections.abc import Sequence
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.lanes import FallbackCause, FallbackEpisode
from gateway.rules.episodes import EPISODES_MAX, SETTLE_S, VOUCH_S, Sent, advance, is_same, noted, with_newer
from tests.kit.records import NOW, after


def episode(
    cause: FallbackCause = "capacity", *, since_s: float = 0, until_s: float | None = None, served: int = 3
) -> FallbackEpisode:
    """*served* by this gateway, "a", after 3 by another one, if it is more."""
    until = None if until_s is None else after(until_s)
    by = {"b": min(3, served), "a": served - min(3, served)}
    return FallbackEpisode(
        model="anisora",
        cause=cause,
        since=after(since_s),
        until=until,
        served=served,
        served_by={name: count for name, count in by.items() if count},
    )


def begun(since_s: float) -> FallbackEpisode:
    """With two requests of this gateway."""
    return FallbackEpisode(model="anisora", cause="capacity", since=after(since_s), served=2, served_by={"a": 2})


def sent(cause: FallbackCause = "capacity", at_s: float = 10, served: int = 2) -> Sent:
    return Sent(cause, after(at_s), served)


@pytest.mark.parametrize(
    ("before", "counts", "cause", "written", "left"),
    [
        pytest.param(None, [], None, None, 0, id="nothing-ever-happened"),
        pytest.param(None, [], "capacity", None, 0, id="no-request-no-episode"),
        pytest.param(None, [sent()], "capacity", begun(10), 0, id="4-the-first-one"),
        pytest.param(None, [sent()], None, begun(10), 0, id="4-also-when-the-lane-is-back-already"),
        pytest.param(None, [sent(served=0)], "capacity", episode(since_s=10, served=0), 0, id="4-refused"),
        pytest.param(episode(), [sent()], "capacity", episode(served=5), 0, id="1-counted"),
        pytest.param(episode(), [sent(served=0)], "capacity", None, 0, id="1-nothing-to-count"),
        pytest.param(episode(), [], "capacity", None, 0, id="it-goes-on"),
        pytest.param(episode(), [], None, episode(until_s=20), 0, id="5-a-lane-is-back"),
        pytest.param(episode(), [], "manual", episode(until_s=20), 0, id="5-another-cause"),
        pytest.param(episode(until_s=10), [], None, None, 0, id="ended-stays-ended"),
        pytest.param(episode(), [sent("manual")], "manual", episode(until_s=10), 1, id="2-ends-where-the-next-begins"),
        pytest.param(
            episode(until_s=9.6), [sent()], None, episode(until_s=9.6, served=5), 0, id="1-counted-when-it-had-ended"
        ),
        pytest.param(episode(until_s=18), [sent(at_s=19)], "capacity", None, 1, id="4-not-before-all-have-counted"),
        pytest.param(episode(until_s=20 - SETTLE_S), [sent(at_s=19)], "capacity", begun(19), 0, id="4-next"),
        pytest.param(
            episode("manual", since_s=10),
            [sent(at_s=10.1)],
            "manual",
            episode("manual", since_s=10, served=5),
            0,
            id="3-too-late-for-the-one-before",
        ),
    ],
)
def test_what_is_written_next(
    before: FallbackEpisode | None,
    counts: list[Sent],
    cause: FallbackCause | None,
    written: FallbackEpisode | None,
    left: int,
) -> None:
    found, remaining = advance(before, counts, model="anisora", gateway="a", cause=cause, now=after(20))
    assert found == written
    assert len(remaining) == left


@pytest.mark.parametrize(
    ("counts", "cause", "vouched_s", "written", "left"),
    [
        pytest.param([], "capacity", 990, None, 0, id="somebody-just-wrote-it"),
        pytest.param([], "capacity", 1_000 - VOUCH_S - 1, episode(), 0, id="7-written-again-as-it-is"),
        pytest.param([], "capacity", 100, episode(until_s=100), 0, id="6-nobody-was-there"),
        pytest.param([], None, 100, episode(until_s=100), 0, id="6-and-it-did-not-last-till-now"),
        pytest.param([sent(at_s=999)], "capacity", 100, episode(until_s=100), 1, id="6-before-the-next-one"),
        pytest.param([], None, 990, episode(until_s=1_000), 0, id="5-the-switch-was-lifted"),
    ],
)
def test_an_episode_does_not_outlive_its_gateways(
    counts: list[Sent], cause: FallbackCause | None, vouched_s: float, written: FallbackEpisode | None, left: int
) -> None:
    found, remaining = advance(
        episode(), counts, model="anisora", gateway="a", cause=cause, now=after(1_000), vouched_at=after(vouched_s)
    )
    assert found == written
    assert len(remaining) == left


def test_what_has_ended_needs_nobody_to_vouch() -> None:
    over, now = episode(until_s=50), after(1_000)
    found = advance(over, [], model="anisora", gateway="a", cause="capacity", now=now, vouched_at=after(50))
    assert found == (None, ())


def test_counts_are_kept_by_cause_in_their_order() -> None:
    counts: tuple[Sent, ...] = ()
    for cause, at in (("capacity", 0), ("capacity", 1), ("manual", 2), ("capacity", 3)):
        counts = noted(counts, cause, 1, after(at))  # type: ignore[arg-type]  # the literals above
    assert counts == (sent("capacity", 0, 2), sent("manual", 2, 1), sent("capacity", 3, 1))


def test_values_of_one_episode_are_one_episode() -> None:
    values = [
        episode(served=1),
        episode(served=2),
        episode(until_s=5, served=2),
        episode(until_s=5, served=4),  # what another gateway added after the episode had ended
        episode("manual", since_s=8, served=1),
    ]
    history: list[FallbackEpisode] = []
    for value in values:
        history = with_newer(history, value)
    assert history == values[3:]
    assert not is_same(values[3], values[4])


def test_only_the_newest_episodes_are_kept() -> None:
    history: list[FallbackEpisode] = []
    for number in range(EPISODES_MAX + 5):
        history = with_newer(history, episode(since_s=number * 10, until_s=number * 10 + 5))
    assert len(history) == EPISODES_MAX
    assert history[0].since == after(50)


class Scene:
    """Gateways that see the same cause, each with counts of its own, over one entry with its history."""

    def __init__(self, gateways: int) -> None:
        self.counts: list[Sequence[Sent]] = [()] * gateways
        self.value: FallbackEpisode | None = None
        self.history: list[FallbackEpisode] = []
        self.total = 0

    def request(self, gateway: int, cause: FallbackCause, now: datetime) -> None:
        self.counts[gateway] = noted(self.counts[gateway], cause, 1, now)
        self.total += 1

    def write(self, gateway: int, cause: FallbackCause | None, now: datetime) -> None:
        while True:
            written, left = advance(
                self.value, self.counts[gateway], model="anisora", gateway=str(gateway), cause=cause, now=now
            )
            went_on = left != tuple(self.counts[gateway])
            self.counts[gateway] = left
            if written is not None:
                self.value = written
                self.history = with_newer(self.history, written)
            elif not went_on:
                return


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "capacity", "quota", "manual"]),  # why requests are sent away, from then on
            st.integers(1, 8),  # for this many quarters of a second
            st.lists(st.integers(0, 2), max_size=6),  # a request at each of these gateways
        ),
        max_size=12,
    )
)
def test_every_request_is_counted_once_and_episodes_do_not_overlap(
    story: list[tuple[FallbackCause | None, int, list[int]]],
) -> None:
    scene = Scene(3)
    tick = 0
    cause: FallbackCause | None = None
    for cause, ticks, requests in story:
        for gateway in requests:
            if cause is not None:
                scene.request(gateway, cause, after(tick / 4))
        for _ in range(ticks):
            tick += 1
            scene.write(tick % 3, cause, after(tick / 4))
    for _ in range(200):  # long enough for every episode to settle, one after the other
        tick += 1
        scene.write(tick % 3, None, after(tick / 4))
    assert sum(each.served for each in scene.history) == scene.total
    assert all(not counts for counts in scene.counts)
    for each in scene.history:
        assert each.until is not None
        assert sum(each.served_by.values()) == each.served
        assert each.since <= each.until
    for older, newer in zip(scene.history, scene.history[1:], strict=False):
        assert older.until is not None
        assert older.until <= newer.since
    assert min((each.since for each in scene.history), default=NOW) >= NOW
