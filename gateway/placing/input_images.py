"""The images that requests start from, on their way into the artifact store."""

from datetime import UTC, datetime

import structlog
from msgspec.structs import replace

from contracts import lifecycle
from contracts.generation.request import AcceptedRequest
from contracts.tasks import FailureCode, GenerationTask
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_board import TaskBoard
from gateway.placing.leftovers import remove_leftovers
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry import metrics

log = structlog.get_logger("input_images")


class InputImages:
    """What becomes of a task whose image comes late, or cannot be stored."""

    def __init__(self, *, link: NatsLink, artifacts: Artifacts, tasks: TaskBoard) -> None:
        self._link = link
        self._artifacts = artifacts
        self._tasks = tasks

    async def is_missing(self, task: GenerationTask) -> bool:
        """Whether *task* has not ended and lacks its image: the gateway that queued it may have died before storing
        it."""
        if task.status.is_terminal or task.image_path is None:
            return False
        try:
            return await self._artifacts.size(task.image_path) is None
        except StorageFailed as error:
            log.error("image_not_stored", task_id=task.id, error=str(error))
            return False

    async def complete(self, task: GenerationTask, request: AcceptedRequest) -> None:
        """Stores the missing image of *task*; a worker may be waiting for it."""
        if task.image_path is None or request.image_content is None or not has_image_of(task, request):
            return
        try:
            await self._artifacts.put(task.image_path, request.image_content)
        except StorageFailed as error:
            log.error("image_not_stored", task_id=task.id, error=str(error))

    async def refuse(self, task: GenerationTask, error: StorageFailed, *, is_ours: bool) -> Snapshot:
        """The image could not be stored: a terminal record fences the message off, so that no worker runs the task
        after the answer says that it will not run.

        A worker that was faster waits for the image: the record that it moved is ended. Where an equal request queued
        the task (not *is_ours*), the gateway of that request stores the image, and decides.
        """
        log.error("image_not_stored", task_id=task.id, error=str(error))
        try:
            # no client was given its id, so no webhook reports its end
            await self._tasks.create(replace(_without_image(task), promised=False))
        except WrongRevision:
            known = await self._tasks.read(task.id)
            if known is not None:
                return await self._end_without_image(known) if is_ours else known
        else:
            metrics.task_ended(_without_image(task))
        await remove_leftovers(_without_image(task), link=self._link, artifacts=self._artifacts)
        raise error

    async def _end_without_image(self, known: Snapshot) -> Snapshot:
        moved = await self._tasks.move(
            known.task.id, lambda task, _: None if task.status.is_terminal else _without_image(task), known=known
        )
        if moved is None:
            return known
        if moved.before is not None:
            metrics.task_ended(moved.task)
        return Snapshot(moved.task, moved.revision)


def has_image_of(task: GenerationTask, request: AcceptedRequest) -> bool:
    """Whether the image of *request* is the one that *task* names. What an address leads to may have changed since."""
    return task.parameters.image == request.image


def _without_image(task: GenerationTask) -> GenerationTask:
    return lifecycle.fail(
        task, code=FailureCode.STORAGE_FAILED, message="the input image could not be stored", now=datetime.now(UTC)
    )
