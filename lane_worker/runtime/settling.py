"""Writes what became of a task to its record, under the lease (design §4, Settle)."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, ThumbnailFile, VideoFile
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.lease import LeaseKeeper
from lane_worker.runtime.orphans import delete_or_leave
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from ops.artifacts import Artifacts, StorageFailed
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed, of_task, span

# A thumbnail of 320 pixels has 5 to 20 kB.
THUMBNAIL_MAX_BYTES: Final = 256 * 1024

log = structlog.get_logger("loop")


class Settlement:
    """Settles *held*, whose lease *keeper* keeps until then."""

    def __init__(self, held: HeldTask, keeper: LeaseKeeper, artifacts: Artifacts) -> None:
        self._held = held
        self._keeper = keeper
        self._artifacts = artifacts
        self._has_stored_thumbnail = False

    async def settle(self, result: Result) -> None:
        """Moves the record by *result*. Raises OwnershipLost; then the record is another's to move."""
        match result:
            case Succeeded():
                await self._publish_video(result)
            case Unsuccessful():
                await self._fail(result)
            case Stopped():
                await self._held.check()
                # stopped, yet still ours: the notice was wrong or early, so let another attempt run it
                await self._give_up("stopped without a reason")
            case GaveUp(reason, on_purpose):
                await self._give_up(reason, on_purpose=on_purpose)

    async def discard_video(self, record: GenerationTask | None) -> None:
        """Removes what this claim stored, unless *record*, which is there now, publishes it."""
        ours = self._held.task
        if record is not None:
            elsewhere = record.status.is_terminal or record.epoch != ours.epoch
            if not elsewhere or (record.video is not None and record.video.path == ours.video_path):
                return
        await delete_or_leave(self._artifacts, ours.video_path)
        if self._has_stored_thumbnail:
            await delete_or_leave(self._artifacts, ours.thumbnail_path)

    async def _publish_video(self, result: Succeeded) -> None:
        task = self._held.task
        try:
            with span("store", of_task(task, path=task.video_path, bytes=result.video.bytes)):
                await self._artifacts.put(task.video_path, result.path)
        except StorageFailed as error:
            log.error("video_not_stored", task_id=task.id, error=str(error))
            if not result.path.exists():  # no fault of the store's: the next attempt makes it again
                await self._give_up("the video was removed before it was stored")
                return
            message = "the video could not be stored; submit it again"
            await self._fail(Unsuccessful(FailureCode.STORAGE_FAILED, message, result.memory, result.swap))
            return
        finally:
            result.path.unlink(missing_ok=True)
        thumbnail = await self._store_thumbnail(result.video.thumbnail)
        ended = await self._held.end(lambda task: finished(task, result, thumbnail=thumbnail, now=datetime.now(UTC)))
        metrics.inference_duration.record(result.inference_s, ended.model)
        log.info(
            "task_done",
            task_id=task.id,
            attempt=task.attempt,
            bytes=result.video.bytes,
            inference_s=round(result.inference_s, 4),
            encode_s=round(result.encode_s, 4),
        )

    async def _store_thumbnail(self, content: bytes) -> ThumbnailFile | None:
        """Stores *content*, if it is a thumbnail. A failure changes nothing about the video."""
        task = self._held.task
        if not 0 < len(content) <= THUMBNAIL_MAX_BYTES:
            return None
        self._has_stored_thumbnail = True  # or a part of it
        try:
            await self._artifacts.put(task.thumbnail_path, content)
        except StorageFailed as error:
            log.warning("thumbnail_not_stored", task_id=task.id, error=str(error))
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        return ThumbnailFile(path=task.thumbnail_path, bytes=len(content), sha256=sha256)

    async def _fail(self, result: Unsuccessful) -> None:
        def fail(task: GenerationTask) -> GenerationTask:
            return lifecycle.fail(
                task,
                code=result.code,
                message=result.message,
                memory=result.memory,
                swap=result.swap,
                now=datetime.now(UTC),
            )

        await self._held.end(fail)
        failed(current_span(), result.code.value)
        task = self._held.task
        log.warning("task_failed", task_id=task.id, code=result.code.value, attempt=task.attempt)

    async def _give_up(self, reason: str, *, on_purpose: bool = False) -> None:
        await self._keeper.stop()  # or it would renew what is given back
        task = await self._held.update(
            lambda task: lifecycle.release_lease(task, reason=reason, now=datetime.now(UTC), on_purpose=on_purpose)
        )
        failed(current_span(), "gave_up", reason)
        report = log.info if on_purpose else log.warning
        report("lease_released", task_id=task.id, attempt=task.attempt, reason=reason, on_purpose=on_purpose)


def finished(
    task: GenerationTask, result: Succeeded, *, thumbnail: ThumbnailFile | None = None, now: datetime
) -> GenerationTask:
    """*task*, done with the video of *result*, which is stored at its `video_path`, and its *thumbnail*. Pure."""
    written = result.video
    video = VideoFile(
        path=task.video_path,
        bytes=written.bytes,
        sha256=written.sha256,
        width=written.width,
        height=written.height,
        frames=written.frames,
        fps=written.fps,
        thumbnail=thumbnail,
    )
    finished_at = result.started_at + timedelta(seconds=result.inference_s)
    task = lifecycle.with_event(task, "inference_started", result.started_at)
    task = lifecycle.with_event(task, "inference_finished", finished_at, f"{result.inference_s:.3f} s")
    return lifecycle.finish(task, video=video, memory=result.memory, swap=result.swap, now=now)
