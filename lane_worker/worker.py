"""A lane: one model, kept warm on a card of its own, serving the stream of its model (FR-011, FR-019)."""

import asyncio
import contextlib
import shutil
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from contracts.lanes import LaneState
from contracts.settings import IntegerField, ModelEntry, Windows
from contracts.tasks import GenerationParameters, MemoryReading
from contracts.topology import lane_stream
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.host import Host, HostLost, LoadFailed
from lane_worker.runtime.host_messages import Failed, Generate, Ready
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.memory_line import log_memory
from ops.artifacts import Artifacts
from ops.ending import end
from ops.nats_link import NatsLink

WARMUP_TASK: Final = "warmup"
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
SCRATCH_KEPT_S: Final = 3_600.0
# After the drain's bound, how long the task in hand may take to stop and to give its lease back.
LEAVE_S: Final = 15.0

log = structlog.get_logger("lane")


class LaneWorker:
    """One lane process: a supervisor without torch, and a pipeline host child that holds the model."""

    def __init__(
        self,
        *,
        link: NatsLink,
        artifacts: Artifacts,
        model: ModelEntry,
        windows: Windows,
        name: str,
        slot: str,
        data_dir: Path,
        step_seconds: float,
        started_at: datetime,
    ) -> None:
        self._model = model
        self._windows = windows
        self._slot = slot
        self._owner = uuid.uuid4().hex
        # a folder of this process alone: the one that it replaces may still be finishing its task
        self._scratch_root = data_dir / "scratch" / slot
        self._scratch = self._scratch_root / self._owner
        self._host = Host(
            slot=slot,
            lock_dir=data_dir / "locks",
            model=model,
            models_dir=data_dir / "models",
            step_seconds=step_seconds,
        )
        self._heartbeat = Heartbeat(
            link,
            model=model.name,
            worker=name,
            slot=slot,
            interval_s=windows.heartbeat_s,
            health_age_s=lambda: self._host.health_age_s if self._host.pid is not None else 0.0,
            started_at=started_at,
        )
        self._runner = HostRunner(
            host=self._host, slot=slot, scratch=self._scratch, idle_memory=MemoryReading(rss_bytes=0)
        )
        self._loop = WorkLoop(
            link=link,
            artifacts=artifacts,
            stream=lane_stream(model.name),
            owner=self._owner,
            worker=name,
            windows=windows,
            runner=self._runner,
            scratch=self._scratch,
            on_busy=self._on_busy,
        )
        self._draining = False

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until *stop*; then finishes the task in hand within `windows.drain_s`, releases and leaves.

        Raises SlotTaken when another process holds the card, HostLost when its host does not even start.
        """
        self._scratch.mkdir(parents=True)
        beating = asyncio.create_task(self._heartbeat.run())
        serving = asyncio.create_task(self._serve(stop))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopped, beating}, return_when=asyncio.FIRST_COMPLETED)
            if beating.done():
                await beating  # a lane that cannot be heard of must not look warm: fail, and be started again
            if not serving.done():
                await self._drain(serving)
            await serving
        finally:
            await end(serving, stopped, beating)
            await self._loop.close()
            await self._host.close()
            await self._heartbeat.leave()
            shutil.rmtree(self._scratch, ignore_errors=True)
            log.info("lane_left")

    async def _drain(self, serving: asyncio.Task[None]) -> None:
        self._draining = True
        self._heartbeat.set(LaneState.DRAINING)
        done, _ = await asyncio.wait({serving}, timeout=self._windows.drain_s)
        if not done:
            log.warning("drain_too_long", after_s=self._windows.drain_s)
            self._runner.leave("the worker is leaving")
            done, _ = await asyncio.wait({serving}, timeout=LEAVE_S)
        if not done:
            # the lease runs out, and the sweeper gives the task to another worker
            log.error("drain_abandoned", after_s=self._windows.drain_s + LEAVE_S)
            serving.cancel()

    async def _serve(self, stop: asyncio.Event) -> None:
        wait_s = RESTART_FIRST_S
        while not stop.is_set():
            try:
                await self._warm_up()
            except (HostLost, LoadFailed) as error:
                log.error("not_warm", error=str(error), again_in_s=wait_s)
                self._heartbeat.set(LaneState.UNHEALTHY, str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await stop.wait()
                wait_s = min(RESTART_MAX_S, wait_s * 2)
                continue
            wait_s = RESTART_FIRST_S
            while self._host.pid is not None and not stop.is_set():
                await self._loop.serve_one(stop)

    async def _warm_up(self) -> None:
        """Starts the host, loads, and runs one small generation. Raises SlotTaken, HostLost, LoadFailed."""
        ready = await self._host.start()
        self._remove_what_others_left()
        self._account_for(ready)
        if not self._draining:
            self._heartbeat.set(LaneState.LOADING)
        loaded = await self._host.load()
        request = Generate(
            task_id=WARMUP_TASK,
            attempt=0,  # and therefore not slowed down by --step-seconds
            parameters=warmup_parameters(self._model),
            video_path=str(self._scratch / f"{WARMUP_TASK}.mp4"),
        )
        outcome = await self._host.generate(request, lambda _: None)
        if self._host.pid is None or isinstance(outcome, Failed):
            reason = getattr(outcome, "message", None) or getattr(outcome, "reason", type(outcome).__name__)
            raise HostLost(f"the warm-up generation did not succeed: {reason}")
        log.info("warm", load_s=round(loaded.seconds, 3), rss_bytes=loaded.memory.rss_bytes)
        if not self._draining:
            self._heartbeat.set(LaneState.WARM)

    def _remove_what_others_left(self) -> None:
        # a predecessor may still be storing its last video: only what is old is nobody's
        oldest_s = time.time() - SCRATCH_KEPT_S
        for folder in self._scratch_root.iterdir():
            if folder != self._scratch and folder.stat().st_mtime < oldest_s:
                shutil.rmtree(folder, ignore_errors=True)

    def _account_for(self, ready: Ready) -> None:
        """Writes the memory line that the slot's last holder could not: it died in the middle of a task (FR-009)."""
        note = ready.unfinished
        if note is None or note.task_id in (None, WARMUP_TASK):
            return
        if (note.task_id, note.attempt) == self._runner.accounted:
            return
        log_memory(
            outcome="worker_lost",
            memory=None,
            task_id=str(note.task_id),
            attempt=note.attempt,
            model=note.model,
            slot=self._slot,
        )

    def _on_busy(self, busy: bool) -> None:
        if self._draining:
            return
        if busy:
            self._heartbeat.set(LaneState.BUSY)
        else:
            # without its host the lane is not warm: it is about to load again
            self._heartbeat.set(LaneState.WARM if self._host.pid is not None else LaneState.LOADING)


def warmup_parameters(model: ModelEntry) -> GenerationParameters:
    """The smallest generation that *model* allows: what it leaves in caches, the first request need not wait for."""
    limits = model.constraints
    return GenerationParameters(
        prompt="warm-up",
        negative_prompt="",
        image=None,
        width=_least(limits.width),
        height=_least(limits.height),
        num_frames=_least(limits.num_frames),
        fps=_least(limits.fps),
        seed=0,
        steps=int(limits.steps.value_when_absent or 1),
        cfg=float(limits.cfg.value_when_absent or 1.0),
    )


def _least(field: IntegerField) -> int:
    if field.fixed is not None:
        return field.fixed
    step = field.step or 1
    least = field.minimum or 1
    return least + (field.offset - least) % step
