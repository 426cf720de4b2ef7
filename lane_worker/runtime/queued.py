"""What a message of a work queue carries, and what a worker leaves to one of a newer version."""

from datetime import UTC, datetime
from typing import Final

from nats.aio.msg import Msg

from contracts.tasks import GenerationTask, UnreadableRecord, UnreadableTask, decode_task, may_be_newer

# A message that a newer version may have written is left to that version's workers for this long in all.
LEFT_MAX_S: Final = 60.0
# The gateway makes the record of a message about a millisecond after the message. A worker that gets the message sooner
# makes the record itself, without looking for one first.
FRESH_S: Final = 0.05


def queued_task(message: Msg) -> GenerationTask:
    """The task that *message* carries. Raises UnreadableTask, also where it came on another task's subject."""
    task = decode_task(message.data)
    # The subject decides where a task runs and as what, whichever queue its message came on.
    if message.subject.partition(".")[2] != f"{task.model}.{task.id}":
        raise UnreadableTask("it is not the task of its subject")
    return task


def is_left(message: Msg, error: UnreadableTask) -> bool:
    """Whether a worker of a newer version may serve what this one cannot read.

    Only for LEFT_MAX_S: its place in the queue is needed (design §10.10), and the gateway moves the task by then.
    """
    task_id = message.subject.rpartition(".")[2]
    return _age_s(message) < LEFT_MAX_S and (isinstance(error, UnreadableRecord) or may_be_newer(task_id, message.data))


def is_fresh(message: Msg, queued: GenerationTask) -> bool:
    """Whether no record is to be expected yet. It is a guess, and clocks may differ: the claim finds out."""
    return queued.epoch == 0 and _age_s(message) < FRESH_S


def _age_s(message: Msg) -> float:
    return (datetime.now(UTC) - message.metadata.timestamp).total_seconds()
