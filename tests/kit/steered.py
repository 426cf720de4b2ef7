"""A worker whose pipeline the test steers: the real loop with its claims, leases and results, and no torch."""

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from contracts.memory import MemoryReading, SwapReceipt
from contracts.order import Policy
from contracts.progress import StepsDone
from contracts.settings import Windows
from contracts.tasks import GenerationTask
from contracts.topology import LANE_PREFIX, lane_stream
from lane_worker.forking.host_messages import WrittenVideo
from lane_worker.runtime.lane_hand import LaneHand
from lane_worker.runtime.leaving import drain
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.order import Order, OrderedRunner
from lane_worker.runtime.outcome import Result, Stopped, Succeeded
from lane_worker.runtime.scratch import Scratch
from ops.artifacts import Artifacts
from ops.ending import end
from ops.nats.link import NatsLink

CONTENT: Final = b"a finished video"
THUMBNAIL: Final = b"a frame of it"
MEMORY: Final = MemoryReading(rss_bytes=1)
RECEIPT: Final = SwapReceipt(slot="cpu-0", released_model="phr00t", loaded_model="anisora", how="unloaded", probe="rss")


class SteeredRunner:
    """A runner whose end the test decides. It does what a runner must: write the file, obey `stop`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.ran: list[GenerationTask] = []
        self.image: Path | None = None
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.stopped = asyncio.Event()
        self.result: Result | None = None
        self.report: Callable[[StepsDone], None] = lambda _: None

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        self.ran.append(task)
        self.image = image
        self.report = on_progress
        self.started.set()
        waits = [asyncio.ensure_future(self.may_end.wait()), asyncio.ensure_future(self.stopped.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        await end(*waits)
        if self.stopped.is_set():
            return Stopped()
        if self.result is not None:
            return self.result
        path = self._scratch / "video.mp4"
        path.write_bytes(CONTENT)
        video = WrittenVideo(
            bytes=len(CONTENT), sha256="0" * 64, width=96, height=64, frames=17, fps=16, thumbnail=THUMBNAIL
        )
        return Succeeded(
            path=path,
            video=video,
            memory=MEMORY,
            started_at=datetime.now(UTC),
            inference_s=0.1,
            encode_s=0.1,
            swap=RECEIPT,
        )

    def stop(self, task_id: str) -> None:
        self.stopped.set()


class Worker:
    """A work loop of anisora's lane, or of *stream*, which serves in the background; its runner and artifact store."""

    def __init__(
        self,
        link: NatsLink,
        windows: Windows,
        folder: Path,
        owner: str,
        *,
        stream: str = lane_stream("anisora"),
        runs: Callable[[Path], SteeredRunner] = SteeredRunner,
        store: Artifacts | None = None,
    ) -> None:
        """Without *store* the artifacts are in a folder."""
        scratch = Scratch(folder, slot="cpu-0", owner=owner)
        self.folder = scratch.folder
        self.artifacts = folder / "artifacts"
        self.runner = runs(self.folder)
        order = Order(Policy(), resident=lambda: stream.removeprefix(LANE_PREFIX).lower())
        self.loop = WorkLoop(
            link=link,
            artifacts=store or Artifacts.in_folder(self.artifacts),
            stream=stream,
            owner=owner,
            worker=f"worker-{owner}",
            windows=windows,
            runner=OrderedRunner(self.runner, order),
            scratch=scratch,
            on_busy=self._on_busy,
            source=LaneHand(link, stream, order=order),
        )
        self.idle = asyncio.Event()
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    def _on_busy(self, busy: bool) -> None:
        if not busy:
            self.idle.set()

    async def _serve(self) -> None:
        while not self._stop.is_set():
            await self.loop.serve_one(self._stop)

    async def drain(self, *, unanswered_s: float = math.inf) -> None:
        """Drains as a worker does when it is asked to stop; returns when the loop serves nothing any more."""
        self._stop.set()

        async def kill() -> None:
            self.runner.stopped.set()

        await drain(
            self._task,
            drain_s=600,
            leave=self.runner.stop,
            kill=kill,
            waits_for_server_s=self.loop.waits_for_server_s,
            unanswered_s=unanswered_s,
        )

    async def close(self) -> None:
        self._stop.set()
        await end(self._task)
        await self.loop.close()
