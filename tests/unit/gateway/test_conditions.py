"""`If-Match` and `If-None-Match`: the conditions of a request (RFC 9110 §13)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.http.conditions import Conditions, to_change, to_read


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "tag", "verdict"),
    [
        pytest.param(None, None, "7", "go on", id="3-nothing-asked"),
        pytest.param('"7"', None, "7", "go on", id="1-match"),
        pytest.param('"7"', None, "7-3", "failed", id="1-another-place-is-another-representation"),
        pytest.param('W/"7"', None, "7", "failed", id="1-weak-never-matches-strongly"),
        pytest.param('"5" , W/"6","7"', None, "7", "go on", id="1-list"),
        pytest.param("*", None, "7", "go on", id="1-any"),
        pytest.param("*", None, None, "go on", id="1-any-without-a-tag"),
        pytest.param('"*"', None, "7", "failed", id="1-quoted-star-is-a-tag"),
        pytest.param('"7"', None, None, "failed", id="1-no-tag-to-match"),
        pytest.param("", None, "7", "failed", id="1-empty-names-nothing"),
        pytest.param(None, '"7"', "7", "not modified", id="2-match"),
        pytest.param(None, 'W/"7"', "7", "not modified", id="2-weak"),
        pytest.param(None, '"6", W/"7"', "7", "not modified", id="2-list"),
        pytest.param(None, " * ", "7", "not modified", id="2-any"),
        pytest.param(None, "*", None, "not modified", id="2-any-without-a-tag"),
        pytest.param(None, '"*"', "7", "go on", id="2-quoted-star-is-a-tag"),
        pytest.param(None, '"7"', "7-gzip", "go on", id="2-another-encoding"),
        pytest.param(None, '"a,b", "7"', "7", "not modified", id="2-comma-in-a-tag"),
        pytest.param(None, "\udcff;;,", "7", "go on", id="2-nonsense"),
        pytest.param(None, '""', "7", "go on", id="2-empty-tag"),
        pytest.param('""', None, "7", "failed", id="1-empty-tag"),
        pytest.param('"6"', '"7"', "7", "failed", id="1-goes-before-2"),
    ],
)
def test_what_is_read(if_match: str | None, if_none_match: str | None, tag: str | None, verdict: str) -> None:
    assert to_read(Conditions.of(if_match, if_none_match), tag) == verdict


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "revision", "verdict"),
    [
        pytest.param(None, None, 7, "go on", id="3-nothing-asked"),
        pytest.param('"7"', None, 7, "go on", id="1-match"),
        pytest.param('"7-3-4.2"', None, 7, "go on", id="1-its-place-is-not-what-is-changed"),
        pytest.param('"7-gzip"', None, 7, "go on", id="1-nor-its-encoding"),
        pytest.param('"17"', None, 7, "failed", id="1-another-revision"),
        pytest.param('W/"7"', None, 7, "failed", id="1-weak-never-matches-strongly"),
        pytest.param('"5", "7-2"', None, 7, "go on", id="1-list"),
        pytest.param("*", None, 7, "go on", id="1-any"),
        pytest.param("*", None, None, "failed", id="1-any-of-nothing"),
        pytest.param('"0"', None, 0, "go on", id="1-never-set"),
        pytest.param('"nonsense"', None, 7, "failed", id="1-not-ours"),
        pytest.param(f'"{"9" * 5000}"', None, 7, "failed", id="1-5000-digits"),
        pytest.param('""', None, 7, "failed", id="1-empty-tag"),
        pytest.param(None, '"", "6"', 7, "go on", id="2-empty-tag"),
        pytest.param(None, "*", 7, "failed", id="2-any"),
        pytest.param(None, "*", None, "go on", id="2-nothing-there"),
        pytest.param(None, 'W/"7-3"', 7, "failed", id="2-weak"),
        pytest.param(None, '"6"', 7, "go on", id="2-another-revision"),
    ],
)
def test_what_is_changed(if_match: str | None, if_none_match: str | None, revision: int | None, verdict: str) -> None:
    assert to_change(Conditions.of(if_match, if_none_match), revision) == verdict


@given(st.text(), st.text(), st.integers(0))
@example("", "", 7)
def test_no_header_is_an_error(if_match: str, if_none_match: str, revision: int) -> None:
    conditions = Conditions.of(if_match, if_none_match)
    assert to_read(conditions, str(revision)) in ("go on", "not modified", "failed")
    assert to_change(conditions, revision) in ("go on", "failed")


@pytest.mark.parametrize(
    ("header", "revisions"),
    [(None, []), ("*", []), ('"7-3-4.2-gzip"', [7]), ('W/"7", "8", "x", 9', [7, 8, 9]), ('"-7", "٣"', [])],
)
def test_the_revisions_that_were_seen(header: str | None, revisions: list[int]) -> None:
    assert sorted(Conditions.of(None, header).revisions) == revisions
