"""A watch delivers what its bucket holds, whatever happens to the consumer, to the server, or to its store."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contracts.settings import Catalog
from contracts.topology import CONTROL, TASKS, bucket_stream
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable
from ops.nats.following import Followed
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.watch import Watch
from tests.kit.behind import js_of
from tests.kit.measured import Measured
from tests.kit.support import KEEP_S, NatsServer, eventually


class Reader:
    """Keeps a bucket in memory as boards do. A small bucket forgets by differences, a large one forgets the keys that a
    new reading did not deliver."""

    def __init__(self, *, is_large: bool) -> None:
        self.held: dict[str, tuple[bytes, int]] = {}
        self._is_large = is_large
        self._unconfirmed: set[str] = set()
        self.watch: Watch

    async def start(self, link: NatsLink, bucket: str) -> None:
        if self._is_large:
            self.watch = await link.watches.start(bucket, self._on_entry, on_again=self._again, on_whole=self._whole)
        else:
            self.watch = await link.watches.start(bucket, self._on_entry)
        await self.watch.wait()

    def _on_entry(self, entry: Entry) -> None:
        self._unconfirmed.discard(entry.key)
        if entry.value is None:
            self.held.pop(entry.key, None)
        else:
            self.held[entry.key] = entry.value, entry.revision

    def _again(self) -> None:
        self._unconfirmed = set(self.held)

    def _whole(self) -> None:
        for key in self._unconfirmed:
            del self.held[key]


async def put(link: NatsLink, bucket: str, key: str, value: bytes) -> int:
    """Stores *value*, as soon as the server is back."""

    async def stored() -> int | None:
        try:
            return await link.entries.put(bucket, key, value)
        except TransportUnavailable:
            return None

    revision = await eventually(stored)
    assert revision is not None
    return revision


async def went_back(measured: Measured) -> float:
    return await asyncio.to_thread(measured.value, "warmlane.streams.went_back", bucket=TASKS)


async def holds(reader: Reader, expected: dict[str, tuple[bytes, int]]) -> None:
    async def is_delivered() -> bool:
        return reader.held == expected and reader.watch.age_s() == 0

    await eventually(is_delivered)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("written_since", [0, 3])
async def test_what_a_power_cut_lost_is_forgotten_and_later_writes_are_delivered(
    nats_server: NatsServer, link: NatsLink, tmp_path: Path, measured: Measured, is_large: bool, written_since: int
) -> None:
    """This holds even if others have written as many messages before the watch is back. Its own writes come later."""
    reader, before = Reader(is_large=is_large), await went_back(measured)
    await reader.start(link, TASKS)
    kept = await link.entries.put(TASKS, "kept", b"1")
    ended = await link.entries.put(TASKS, "ended", b"pending")
    nats_server.copy_store(tmp_path / "copy")
    await link.entries.put(TASKS, "ended", b"done")
    await link.entries.put(TASKS, "lost", b"1")
    last = await link.entries.put(TASKS, "lost", b"2")
    await holds(reader, {"kept": (b"1", kept), "ended": (b"done", ended + 1), "lost": (b"2", last)})
    with capture_logs() as logged:
        nats_server.lose_tail(tmp_path / "copy")
        other = await NatsLink.connect(nats_server.url, name="other")
        since = {f"new-{n}": (b"n", await other.entries.put(TASKS, f"new-{n}", b"n")) for n in range(written_since)}
        since["later"] = b"l", await put(link, TASKS, "later", b"l")
        await holds(reader, {"kept": (b"1", kept), "ended": (b"pending", ended), **since})
        await other.close()
    assert [line["bucket"] for line in logged if line["event"] == "stream_went_back"] == [TASKS]
    assert await went_back(measured) == before + 1


async def _made_anew(link: NatsLink, catalog: Catalog) -> None:
    await js_of(link).delete_stream(bucket_stream(TASKS))
    await provision(link, wanted(catalog, keep_s=KEEP_S))


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_message_in_flight_at_the_break_is_not_taken_for_the_end_of_the_bucket(
    link: NatsLink, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """The client passes the message on after the break, before the watch has looked, and the message claims to be the
    last. If the watch believed that, its new reading would never be complete, and it would deliver nothing any more."""
    brought: list[Followed] = []
    receive = Watch._receive

    def noted(self: Watch, message: Followed) -> None:
        brought.append(message)
        receive(self, message)

    monkeypatch.setattr(Watch, "_receive", noted)
    reader = Reader(is_large=is_large)
    await reader.start(link, TASKS)
    last = await link.entries.put(TASKS, "a", b"1")
    await holds(reader, {"a": (b"1", last)})
    await _made_anew(link, catalog)
    first = await link.entries.put(TASKS, "b", b"2")
    reader.watch.on_lost()
    reader.watch.on_back()
    reader.watch._receive(brought[-1])
    await holds(reader, {"b": (b"2", first)})
    second = await link.entries.put(TASKS, "c", b"3")
    await holds(reader, {"b": (b"2", first), "c": (b"3", second)})


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_bucket_that_was_made_anew(link: NatsLink, catalog: Catalog, is_large: bool) -> None:
    reader = Reader(is_large=is_large)
    await reader.start(link, TASKS)
    for key in "abc":
        await link.entries.put(TASKS, key, b"1")
    await _made_anew(link, catalog)
    revision = await link.entries.put(TASKS, "d", b"2")
    await holds(reader, {"d": (b"2", revision)})


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_bucket_that_was_purged(link: NatsLink, is_large: bool) -> None:
    """The server announces no purge: a comparison finds it, even if others have written since."""
    reader = Reader(is_large=is_large)
    await reader.start(link, TASKS)
    first = {key: (b"1", await link.entries.put(TASKS, key, b"1")) for key in "abc"}
    await holds(reader, first)
    await link.watches.look()
    await holds(reader, first)
    await js_of(link).purge_stream(bucket_stream(TASKS))
    revision = await link.entries.put(TASKS, "c", b"2")
    await holds(reader, {**first, "c": (b"2", revision)})
    await link.watches.look()
    await holds(reader, {"c": (b"2", revision)})


async def test_history_is_delivered_again_in_its_order(link: NatsLink, catalog: Catalog) -> None:
    delivered: list[bytes | None] = []
    watch = await link.watches.start(
        CONTROL, lambda entry: delivered.append(entry.value), history=True, on_again=delivered.clear
    )
    await watch.wait()
    for value in (b"1", b"2", b"3"):
        await link.entries.put(CONTROL, "lanes.a", value)
    await js_of(link).delete_stream(bucket_stream(CONTROL))
    await provision(link, wanted(catalog, keep_s=KEEP_S))
    for value in (b"4", b"5"):
        await link.entries.put(CONTROL, "lanes.b", value)

    async def is_delivered() -> bool:
        return delivered == [None, b"4", b"5"]  # first the removed entry, then the existing ones

    await eventually(is_delivered)


async def _consumer_deleted(link: NatsLink, _: NatsServer) -> None:
    for consumer in await js_of(link).consumers_info(bucket_stream(TASKS)):
        await js_of(link).delete_consumer(bucket_stream(TASKS), consumer.name)


async def _killed(_: NatsLink, server: NatsServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("interrupted", [_consumer_deleted, _killed])
async def test_a_watch_that_was_interrupted_goes_on_where_it_was(
    nats_server: NatsServer, link: NatsLink, interrupted: Callable[[NatsLink, NatsServer], object]
) -> None:
    """It delivers nothing twice, and misses nothing."""
    delivered: list[tuple[str, bytes | None]] = []
    watch = await link.watches.start(TASKS, lambda entry: delivered.append((entry.key, entry.value)), history=True)
    await watch.wait()
    for n in range(3):
        await link.entries.put(TASKS, f"before-{n}", b"1")
    with capture_logs() as logged:
        await interrupted(link, nats_server)  # type: ignore[misc]
        await put(link, TASKS, "after", b"1")

        async def is_delivered() -> bool:
            return ("after", b"1") in delivered and watch.age_s() == 0

        await eventually(is_delivered)
    assert [key for key, _ in delivered] == ["before-0", "before-1", "before-2", "after"]
    assert "stream_went_back" not in [line["event"] for line in logged]


async def test_the_age_of_a_watch_is_how_long_its_server_has_been_silent(
    nats_server: NatsServer, link: NatsLink
) -> None:
    """A server that stalls counts as connected."""
    watch = await link.watches.start(TASKS, lambda _: None)
    await watch.wait()
    assert watch.age_s() == 0
    nats_server.pause()

    async def is_old() -> bool:
        return watch.age_s() > 0

    await eventually(is_old)
    assert link.connection.is_connected
    nats_server.go_on()

    async def is_new() -> bool:
        return watch.age_s() == 0

    await eventually(is_new)
