"""`Prefer` (RFC 7240): one line or several, each a list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.preferences import Preferences


def preferred(*lines: str) -> Preferences:
    return Preferences.of(lines, wait_max_s=60)


@pytest.mark.parametrize(
    ("lines", "wait_s", "responds_async"),
    [
        ([], None, False),
        (["wait=10"], 10, False),
        (["Wait = 10"], 10, False),
        (['wait="10"'], 10, False),
        (["wait=0"], 0, False),
        (["wait=3600"], 60, False),
        (["respond-async, wait=10"], 10, True),
        (["respond-async", "wait=10"], 10, True),
        (["wait=10", "Respond-Async"], 10, True),
        (["return=minimal; foo=bar, wait=10"], 10, False),
        (["wait=10; foo=bar"], 10, False),
        (["wait=10, wait=20", "wait=30"], 10, False),
        (["handling=lenient; wait=10"], None, False),
        (['foo="a, wait=10", wait=20'], 20, False),
        (['foo="open', "wait=10"], 10, False),
        (["wait"], 60, False),
        (["Wait; foo=bar, respond-async"], 60, True),
        (["wait="], None, False),
        (['wait=""'], None, False),
        (["wait=soon, respond-async"], None, True),
        (["wait=-1"], None, False),
        (["wait=1.5"], None, False),
        (["wait=٣"], None, False),
        ([f"wait={'9' * 5000}"], None, False),
        (["respond-asynchronously"], None, False),
        (["", ",", ";", "=", '"'], None, False),
    ],
)
def test_what_is_preferred(lines: list[str], wait_s: float | None, responds_async: bool) -> None:
    assert preferred(*lines) == Preferences(wait_s, responds_async)


def test_preference_applied_names_what_was_followed() -> None:
    assert preferred("wait=90", "respond-async").applied == {"preference-applied": "respond-async, wait=60"}
    assert preferred("wait=0").applied == {"preference-applied": "wait=0"}
    assert preferred("return=minimal").applied == {}


@given(st.lists(st.text()))
def test_nothing_that_is_sent_is_an_error(lines: list[str]) -> None:
    wait_s = preferred(*lines).wait_s
    assert wait_s is None or 0 <= wait_s <= 60
