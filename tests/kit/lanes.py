"""Lanes for tests: one in this process, as a user starts one, and a link to the server that can be cut."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.settings import Catalog
from contracts.topology import LANES
from lane_worker.forking import host as host_module
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.slot import lock_path, read_note
from lane_worker.runtime.assembly import Setup
from lane_worker.worker import LaneWorker
from ops.artifacts import Artifacts
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.kit.support import BOUND_S, ROGUE_HOST, eventually, fork_server_at
from tests.kit.workers import WorkerProcess


class SharedForkServer(ForkServer):
    """One fork server for several lanes of a test, which saves each an import of torch. Its hosts misbehave where the
    prompt says so."""

    def __init__(self) -> None:
        super().__init__(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))

    async def close(self) -> None:
        """Does nothing: the fork server outlives the lane that leaves."""

    async def close_at_last(self) -> None:
        await super().close()


class Lane:
    """A lane of phr00t that runs in the background of this process until `leave`."""

    def __init__(
        self,
        link: NatsLink,
        catalog: Catalog,
        folder: Path,
        *,
        number: int = 0,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.name, self.slot = f"phr00t-{number}", f"cpu-{number}"
        self._link = link
        self._locks = folder / "locks"
        self._stop = asyncio.Event()
        with pytest.MonkeyPatch.context() as patch:
            if fork_server is not None:
                patch.setattr(host_module, "ForkServer", lambda: fork_server)
            setup = Setup(
                link,
                Artifacts.in_folder(folder / "artifacts"),
                catalog,
                name=self.name,
                slot=self.slot,
                data_dir=folder,
            )
            self._worker = LaneWorker(setup, model=catalog.models["phr00t"], started_at=datetime.now(UTC))
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._worker.run(self._stop))

    @property
    def host(self) -> int:
        """The process that holds the slot."""
        note = read_note(lock_path(self._locks, self.slot))
        assert note is not None
        return note.pid

    async def becomes(
        self, state: LaneState, *, when: Callable[[LaneHeartbeat], bool] = lambda _: True, within_s: float = BOUND_S
    ) -> LaneHeartbeat:
        """The first heartbeat seen with *state* for which *when* is true."""

        async def look() -> LaneHeartbeat | None:
            heartbeat = await heartbeat_of(self._link, self.name)
            return heartbeat if heartbeat is not None and heartbeat.state is state and when(heartbeat) else None

        heartbeat = await eventually(look, within_s=within_s)
        assert heartbeat is not None
        return heartbeat

    async def ended(self) -> None:
        """Waits until the lane ends by itself; raises what ended it."""
        assert self._running is not None
        await self._running

    async def leave(self) -> None:
        self._stop.set()
        if self._running is not None:
            await self._running


async def heartbeat_of(link: NatsLink, name: str) -> LaneHeartbeat | None:
    """The last report of the lane *name*."""
    entry = await link.entries.get(LANES, f"{name.partition('-')[0]}.{name}")
    return None if entry is None or entry.value is None else msgspec.json.decode(entry.value, type=LaneHeartbeat)


class StateLog:
    """Snapshots, one after each report of a lane, with the last report of every lane. They are in the order in which
    the server stored the reports."""

    def __init__(self) -> None:
        self._now: dict[str, LaneHeartbeat] = {}
        self.seen: list[dict[str, LaneHeartbeat]] = []

    async def start(self, link: NatsLink) -> None:
        await (await link.watches.start(LANES, self._on_entry)).wait()

    def states(self, name: str) -> list[LaneState]:
        """The states of one lane, each change once."""
        reported = [moment[name].state for moment in self.seen if name in moment]
        return [state for state, before in zip(reported, [None, *reported], strict=False) if state is not before]

    async def reports(
        self, name: str, state: LaneState, *, when: Callable[[LaneHeartbeat], bool] = lambda _: True, since: int = 0
    ) -> LaneHeartbeat:
        """The first report of the lane *name* with *state* for which *when* is true, from snapshot number *since* on.
        The lane may have reported another state since."""

        async def look() -> LaneHeartbeat | None:
            reports = (moment[name] for moment in self.seen[since:] if name in moment)
            return next((each for each in reports if each.state is state and when(each)), None)

        found = await eventually(look)
        assert found is not None
        return found

    def _on_entry(self, entry: Entry) -> None:
        name = entry.key.partition(".")[2]
        if entry.value is None:
            self._now.pop(name, None)
        else:
            self._now[name] = msgspec.json.decode(entry.value, type=LaneHeartbeat)
        self.seen.append(dict(self._now))


class LaneProcess(WorkerProcess):
    """`warmlane lane`."""

    def __init__(
        self,
        nats_url: str,
        data_dir: Path,
        *options: str,
        model: str = "phr00t",
        number: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        name, slot = f"{model}-{number}", f"cpu-{number + 1}"
        super().__init__(
            "lane", nats_url, data_dir, "--model", model, *options, name=name, slot=slot, **(environment or {})
        )


class CutWire:
    """A TCP proxy. While it is cut, nothing passes and neither side notices: what was sent waits, as in a partition."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """The URL that leads through it."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._passes.clear()

    def mend(self) -> None:
        self._passes.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await source.read(65536):
                await self._passes.wait()
                sink.write(content)
                await sink.drain()
            await self._passes.wait()  # the end of a connection must not pass either
        sink.close()
