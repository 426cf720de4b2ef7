"""Until when a task is kept whose request said so (ADR 0049). Pure."""

from contracts.tasks import GenerationTask


def kept_until_s(task: GenerationTask) -> float | None:
    """The moment, in seconds since 1970, from which *task* is to be forgotten.

    None where its own record says nothing of it: it has not ended, or it stays for as long as the operator keeps
    records, which the server sees to.
    """
    if task.keep_s is None or not task.status.is_terminal or task.finished_at is None:
        return None
    return task.finished_at.timestamp() + task.keep_s
