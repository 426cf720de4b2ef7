"""Whose turn it is: a slow receiver takes its own places, and no other receiver's."""

from datetime import UTC, datetime, timedelta

from contracts.webhooks import WebhookDelivery, requests_id
from gateway.webhooks.lineup import Lineup, receiver_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def fill(lineup: Lineup, caller: str, receiver: str, count: int) -> None:
    for number in range(count):
        lineup.put(f"{caller}-{receiver}-{number}", caller=caller, receiver=receiver, at=NOW)


def taken(lineup: Lineup, now: datetime = NOW) -> list[str]:
    found = []
    while (delivery := lineup.take(now)) is not None:
        found.append(delivery)
    return found


def test_what_is_due_is_taken_and_what_is_not_waits() -> None:
    lineup = Lineup()
    lineup.put("later", caller="a", receiver="r", at=NOW + timedelta(seconds=5))
    lineup.put("now", caller="a", receiver="r", at=NOW)
    assert taken(lineup) == ["now"]
    assert lineup.next_at() == NOW + timedelta(seconds=5)
    assert taken(lineup, NOW + timedelta(seconds=5)) == ["later"]
    assert lineup.next_at() is None


def test_a_receiver_has_a_few_places_and_gets_them_back() -> None:
    lineup = Lineup(per_receiver=2, per_caller=10)
    fill(lineup, "a", "slow", 5)
    assert taken(lineup) == ["a-slow-0", "a-slow-1"]
    lineup.over("a-slow-0")
    assert taken(lineup) == ["a-slow-2"]
    assert lineup.sending == 2


def delivery_to(url: str, endpoint: str) -> WebhookDelivery:
    return WebhookDelivery(
        id="d", caller="a", endpoint=endpoint, url=url, task_id="t", event="task.done", payload="{}", made_at=NOW
    )


def test_an_endpoint_takes_no_place_of_another_one_of_its_host() -> None:
    first, second = (receiver_of(delivery_to(f"https://a.example/{path}", f"ep_{path}")) for path in "12")
    assert first != second


def test_the_addresses_that_requests_name_share_the_places_of_their_host() -> None:
    requests = requests_id("a")
    first, second = (receiver_of(delivery_to(f"https://a.example/{path}", requests)) for path in "12")
    assert first == second
    assert first != receiver_of(delivery_to("https://b.example/1", requests))


def test_a_slow_receiver_takes_no_place_of_another_one_of_its_caller() -> None:
    lineup = Lineup(per_receiver=2, per_caller=10)
    fill(lineup, "a", "slow", 50)
    fill(lineup, "a", "fast", 1)
    assert "a-fast-0" in taken(lineup)


def test_a_caller_with_many_slow_receivers_takes_no_place_of_another_caller() -> None:
    lineup = Lineup(per_receiver=2, per_caller=4)
    for receiver in range(100):
        fill(lineup, "greedy", f"r{receiver}", 3)
    fill(lineup, "modest", "r", 1)
    found = taken(lineup)
    assert "modest-r-0" in found
    assert len(found) == 5


def test_callers_take_turns() -> None:
    lineup = Lineup()
    fill(lineup, "a", "r", 3)
    fill(lineup, "b", "r", 3)
    assert [each[0] for each in taken(lineup)] == ["a", "b", "a", "b", "a", "b"]


def test_what_is_dropped_or_put_off_is_not_taken() -> None:
    lineup = Lineup()
    fill(lineup, "a", "r", 3)
    lineup.drop("a-r-0")
    lineup.put("a-r-1", caller="a", receiver="r", at=NOW + timedelta(hours=1))
    assert taken(lineup) == ["a-r-2"]
    assert taken(lineup, NOW + timedelta(hours=1)) == ["a-r-1"]


def test_what_is_put_off_while_it_waits_for_a_place_waits_for_its_time() -> None:
    lineup = Lineup(per_receiver=1)
    fill(lineup, "a", "r", 2)
    assert taken(lineup) == ["a-r-0"]
    lineup.put("a-r-1", caller="a", receiver="r", at=NOW + timedelta(hours=1))
    lineup.over("a-r-0")
    assert taken(lineup) == []
    assert taken(lineup, NOW + timedelta(hours=1)) == ["a-r-1"]


def test_what_is_asked_for_again_while_it_is_sent_is_sent_once_more() -> None:
    lineup = Lineup()
    fill(lineup, "a", "r", 1)
    assert taken(lineup) == ["a-r-0"]
    lineup.put("a-r-0", caller="a", receiver="r", at=NOW)
    assert taken(lineup) == []
    lineup.over("a-r-0")
    assert taken(lineup) == ["a-r-0"]
