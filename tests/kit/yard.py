"""Residences of a slot for tests: real hosts with tiny pipelines, which behave or misbehave as the test asks."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from contracts.lanes import SlotState
from contracts.memory import SwapReceipt
from contracts.settings import Catalog, ModelEntry, load_settings
from contracts.tasks import GenerationTask
from lane_worker.forking.fork_server import FORK_SERVER, ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate
from lane_worker.residence.residence import Residence
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.outcome import Result
from ops.machine.memory import RssProbe
from ops.machine.nvml import NvmlProbe
from ops.machine.readings import MemoryProbe
from tests.bench.peers.heavy import parameters_of
from tests.kit.fake_nvml import UUID
from tests.kit.measured import Measured
from tests.kit.records import pending_task
from tests.kit.support import ROGUE_HOST, eventually, fork_server_at, shared_folder

CATALOG: Final[Catalog] = load_settings().catalog("tiny")
SLOT: Final = "cpu-0"
PROMPT: Final = "a lighthouse"


class Slot:
    """A residence on a slot of the yard, and the runner that uses it."""

    def __init__(self, residence: Residence, folder: Path) -> None:
        self.residence = residence
        self.host = residence.host
        self.folder = folder
        self.runner = HostRunner(residence=residence, models=CATALOG.models, slot=SLOT, scratch=folder)

    async def ready(self, model: str) -> SwapReceipt:
        return (await self.residence.ready(model)).receipt

    @property
    def model(self) -> str | None:
        resident = self.residence.resident
        return None if resident is None else resident.model

    async def generate(self, entry: ModelEntry, prompt: str = PROMPT) -> None:
        request = Generate("task", 1, parameters_of(entry, prompt), str(self.folder / "video.mp4"))
        outcome = await self.host.generate(request, lambda _: None)
        assert isinstance(outcome, Finished), outcome

    async def run(self, model: str, prompt: str = PROMPT) -> Result:
        return await self.runner.run(task_of(model, prompt), None, lambda _: None)


class Yard:
    """The fork servers, one that behaves and one that does not, and the folder of the tiny pipelines.

    Both are forks of servers that all tests of a run share, as they share the folder: a yard costs no import of torch.
    """

    def __init__(self) -> None:
        self.folder = shared_folder() / "tiny-models"
        self.folder.mkdir(exist_ok=True)
        self.good = ForkServer(shared=fork_server_at(FORK_SERVER))
        self.rogue = ForkServer(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))
        self._open: list[Residence] = []

    def slot(
        self,
        folder: Path,
        *,
        probe: MemoryProbe | None,
        slot: str = SLOT,
        models: dict[str, ModelEntry] | None = None,
        models_dir: Path | None = None,
        rogue: bool = False,
        role: Any = "degraded",
        on_state: Callable[[SlotState, str | None, str], None] = lambda *_: None,
    ) -> Slot:
        """A residence with the lock folder *folder*; not opened yet."""
        host = Host(
            slot=slot,
            lock_dir=folder,
            models_dir=models_dir or self.folder,
            role=role,
            lock_wait_s=0.3,
            fork_server=self.rogue if rogue else self.good,
        )
        residence = Residence(
            host=host,
            slot=slot,
            models=models or dict(CATALOG.models),
            probe=probe,
            on_state=on_state,
            after_kill_s=0.5,
        )
        self._open.append(residence)
        return Slot(residence, folder)

    async def close_slots(self) -> None:
        while self._open:
            await self._open.pop().close()


@asynccontextmanager
async def open_yard() -> AsyncIterator[Yard]:
    """A yard whose fork servers run while the block does."""
    yard = Yard()
    await yard.good.start()
    await yard.rogue.start()
    try:
        yield yard
    finally:
        await yard.good.close()
        await yard.rogue.close()


def task_of(model: str, prompt: str = PROMPT) -> GenerationTask:
    now = datetime.now(UTC)
    parameters = parameters_of(CATALOG.models[model], prompt)
    task = pending_task(created_at=now, queued_at=now, deadline_at=now + timedelta(seconds=30))
    return replace(task, model=model, parameters=parameters, attempt=1)


def changed(model: str, folder: str | None = None, **timeouts: float) -> dict[str, ModelEntry]:
    """All models; *model* has other timeouts, or its checkpoint in another folder, whose name may be a misdeed."""
    entry = CATALOG.models[model]
    entry = replace(entry, timeouts=replace(entry.timeouts, **timeouts))
    if folder is not None:
        entry = replace(entry, checkpoint=replace(entry.checkpoint, folder=folder))
    return {**CATALOG.models, model: entry}


def rss() -> RssProbe:
    """The probe of a CPU slot; it gives up sooner than in production."""
    probe = RssProbe()
    probe.deadline_s = 0.5
    return probe


def nvml(*, deadline_s: float = 0.3) -> NvmlProbe:
    """The probe of a card; it looks more often than in production, and gives up sooner.

    Where a test waits for memory to fall, give the probe time: on a busy machine it may read seldom.
    """
    probe = NvmlProbe(UUID)
    probe.poll_s, probe.deadline_s = 0.02, deadline_s
    return probe


def figures(receipt: SwapReceipt) -> tuple[int, int, int, int]:
    """The bytes base, before, after and tolerance of *receipt*, which has all four."""
    assert receipt.base_bytes is not None
    assert receipt.before_bytes is not None
    assert receipt.after_bytes is not None
    assert receipt.tolerance_bytes is not None
    return receipt.base_bytes, receipt.before_bytes, receipt.after_bytes, receipt.tolerance_bytes


def released(measured: Measured, outcome: str) -> float:
    """How many releases this process has counted with *outcome*."""
    return measured.value("warmlane.releases", outcome=outcome)


async def kill(host: Host) -> None:
    """kill -9; returns when the worker has noticed."""
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, host.pid is None))
