"""The traps of design §10 that `ops/nats_link.py` closes, against a real server."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from contracts.topology import DEADLINES, DEGRADED, DEGRADED_MAX_MSGS, TASKS, sweep_consumer, work_subject
from ops.nats_link import Entry, NatsLink, StreamFull, TransportUnavailable, WrongRevision, ack_sync
from tests.support import NatsServer, eventually, free_port


async def test_compare_and_set(link: NatsLink) -> None:
    first = await link.create(TASKS, "a", b"1")
    with pytest.raises(WrongRevision):
        await link.create(TASKS, "a", b"2")
    second = await link.update(TASKS, "a", b"3", revision=first)
    with pytest.raises(WrongRevision):
        await link.update(TASKS, "a", b"4", revision=first)
    entry = await link.get(TASKS, "a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"3", second)


async def test_a_deleted_key_has_no_value(link: NatsLink) -> None:
    assert await link.get(TASKS, "a") is None
    revision = await link.put(TASKS, "a", b"1")
    with pytest.raises(WrongRevision):
        await link.delete(TASKS, "a", revision=revision + 1)
    await link.delete(TASKS, "a", revision=revision)
    entry = await link.get(TASKS, "a")
    assert entry is not None
    assert entry.value is None


async def test_the_degraded_queue_takes_25_and_refuses_the_26th(link: NatsLink) -> None:
    results = await asyncio.gather(
        *(link.publish(work_subject("degraded", "anisora", f"t{n}"), b"x") for n in range(40)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, StreamFull)]
    assert len(results) - len(refused) == DEGRADED_MAX_MSGS
    assert len(refused) == 15
    assert (await link.js.stream_info(DEGRADED)).state.messages == DEGRADED_MAX_MSGS


async def test_the_same_message_is_stored_once(link: NatsLink) -> None:
    subject = work_subject("lane", "anisora", "t")
    first = await link.publish(subject, b"first", message_id="t.0")
    again = await link.publish(subject, b"again", message_id="t.0")
    assert (first.duplicate, again.duplicate, again.seq) == (None, True, first.seq)
    stored = await link.stored_message(first.stream, again.seq)
    assert stored is not None
    assert stored.data == b"first"


async def test_a_timer_fires_once_and_a_later_one_replaces_it(link: NatsLink) -> None:
    now = datetime.now(UTC)
    await link.set_timer("lease", "t", now + timedelta(seconds=600), b"first")
    await link.set_timer("lease", "t", now + timedelta(milliseconds=200), b"second")
    pull = await link.pull(DEADLINES, sweep_consumer("lease"))
    messages = await eventually(pull.fetch)
    assert [(message.subject, message.data) for message in messages] == [("deadline.due.lease.t", b"second")]
    await ack_sync(messages[0])

    async def empty() -> bool:
        return (await link.js.stream_info(DEADLINES)).state.messages == 0

    await eventually(empty)


async def test_a_timer_survives_kill_9_of_the_server(nats_server: NatsServer, link: NatsLink) -> None:
    await link.set_timer("admit", "t", datetime.now(UTC) + timedelta(milliseconds=500), b"x")
    nats_server.kill()
    nats_server.start()

    async def due() -> list[bytes]:
        pull = await link.pull(DEADLINES, sweep_consumer("admit"))
        return [message.data for message in await pull.fetch()]

    async def reached() -> list[bytes]:
        try:
            return await due()
        except TransportUnavailable:
            return []

    assert await eventually(reached) == [b"x"]


async def test_a_publish_that_failed_is_not_stored_later(nats_server: NatsServer, link: NatsLink) -> None:
    nats_server.kill()

    async def noticed() -> bool:
        return not link.is_connected

    await eventually(noticed)  # what goes into a dead socket is lost anyway; what is buffered comes back
    with pytest.raises(TransportUnavailable):
        await link.put(TASKS, "lost", b"x")
    nats_server.start()

    async def back() -> bool:
        try:
            await link.put(TASKS, "later", b"x")
        except TransportUnavailable:
            return False
        return True

    await eventually(back)
    assert await link.get(TASKS, "lost") is None


async def test_a_watch_sees_what_is_there_and_what_comes_across_a_restart(
    nats_server: NatsServer, link: NatsLink
) -> None:
    seen: list[Entry] = []
    await link.put(TASKS, "a", b"1")
    await link.put(TASKS, "a", b"2")
    synced = await link.watch(TASKS, seen.append)
    async with asyncio.timeout(5):
        await synced.wait()
    assert [(entry.key, entry.value) for entry in seen] == [("a", b"2")]
    nats_server.kill()
    nats_server.start()

    async def written() -> bool:
        try:
            await link.put(TASKS, "b", b"3")
        except TransportUnavailable:
            return False
        return True

    await eventually(written)

    async def heard() -> bool:
        return any(entry.key == "b" for entry in seen)

    await eventually(heard)


async def test_an_empty_bucket_is_synced_at_once(link: NatsLink) -> None:
    synced = await link.watch(TASKS, lambda _: None)
    async with asyncio.timeout(5):
        await synced.wait()


async def test_clocks_of_one_machine_agree(link: NatsLink) -> None:
    await link.require_clock()


async def test_nobody_there_is_a_clear_error() -> None:
    with pytest.raises(TransportUnavailable, match="warmlane up"):
        await NatsLink.connect(f"nats://127.0.0.1:{free_port()}", name="test", wait_s=0.2)
