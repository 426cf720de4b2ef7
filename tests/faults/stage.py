"""A gateway and its server, and a degraded worker in this process whose pipeline hosts, or whose card, misbehave."""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import httpx
import pynvml
import pytest
import structlog

from contracts.lanes import SlotState
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, TaskStatus
from degraded_worker import worker as worker_module
from degraded_worker.worker import DegradedWorker
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host_messages import Fork
from lane_worker.forking.slot import lock_path, read_note
from lane_worker.residence.residence import Residence
from lane_worker.runtime import assembly
from ops.machine.memory import RssProbe, probe_for
from ops.machine.readings import MemoryProbe
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.shown_slots import lift
from tests.kit.degraded import leads, setup_of, shown
from tests.kit.fake_nvml import GIB, UUID, FakeNvml, fake_nvml
from tests.kit.gateway import GatewayProcess, System
from tests.kit.support import KEEP_S, ROGUE_HOST, eventually, fork_server_at, is_running, settings_file

# How the memory of the slot is read: resident set size, a card, a card without NVML, a card whose NVML fails from the
# start.
ProbeName = Literal["rss", "nvml", "missing", "failing"]
INIT_ERRORS: Final = {"missing": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "failing": pynvml.NVML_ERROR_UNKNOWN}
SMALL: Final = {"num_frames": 9, "width": 32, "height": 32}


class CountingForkServer(ForkServer):
    """Keeps every host that it forked, however the host was stopped, and knows which of them still run."""

    def __init__(self) -> None:
        super().__init__(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))
        self._forked: list[int] = []

    async def fork(self, request: Fork, pipe: Any, exit_writer: Any) -> int:
        pid = await super().fork(request, pipe, exit_writer)
        self._forked.append(pid)
        return pid

    @property
    def running(self) -> list[int]:
        return [pid for pid in self._forked if is_running(pid)]


