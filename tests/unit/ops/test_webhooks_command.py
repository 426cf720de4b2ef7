"""What `warmlane webhooks` prints of addresses and answers, which others wrote."""

from datetime import UTC, datetime

from rich.console import Console

from contracts.api.webhooks import DeliveryView, EndpointView
from contracts.webhooks import DeliveryTry
from ops.commands.webhooks import endpoints_table, line_of

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ID = f"019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55_claimed_ep_{'0' * 16}"


def test_an_address_of_ipv6_and_a_caller_are_shown_as_they_are() -> None:
    url, caller = "http://[fd00::5]:8080/hook", "[bold]"
    endpoint = EndpointView(
        id="ep_1",
        url=url,
        events=("task.done",),
        caller=caller,
        made_at=NOW,
        secrets=1,
        disabled_at=None,
        disabled_why=None,
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(endpoints_table([endpoint]))
    assert url in captured.get()
    assert caller in captured.get()


def test_a_delivery_is_a_line_that_begins_with_its_whole_id() -> None:
    last = DeliveryTry(at=NOW, status=None, error="illegal status line: [/b]\x1b[2J", took_s=0.1)
    delivery = DeliveryView(
        id=ID,
        endpoint="ep_1",
        url="http://[fd00::5]/",
        caller="a",
        task_id="t",
        event="task.claimed",
        status="pending",
        attempts=1,
        made_at=NOW,
        next_at=NOW,
        ended_at=None,
        last=last,
    )
    assert line_of(delivery) == (
        f"{ID}  pending    http://[fd00::5]/  1 attempt, the last: illegal status line: [/b] [2J, "
        "the next at 2026-03-01 12:00:00 UTC"
    )
