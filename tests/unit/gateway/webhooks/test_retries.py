"""What an answer of a receiver leads to, and when a delivery is made again."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.webhook_retries import (
    ATTEMPTS_MAX,
    OUTCOMES,
    WAITS_S,
    Again,
    Dead,
    Delivered,
    WebhookAnswer,
    outcome_of,
    retry_after_s,
    verdict,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def wait_s(attempts: int, *, chance: float = 0.5, asked_s: float | None = None, status: int | None = 500) -> float:
    follows = verdict(WebhookAnswer(status, "", asked_s), attempts=attempts, now=NOW, chance=chance)
    assert isinstance(follows, Again)
    return (follows.at - NOW).total_seconds()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int) -> None:
    assert verdict(WebhookAnswer(status), attempts=ATTEMPTS_MAX, now=NOW, chance=0) == Delivered()


@pytest.mark.parametrize("status", [None, 301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
def test_anything_else_is_tried_again_and_dead_after_the_last_attempt(status: int | None) -> None:
    assert isinstance(verdict(WebhookAnswer(status), attempts=1, now=NOW, chance=0), Again)
    assert verdict(WebhookAnswer(status), attempts=ATTEMPTS_MAX, now=NOW, chance=0) == Dead()


def test_a_receiver_that_is_gone_is_asked_no_more() -> None:
    assert verdict(WebhookAnswer(410), attempts=1, now=NOW, chance=0) == Dead(disables=True)


def test_the_waits_are_those_of_the_specification() -> None:
    assert [wait_s(attempts) for attempts in range(1, ATTEMPTS_MAX)] == list(WAITS_S)
    hours = [second / 3_600 for second in WAITS_S[3:]]
    assert (*WAITS_S[:3], *hours) == (5, 300, 1_800, 2, 5, 10, 14, 20, 24)


def test_chance_spreads_the_waits_by_a_tenth() -> None:
    assert wait_s(1, chance=0) == pytest.approx(4.5)
    assert wait_s(1, chance=1) == pytest.approx(5.5)


def test_a_receiver_may_ask_for_a_longer_wait_and_not_for_a_shorter_one() -> None:
    assert wait_s(1, asked_s=60, status=503) == 60
    assert wait_s(3, asked_s=60, status=429) == 1_800
    assert wait_s(1, asked_s=1e9) == 86_400


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("120", 120),
        (" 7 ", 7),
        ("99999999999999999999", 86_400),
        ("soon", None),
        ("-5", None),
        ("Sun, 01 Mar 2026 12:01:30 GMT", 90),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 99 Mar 2026 11:00:00 GMT", None),
        ("Mon, 01 Jan 2026 99999999999999999999:00:00 GMT", None),
        ("Mon, 01 Jan 2026 00:00:00 +99999999999999999", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header, NOW) == expected


@given(
    st.text(max_size=80)
    | st.from_regex(r"(Mon, )?[0-9]{1,30} Jan [0-9]{1,30} [0-9]{1,30}[:.][0-9]{1,30}( [+-][0-9]{1,30})?")
)
def test_a_receiver_may_write_anything(header: str) -> None:
    found = retry_after_s(header, NOW)
    assert found is None or 0 <= found <= 86_400


def test_outcomes_are_few() -> None:
    found = [outcome_of(WebhookAnswer(status)) for status in (204, 302, 404, 500, None)]
    assert found == ["delivered", "refused", "refused", "failed", "unreachable"]
    assert set(found) == set(OUTCOMES)


def test_again_never_lies_before_now() -> None:
    for attempts in range(1, ATTEMPTS_MAX):
        follows = verdict(WebhookAnswer(None, "x"), attempts=attempts, now=NOW, chance=0)
        assert isinstance(follows, Again)
        assert follows.at > NOW + timedelta(seconds=4)
