"""The traps of design §10 that `ops/nats/link.py` closes, against a real server."""

import asyncio
import contextlib
import re
from datetime import datetime, timedelta

import pytest
import uvloop
from structlog.testing import capture_logs

from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, TASKS, work_subject
from ops.nats.entry import Entry
from ops.nats.errors import StreamFull, TransportUnavailable, UnusableServer, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.link_health import reporting_on
from ops.nats.server_clock import MAX_SKEW_S
from tests.kit.behind import client_of, js_of
from tests.kit.measured import Measured
from tests.kit.support import BOUND_S, NatsServer, as_admin, eventually, free_port


async def test_compare_and_set(link: NatsLink) -> None:
    first = await link.entries.create(TASKS, "a", b"1")
    with pytest.raises(WrongRevision):
        await link.entries.create(TASKS, "a", b"2")
    second = await link.entries.update(TASKS, "a", b"3", revision=first)
    with pytest.raises(WrongRevision):
        await link.entries.update(TASKS, "a", b"4", revision=first)
    entry = await link.entries.get(TASKS, "a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"3", second)


async def test_a_deleted_key_has_no_value(link: NatsLink) -> None:
    assert await link.entries.get(TASKS, "a") is None
    revision = await link.entries.put(TASKS, "a", b"1")
    with pytest.raises(WrongRevision):
        await link.entries.delete(TASKS, "a", revision=revision + 1)
    await link.entries.delete(TASKS, "a", revision=revision)
    entry = await link.entries.get(TASKS, "a")
    assert entry is not None
    assert entry.value is None


async def test_the_degraded_queue_takes_25_and_refuses_the_26th(link: NatsLink) -> None:
    results = await asyncio.gather(
        *(link.messages.publish(work_subject("degraded", "anisora", f"t{n}"), b"x") for n in range(40)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, StreamFull)]
    assert len(results) - len(refused) == DEGRADED_MAX_MSGS
    assert len(refused) == 15
    assert (await js_of(link).stream_info(DEGRADED)).state.messages == DEGRADED_MAX_MSGS


async def test_the_same_message_is_stored_once(link: NatsLink) -> None:
    subject = work_subject("lane", "anisora", "t")
    first = await link.messages.publish(subject, b"first", message_id="t.0")
    again = await link.messages.publish(subject, b"again", message_id="t.0")
    assert (first.duplicate, again.duplicate, again.seq) == (False, True, first.seq)
    stored = await link.messages.get("LANE_ANISORA", again.seq)
    assert stored is not None
    assert stored.data == b"first"


async def test_a_publish_that_failed_is_not_stored_later(nats_server: NatsServer, link: NatsLink) -> None:
    nats_server.kill()

    async def noticed() -> bool:
        return not link.connection.is_connected

    await eventually(noticed)  # data in a dead socket is lost anyway, but buffered data would be sent later
    with pytest.raises(TransportUnavailable):
        await link.entries.put(TASKS, "lost", b"x")
    for _ in range(100):  # nothing else piles up either
        await (await client_of(link).subscribe("any")).unsubscribe()
    assert client_of(link).pending_data_size == 0
    nats_server.start()

    async def back() -> bool:
        try:
            await link.entries.put(TASKS, "later", b"x")
        except TransportUnavailable:
            return False
        return True

    await eventually(back)
    assert await link.entries.get(TASKS, "lost") is None


async def test_a_watch_sees_what_is_there_and_what_comes_across_a_restart(
    nats_server: NatsServer, link: NatsLink
) -> None:
    seen: list[Entry] = []
    await link.entries.put(TASKS, "a", b"1")
    await link.entries.put(TASKS, "a", b"2")
    synced = await link.watches.start(TASKS, seen.append)
    async with asyncio.timeout(60):
        await synced.wait()
    assert [(entry.key, entry.value) for entry in seen] == [("a", b"2")]
    nats_server.kill()
    nats_server.start()

    async def written() -> bool:
        try:
            await link.entries.put(TASKS, "b", b"3")
        except TransportUnavailable:
            return False
        return True

    await eventually(written)

    async def heard() -> bool:
        return any(entry.key == "b" for entry in seen)

    await eventually(heard)


async def test_an_empty_bucket_is_synced_at_once(link: NatsLink) -> None:
    synced = await link.watches.start(TASKS, lambda _: None)
    async with asyncio.timeout(60):
        await synced.wait()


async def test_clocks_of_one_machine_agree(link: NatsLink) -> None:
    await link.clock.require()


async def test_nobody_there_is_a_clear_error() -> None:
    with pytest.raises(TransportUnavailable, match="warmlane up"):
        await NatsLink.connect(f"nats://127.0.0.1:{free_port()}", name="test", wait_s=0.2)


class ServerAhead:
    """A relay to a server whose clock seems *ahead_s* ahead: the relay shifts every time in the server's messages."""

    STAMP = re.compile(rb'"ts":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)')

    def __init__(self, server: NatsServer, *, ahead_s: int) -> None:
        self._server, self._ahead = server, timedelta(seconds=ahead_s)
        self.url = ""

    async def __aenter__(self) -> "ServerAhead":
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        self.url = as_admin(f"nats://127.0.0.1:{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._copy(reader, to_server), self._copy(from_server, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(self.STAMP.sub(self._moved, data))
            await target.drain()
        target.close()

    def _moved(self, match: re.Match[bytes]) -> bytes:
        moved = datetime.fromisoformat(match[1].decode()) + self._ahead
        return b'"ts":"' + moved.isoformat(timespec="seconds").encode()


async def test_a_clock_that_drifts_away_is_reported(
    link: NatsLink, nats_server: NatsServer, measured: Measured
) -> None:
    """With such a skew at its start, the process would refuse. Later the skew shows in the metric and in the log."""
    async with reporting_on(link, "lane"):
        await eventually(lambda: _is_known(link))
        assert abs(await _reported(measured, "warmlane.clock.skew")) < MAX_SKEW_S
    async with ServerAhead(nats_server, ahead_s=3) as ahead:
        skewed = await NatsLink.connect(ahead.url, name="test")
        with capture_logs() as logged:
            async with reporting_on(skewed, "lane"):
                await eventually(lambda: _is_known(skewed))
                assert await _reported(measured, "warmlane.clock.skew") > 3 - MAX_SKEW_S
                assert await _reported(measured, "warmlane.nats.connected") == 1
        assert [line["limit_s"] for line in logged if line["event"] == "clock_skewed"] == [MAX_SKEW_S]
        with pytest.raises(UnusableServer, match="behind the nats-server"):
            await skewed.clock.require()
        await skewed.close()
    # a link that reports nothing counts as not connected
    assert await _reported(measured, "warmlane.nats.connected") == 0


async def _reported(measured: Measured, name: str) -> float:
    # this event loop collects the figure, so only another thread may wait for it
    return await asyncio.to_thread(measured.value, name)


async def _is_known(link: NatsLink) -> bool:
    return link.clock.skew_s is not None


@pytest.mark.parametrize("reconnects", [False, True])
async def test_what_was_reported_as_failed_is_not_sent_later(
    nats_server: NatsServer, link: NatsLink, reconnects: bool
) -> None:
    """A server that stalls counts as connected for a while. Data that the kernel accepted by then cannot be taken
    back."""
    payload, count = bytes(200_000), 200
    await link.entries.put(TASKS, "before", b"x")
    nats_server.pause()
    results = await asyncio.gather(
        *(link.entries.put(TASKS, f"stalled-{n}", payload) for n in range(count)), return_exceptions=True
    )
    assert {type(result) for result in results} == {TransportUnavailable}
    assert client_of(link).pending_data_size < len(payload)  # a PING or so

    async def has_noticed() -> bool:
        return link.connection.is_connected is not reconnects

    await eventually(has_noticed)
    nats_server.go_on()

    async def answers() -> bool:
        try:
            await link.entries.put(TASKS, "after", b"x")
        except TransportUnavailable:
            return False
        return True

    await eventually(answers)
    stored = (await js_of(link).stream_info("KV_tasks")).state.messages
    assert stored < count / 2, "of 40 MB, a kernel takes some"


async def test_a_link_to_a_server_that_stands_still_is_closed_all_the_same(nats_server: NatsServer) -> None:
    """The link drops what the kernel no longer accepts: a process that ends does not wait for a frozen server."""
    link = await NatsLink.connect(nats_server.url, name="test")
    nats_server.pause()
    try:
        await asyncio.gather(
            *(link.entries.put(TASKS, f"stalled-{n}", bytes(200_000)) for n in range(200)), return_exceptions=True
        )
        client_of(link).publish_empty("last")
        await asyncio.wait_for(link.close(), BOUND_S)
    finally:
        nats_server.go_on()


def test_a_connection_that_uvloop_has_closed_is_made_anew(nats_server: NatsServer) -> None:
    """When the server is killed, uvloop closes the connection in one of several processes: no socket is left that the
    link could give up."""

    async def run() -> None:
        link = await NatsLink.connect(nats_server.url, name="test")
        writer = getattr(client_of(link)._transport, "_io_writer")  # noqa: B009  # nats-py's own, which has no type
        writer.transport.abort()

        async def is_back() -> bool:
            return link.connection.cuts == 1 and link.connection.unbroken_s() > 0

        await eventually(is_back)
        await link.close()

    uvloop.run(run())
