"""Whether a degraded worker is seen to serve its queue."""

from datetime import datetime

import msgspec
import pytest

from contracts.lanes import Leadership
from contracts.topology import LEADER_KEY
from gateway.boards.leader_board import LeaderBoard
from ops.nats.bucket import Versioned
from ops.nats.buckets import LEADERSHIPS
from ops.nats.entry import Entry
from tests.kit.records import NOW, after


def said(*, serves: bool) -> bytes:
    return msgspec.json.encode(Leadership(worker="w", owner="o", slot="cpu-0", pid=1, since=NOW, serves=serves))


# The previous leader is suspended and still holds the slot's lock: this one leads, and cannot serve.
LEADS_ALONE, SERVES = said(serves=False), said(serves=True)


def leader(at: datetime, value: bytes | None = b"{}", key: str = LEADER_KEY) -> Entry:
    return Entry(key, value, 1, at)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], False, id="never-heard-of"),
        pytest.param([leader(NOW)], True, id="serves"),
        pytest.param([leader(after(-3.5)), leader(NOW)], True, id="refreshed"),
        pytest.param([leader(NOW), leader(NOW, None)], False, id="expired"),
        pytest.param([leader(NOW), leader(NOW, None), leader(NOW)], True, id="a-standby-took-over"),
        pytest.param([leader(after(-6))], False, id="a-marker-that-was-missed"),
        pytest.param([leader(NOW, key="another")], False, id="another-key"),
        pytest.param([leader(NOW, LEADS_ALONE)], False, id="leads-without-its-slot"),
        pytest.param([leader(NOW, LEADS_ALONE), leader(NOW, SERVES)], True, id="got-its-slot"),
        pytest.param([leader(NOW, SERVES), leader(NOW, None), leader(NOW, LEADS_ALONE)], False, id="a-frozen-leader"),
    ],
)
def test_a_degraded_worker_is_alive_while_its_key_is_refreshed(entries: list[Entry], expected: bool) -> None:
    board = LeaderBoard()
    for entry in entries:
        board.on_entry(Versioned(LEADERSHIPS, entry))
    assert board.is_alive(NOW) is expected
