"""What a watch concludes about its stream after an interruption."""

import pytest

from ops.nats.entry import Entry
from ops.nats.following import HEARTBEAT_S, LOOK_EVERY_S, SILENT_LOOKS
from ops.nats.reader import KnownRevision, contradicts, is_news
from ops.nats.stream_proof import Mark, StreamState, There, Verdict, judged, was_emptied
from ops.nats.watch import SILENT_S
from tests.kit.records import NOW, after

MADE, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
DELIVERED, WRITTEN = Mark(7, time=NOW), Mark(7, content=b"x")


@pytest.mark.parametrize(
    ("created", "last_seq", "mark", "there", "expected"),
    [
        pytest.param(LATER, 0, None, None, Verdict.WENT_BACK, id="1-made-anew-before-anything-was-delivered"),
        pytest.param(LATER, 9, DELIVERED, There(NOW, b"x"), Verdict.WENT_BACK, id="1-made-anew"),
        pytest.param(MADE, 6, DELIVERED, None, Verdict.WENT_BACK, id="2-shorter"),
        pytest.param(MADE, 7, DELIVERED, There(after(1), b"x"), Verdict.WENT_BACK, id="3-another-message"),
        pytest.param(MADE, 9, WRITTEN, There(after(1), b"y"), Verdict.WENT_BACK, id="3-another-than-was-written"),
        pytest.param(MADE, 7, DELIVERED, There(NOW, b"x"), Verdict.SAME, id="4-the-one-that-was-delivered"),
        pytest.param(MADE, 9, WRITTEN, There(after(1), b"x"), Verdict.SAME, id="4-the-one-that-was-written"),
        pytest.param(MADE, 9, DELIVERED, None, Verdict.UNPROVEN, id="5-none-any-more"),
        pytest.param(MADE, 9, None, None, Verdict.UNPROVEN, id="5-nothing-was-known"),
    ],
)
def test_whether_a_stream_went_back(
    created: str, last_seq: int, mark: Mark | None, there: There | None, expected: Verdict
) -> None:
    assert judged(made_at=MADE, mark=mark, state=StreamState(created, last_seq), there=there) is expected


HELD, EMPTY = StreamState(MADE, 9, first_seq=3, subjects=4), StreamState(MADE, 9, first_seq=10)
NEW = StreamState(MADE, 0)


@pytest.mark.parametrize(
    ("standing", "lately", "before", "now", "expected"),
    [
        pytest.param(4, [], HELD, HELD, False, id="1-as-many-keys-as-were-delivered"),
        pytest.param(3, [], HELD, HELD, False, id="1-more-others-are-deletion-markers"),
        pytest.param(4, [], HELD, EMPTY, True, id="1-purged"),
        pytest.param(4, [], HELD, StreamState(MADE, 11, first_seq=10, subjects=2), True, id="1-purged-two-came-back"),
        pytest.param(0, [], HELD, EMPTY, False, id="1-nothing-was-delivered"),
        pytest.param(None, [], HELD, StreamState(MADE, 20, first_seq=9, subjects=1), False, id="2-one-is-left"),
        pytest.param(None, [], HELD, EMPTY, True, id="2-purged"),
        pytest.param(None, [], HELD, StreamState(MADE, 20, first_seq=10, subjects=9), True, id="2-purged-and-written"),
        pytest.param(None, [], EMPTY, EMPTY, False, id="2-it-was-empty-then"),
        pytest.param(None, [], NEW, StreamState(MADE, 1, first_seq=1, subjects=1), False, id="2-the-first-of-all"),
        pytest.param(None, [9], HELD, HELD, False, id="3-what-came-lately-is-there"),
        pytest.param(None, [11, 14], EMPTY, StreamState(MADE, 14, first_seq=13, subjects=1), True, id="3-purged"),
        pytest.param(None, [], EMPTY, StreamState(MADE, 20, first_seq=12, subjects=9), False, id="2-there-was-nothing"),
    ],
)
def test_whether_a_bucket_was_emptied(
    standing: int | None, lately: list[int], before: StreamState, now: StreamState, expected: bool
) -> None:
    assert was_emptied(standing=standing, lately=lately, before=before, now=now) is expected


def test_a_consumer_that_is_gone_is_missed_within_a_second() -> None:
    """As a `FollowedStream` looks: in the last look at the latest, counted from when it was heard last. It is heard
    twice in that time, so that one word that is late is not taken for a deletion."""
    missed_s = (SILENT_LOOKS + 1) * LOOK_EVERY_S
    assert missed_s <= SILENT_S <= 1.0
    assert missed_s >= 2 * HEARTBEAT_S


@pytest.mark.parametrize(
    ("revision", "at_s", "shows_a_loss", "is_news_now", "is_news_after_a_loss"),
    [
        pytest.param(8, 1, False, True, True, id="newer"),
        pytest.param(7, 0, False, False, False, id="the-same"),
        pytest.param(7, 1, True, False, True, id="another-of-the-same-revision"),
        pytest.param(6, -1, True, False, True, id="older"),
    ],
)
def test_what_an_entry_shows(
    revision: int, at_s: float, shows_a_loss: bool, is_news_now: bool, is_news_after_a_loss: bool
) -> None:
    known, entry = KnownRevision(7, NOW), Entry("a", b"x", revision, after(at_s))
    assert contradicts({"a": known, "gone": known}, {"a": entry, "new": entry}) is shows_a_loss
    assert is_news(entry, known, went_back=False) is is_news_now
    assert is_news(entry, known, went_back=True) is is_news_after_a_loss
    assert is_news(entry, None, went_back=False)
