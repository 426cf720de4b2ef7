"""What a task that ended without being run leaves behind, and its removal."""

import structlog

from contracts.tasks import GenerationTask
from contracts.topology import work_stream, work_subject
from ops.artifacts import Artifacts, StorageFailed
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink

log = structlog.get_logger("leftovers")


async def remove_leftovers(task: GenerationTask, *, link: NatsLink, artifacts: Artifacts) -> None:
    """Removes the queue message of *task*'s placement, which frees its place, and its image if it was refused.

    Never raises: the record fences off a message that stays, and the janitor removes an image that no record names.
    """
    try:
        await remove_message(task, link=link)
    except TransportUnavailable as error:
        log.info("message_not_removed", task_id=task.id, error=str(error))
    await remove_image(task, artifacts=artifacts)


async def remove_message(task: GenerationTask, *, link: NatsLink) -> None:
    """Removes the queue message of *task*'s placement; one that is gone already is no error.

    Raises TransportUnavailable: then its place may still be taken.
    """
    await link.messages.purge(work_stream(task.route, task.model), work_subject(task.route, task.model, task.id))


async def remove_image(task: GenerationTask, *, artifacts: Artifacts) -> None:
    """Removes the image of *task* if it was refused. Never raises."""
    if task.was_refused and task.image_path is not None:
        try:
            await artifacts.delete(task.image_path)
        except StorageFailed as error:
            log.warning("image_not_removed", task_id=task.id, error=str(error))
