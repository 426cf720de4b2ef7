"""Which streams refuse writes, when a restart of the server is due, and how much room is enough. Pure."""

import pytest

from gateway.boards.storage import RESERVED_BYTES, Storage
from ops.nats.server import nats_conf
from ops.nats.store_keeper import NEEDED_BYTES, PAUSE_FIRST_S, PAUSE_MAX_S, STEADY_S, Restarts, may_restart, needs_room
from ops.nats.write_health import FORGOTTEN_AFTER_S, HEARD_S, REFUSES_AFTER_S, Refusals, Writes

MIB = 1024 * 1024


def test_a_stream_refuses_after_two_failures_over_a_while() -> None:
    writes = Writes()
    assert not writes
    writes.failed("KV_tasks", "silent", 10.0)
    assert writes
    assert writes.suspects(10.0 + REFUSES_AFTER_S) == {}  # one slow write is none
    writes.failed("KV_tasks", "silent", 12.0)
    assert writes.suspects(12.0) == {}
    assert writes.suspects(10.0 + REFUSES_AFTER_S) == {"KV_tasks": "silent"}


@pytest.mark.parametrize("end", ["stored", "forget", "age"])
def test_a_refusal_is_over(end: str) -> None:
    writes, now_s = Writes(), 100.0
    for at_s in (0.0, 5.0):
        writes.failed("KV_tasks", "silent", at_s)
        writes.failed("DEGRADED", "limit", at_s + 100)
    if end == "stored":
        writes.stored("KV_tasks")
    elif end == "forget":
        writes.forget()
    else:
        assert "KV_tasks" in writes.suspects(5.0 + FORGOTTEN_AFTER_S)
        now_s = 6.0 + FORGOTTEN_AFTER_S
    assert "KV_tasks" not in writes.suspects(now_s)
    assert bool(writes) is (end != "forget")


def test_a_report_holds_for_a_while_and_counts_from_the_first() -> None:
    refusals = Refusals()
    for now_s in (0.0, 2.0, 4.0):
        refusals.hear("KV_tasks", "silent", now_s)
    refusals.hear("KV_lanes", "limit", 4.0)
    assert refusals.now(5.0) == {"KV_tasks": "silent", "KV_lanes": "limit"}
    assert refusals.silent_for_s(5.0) == 5.0
    assert (refusals.now(5.0 + HEARD_S), refusals.silent_for_s(5.0 + HEARD_S)) == ({}, 0.0)
    refusals.hear("KV_tasks", "silent", 100.0)
    assert refusals.silent_for_s(101.0) == 1.0


def test_a_limit_is_no_reason_for_a_restart() -> None:
    refusals = Refusals()
    refusals.hear("KV_tasks", "limit", 0.0)
    refusals.hear("KV_tasks", "limit", 4.0)
    assert refusals.silent_for_s(5.0) == 0.0


@pytest.mark.parametrize(
    ("silent_for_s", "free_bytes", "restarts", "now_s", "expected"),
    [
        (STEADY_S, NEEDED_BYTES, Restarts(), 0.0, True),
        (STEADY_S - 0.1, NEEDED_BYTES, Restarts(), 0.0, False),  # 1
        (STEADY_S, NEEDED_BYTES - 1, Restarts(), 0.0, False),  # 2
        (STEADY_S, NEEDED_BYTES, Restarts(1, 100.0), 99.0 + PAUSE_FIRST_S, False),  # 3
        (STEADY_S, NEEDED_BYTES, Restarts(1, 100.0), 100.0 + PAUSE_FIRST_S, True),
        (STEADY_S, NEEDED_BYTES, Restarts(3, 0.0), 4 * PAUSE_FIRST_S - 1, False),
        (STEADY_S, NEEDED_BYTES, Restarts(3, 0.0), 4 * PAUSE_FIRST_S, True),
        (STEADY_S, NEEDED_BYTES, Restarts(99, 0.0), PAUSE_MAX_S, True),
    ],
)
def test_when_a_server_is_restarted(
    silent_for_s: float, free_bytes: int, restarts: Restarts, now_s: float, expected: bool
) -> None:
    assert may_restart(silent_for_s, free_bytes, restarts, now_s) is expected


def test_room_is_asked_for_where_only_that_is_missing() -> None:
    assert needs_room(STEADY_S, NEEDED_BYTES - 1)
    assert not needs_room(STEADY_S, NEEDED_BYTES)
    assert not needs_room(0.0, 0)


@pytest.mark.parametrize(
    ("used_bytes", "limit_bytes", "free_bytes", "room_bytes", "takes"),
    [
        (0, 20_000 * MIB, None, 20_000 * MIB, True),
        (20_000 * MIB - RESERVED_BYTES, 20_000 * MIB, None, RESERVED_BYTES, True),
        (20_001 * MIB - RESERVED_BYTES, 20_000 * MIB, None, RESERVED_BYTES - MIB, False),
        (0, 20_000 * MIB, RESERVED_BYTES - 1, RESERVED_BYTES - 1, False),  # the disk is full before the limit is
        (85 * MIB, 100 * MIB, 10_000 * MIB, 15 * MIB, True),
        (91 * MIB, 100 * MIB, 10_000 * MIB, 9 * MIB, False),
        (30 * MIB, 20 * MIB, None, 0, False),
    ],
)
def test_room(used_bytes: int, limit_bytes: int, free_bytes: int | None, room_bytes: int, takes: bool) -> None:
    storage = Storage(used_bytes=used_bytes, limit_bytes=limit_bytes, free_bytes=free_bytes)
    assert (storage.room_bytes, storage.takes_requests) == (room_bytes, takes)


def test_the_default_is_what_nats_conf_says() -> None:
    assert "max_file_store: 20GB" in nats_conf().read_text()
