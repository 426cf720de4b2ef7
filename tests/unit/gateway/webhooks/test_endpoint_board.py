"""The endpoints in memory: what the gateway wrote itself, and what the watch brings, in either order."""

from datetime import UTC, datetime

from contracts.webhooks import WebhookEndpoint
from gateway.boards.endpoint_board import EndpointBoard
from ops.nats.bucket import Versioned
from ops.nats.buckets import ENDPOINTS
from ops.nats.entry import Entry

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MADE = WebhookEndpoint(
    id="e1", caller="alice", url="http://127.0.0.1:9/hook", events=(), secrets=(), made_at=NOW, since=NOW
)


def seen(value: WebhookEndpoint | None, revision: int) -> Versioned[WebhookEndpoint]:
    """An entry as the watch brings it."""
    return Versioned(ENDPOINTS, Entry("e1", None if value is None else ENDPOINTS.encode(value), revision, NOW))


def test_the_watch_undoes_none_of_the_gateways_own_changes() -> None:
    board = EndpointBoard()
    board.take_in("e1", MADE, 3)
    board.take_in("e1", None, 4)
    board.on_entry(seen(MADE, 3))
    assert board.of("alice") == ()
    board.on_entry(seen(None, 4))
    board.on_entry(seen(MADE, 5))
    assert board.of("alice") == (MADE,)


def test_a_bucket_that_went_back_counts_with_its_lower_revisions() -> None:
    board = EndpointBoard()
    board.take_in("e1", MADE, 30)
    board.on_again()
    board.on_entry(seen(None, 2))
    assert board.of("alice") == ()


def test_a_change_is_reported_once() -> None:
    board, changed = EndpointBoard(), list[str]()
    board.on_change = changed.append
    board.take_in("e1", MADE, 3)
    board.on_entry(seen(MADE, 3))
    assert changed == ["alice"]
