"""Until when a task is kept if its request set a time (ADR 0049). Pure."""

from contracts.tasks import GenerationTask


def kept_until_s(task: GenerationTask) -> float | None:
    """The moment, in seconds since 1970, from which *task* is to be forgotten.

    None if its own record sets no moment: it has not ended, or it stays for as long as the operator keeps records,
    which nats-server sees to.
    """
    if task.keep_s is None or not task.status.is_terminal or task.finished_at is None:
        return None
    return task.finished_at.timestamp() + task.keep_s