class Stage:
    """One worker at a time serves; `serve` chooses it."""

    def __init__(self, system: System, catalog: Catalog, folder: Path, card: FakeNvml, lines: list[Any]) -> None:
        self.card = card
        self.slot = ""
        self._system, self._catalog, self._folder = system, catalog, folder
        self._lines = lines
        self._serving: tuple[ProbeName, asyncio.Task[None]] | None = None
        self._stop = asyncio.Event()
        self._forks = CountingForkServer()
        self._measures: MemoryProbe | None = None

    async def serve(self, probe: ProbeName, *, deadline_s: float) -> None:
        """Returns when a worker with *probe* leads, and has run a task of anisora if it can. The worker before it has
        left. The probe gives up after *deadline_s* where memory stays in use."""
        await self._serve(probe)
        if self._measures is not None:
            self._measures.deadline_s = deadline_s

    async def _serve(self, probe: ProbeName) -> None:
        if self._serving is not None and self._serving[0] == probe:
            return
        await self.leave()
        self.slot = f"cpu-{get_args(ProbeName).index(probe)}"
        self._stop, self._forks = asyncio.Event(), CountingForkServer()
        worker = self._worker(probe)
        self._serving = probe, asyncio.create_task(worker.run(self._stop))
        await leads(self._system.link, self.slot)
        if probe != "failing":
            assert (await self.ended(await self.submit("anisora"))).status is TaskStatus.DONE

    async def leave(self) -> None:
        """The worker leaves, and all its processes with it."""
        if self._serving is not None:
            self._stop.set()
            await asyncio.wait_for(self._serving[1], 60)
            self._serving = None
            assert self._forks.running == []

    def _worker(self, probe: ProbeName) -> DegradedWorker:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_module, "ForkServer", lambda: self._forks)
            # the hosts have no card: their slot is a CPU's, whatever its memory is read from
            patch.setattr(assembly, "probe_for", lambda *_: self._probe(probe))
            patch.setattr(assembly, "Residence", partial(Residence, after_kill_s=0.3))
            setup = setup_of(self._system.link, self._catalog, self._folder, self.slot, name=self.slot)
            return DegradedWorker(setup)

    def _probe(self, name: ProbeName) -> MemoryProbe | None:
        """The product's own probe, which reads more often here."""
        self.card.set(used_bytes=GIB, init_error=INIT_ERRORS.get(name, pynvml.NVML_SUCCESS))
        probe = RssProbe() if name == "rss" else probe_for(UUID)
        if probe is not None:
            probe.poll_s = 0.05
        self._measures = probe
        return probe

    async def submit(self, model: str, prompt: str = "a lighthouse") -> str:
        """The id of a task that the gateway accepted."""
        body = {"model": model, "prompt": prompt} | SMALL
        answer = await self._system.http.post("/generate", json=body, headers={"prefer": "respond-async"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def cancel(self, task_id: str) -> None:
        """Cancels the task, once it has made a step."""

        async def runs() -> bool:
            task, _ = await self._system.record(task_id)
            return task.progress is not None and task.progress.step > 0

        await eventually(runs)
        assert (await self._system.http.delete(f"/tasks/{task_id}")).status_code == 200

    async def ended(self, task_id: str) -> GenerationTask:
        """The record, once the task has ended and its worker has accounted for it."""

        async def look() -> GenerationTask | None:
            await self._system.http.get(f"/tasks/{task_id}?wait=30")
            task, _ = await self._system.record(task_id)
            return task if task.status.is_terminal else None

        task = await eventually(look, within_s=60)
        assert task is not None
        await eventually(lambda: asyncio.sleep(0, bool(self.cleanups(task_id)) or not task.attempt))
        return task

    async def no_place_is_taken(self) -> None:
        """Returns when the degraded queue is empty, long before its messages would expire."""

        async def look() -> bool:
            return await self._system.depth() == 0

        await eventually(look, within_s=8)

    def events(self, task_id: str) -> list[str]:
        """The events that the worker logged of the task, in order."""
        return [line["event"] for line in self._lines if line.get("task_id") == task_id]

    @property
    def last_swap(self) -> dict[str, Any]:
        """The receipt of the last swap, as it stands in the log."""
        return self._logged("swap")[-1]

    def cleanups(self, task_id: str) -> list[tuple[int, str]]:
        """The memory lines of the task: attempt and outcome."""
        lines = self._logged("memory_after_cleanup", task_id=task_id)
        return [(line["attempt"], line["outcome"]) for line in lines]

    def _logged(self, event: str, **fields: str) -> list[dict[str, Any]]:
        sought = {"event": event, **fields}
        return [line for line in self._lines if sought.items() <= line.items()]

    async def slot_becomes(self, state: SlotState) -> None:
        """Returns once KV `slots` shows the slot in *state*, and no host runs but the one that holds its lock. On a
        quarantined slot no host may run."""
        lock = lock_path(self._folder / "locks", self.slot)

        async def look() -> tuple[SlotState | None, list[int], bool]:
            now = await shown(self._system.link, self.slot)
            return None if now is None else now.state, self._forks.running, is_locked(lock)

        async def settled() -> bool:
            note = read_note(lock)
            hosts = [] if state is SlotState.QUARANTINED or note is None else [note.pid]
            return await look() == (state, hosts, bool(hosts))

        try:
            await eventually(settled)
        except AssertionError:
            raise AssertionError(f"expected {state}; state, hosts and lock are {await look()}") from None

    async def memory_is_asked_for(self) -> None:
        """Returns once the worker waits for a driver that does not report the memory, and has no host."""

        async def look() -> bool:
            logged = [line for line in self._lines if line["event"] in {"memory_not_read_yet", "serves"}]
            return bool(logged) and logged[-1]["event"] == "memory_not_read_yet" and not self._forks.running

        await eventually(look)

    async def lift(self) -> None:
        """As `warmlane slots lift`."""
        await lift(self._system.link, self.slot, now=datetime.now(UTC))


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """A server and a gateway, with models that misbehave when they are loaded. No worker serves yet."""
    gateway = GatewayProcess(folder)
    gateway.nats.start()
    try:
        settings = settings_with_faults(folder)
        catalog = load_settings(settings).catalog("tiny")
        link = await NatsLink.connect(gateway.nats.url, name="test")
        await provision(link, wanted(catalog, keep_s=KEEP_S))
        await asyncio.to_thread(gateway.start, "--settings", str(settings), "--keep", f"{KEEP_S:g}s")
        with (
            pytest.MonkeyPatch.context() as patch,
            fake_nvml(folder, patch) as card,
            structlog.testing.capture_logs() as lines,
        ):
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
                stage = Stage(System(gateway, link, http), catalog, folder, card, lines)
                yield stage
                await stage.leave()
        await link.close()
    finally:
        await asyncio.to_thread(gateway.stop)
        gateway.nats.stop()


def settings_with_faults(folder: Path) -> Path:
    """Settings with short waits, and editions of phr00t whose folder names are misdeeds (`tests/kit/rogue_host.py`)."""
    path = settings_file(folder, wait_limit_s=12.0, reconnect_grace_s=0.5)
    settings = json.loads(path.read_text())
    add = partial(_add, settings["models"])
    add("impatient", step_s=2.0)
    add("hangs", folder="hang-in-load", load_s=1.0)
    add("too_large", folder="oom-in-load")
    add("too_large_once", folder="oom-in-load-in-a-used-host")
    path.write_text(json.dumps(settings))
    return path


def _add(models: MutableMapping[str, Any], name: str, *, folder: str = "tiny-phr00t", **timeouts_s: float) -> None:
    model = deepcopy(models["phr00t"])
    tiny = model["profiles"]["tiny"]
    tiny["checkpoint"]["folder"] = folder
    tiny["timeouts"] |= timeouts_s
    models[name] = model | {"aliases": []}
