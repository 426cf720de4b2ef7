"""What a watch concludes of its stream after an interruption."""

import pytest

from ops.nats.watch import Entry, Mark, StreamState, There, Told, Verdict, contradicts, is_news, judged
from tests.kit.records import NOW, after

MADE, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
TOLD, WRITTEN = Mark(7, time=NOW), Mark(7, content=b"x")


@pytest.mark.parametrize(
    ("created", "last_seq", "mark", "there", "expected"),
    [
        pytest.param(LATER, 0, None, None, Verdict.WENT_BACK, id="1-made-anew-before-anything-was-told"),
        pytest.param(LATER, 9, TOLD, There(NOW, b"x"), Verdict.WENT_BACK, id="1-made-anew"),
        pytest.param(MADE, 6, TOLD, None, Verdict.WENT_BACK, id="2-shorter"),
        pytest.param(MADE, 7, TOLD, There(after(1), b"x"), Verdict.WENT_BACK, id="3-another-message"),
        pytest.param(MADE, 9, WRITTEN, There(after(1), b"y"), Verdict.WENT_BACK, id="3-another-than-was-written"),
        pytest.param(MADE, 7, TOLD, There(NOW, b"x"), Verdict.SAME, id="4-the-one-that-was-told"),
        pytest.param(MADE, 9, WRITTEN, There(after(1), b"x"), Verdict.SAME, id="4-the-one-that-was-written"),
        pytest.param(MADE, 9, TOLD, None, Verdict.UNPROVEN, id="5-none-any-more"),
        pytest.param(MADE, 9, None, None, Verdict.UNPROVEN, id="5-nothing-was-known"),
    ],
)
def test_whether_a_stream_went_back(
    created: str, last_seq: int, mark: Mark | None, there: There | None, expected: Verdict
) -> None:
    assert judged(made_at=MADE, mark=mark, state=StreamState(created, last_seq), there=there) is expected


@pytest.mark.parametrize(
    ("revision", "at_s", "shows_a_loss", "is_told", "is_told_after_a_loss"),
    [
        pytest.param(8, 1, False, True, True, id="newer"),
        pytest.param(7, 0, False, False, False, id="the-same"),
        pytest.param(7, 1, True, False, True, id="another-of-the-same-revision"),
        pytest.param(6, -1, True, False, True, id="older"),
    ],
)
def test_what_an_entry_shows(
    revision: int, at_s: float, shows_a_loss: bool, is_told: bool, is_told_after_a_loss: bool
) -> None:
    told, entry = Told(7, NOW), Entry("a", b"x", revision, after(at_s))
    assert contradicts({"a": told, "gone": told}, {"a": entry, "new": entry}) is shows_a_loss
    assert is_news(entry, told, went_back=False) is is_told
    assert is_news(entry, told, went_back=True) is is_told_after_a_loss
    assert is_news(entry, None, went_back=False)
