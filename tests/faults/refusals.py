"""The sixth invariant of design §4: a request that was refused leaves nothing behind. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime

from contracts.tasks import GenerationTask, TaskStatus
from ops.artifacts import task_id_of
from tests.faults.history import Call
from tests.faults.story import GATEWAY_FAULTS, SERVER_FAULTS, STORE_FAULTS, Story, Violation

# ── 6 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused_is_refused(story: Story) -> Iterator[Violation]:
    """6. A request that was refused leaves nothing behind and never runs (a 503 that says `outcome: unknown` excepted).

    Refused at the door (a full queue, a wrong field): no record at all. Refused after a wait: its record failed and
    was never claimed. Refused for its image: the same. A refused image is gone, unless the store or a gateway was
    broken meanwhile. And there is no record that no client asked for.
    """
    calls = defaultdict(list)
    for call in story.history.calls:
        if call.kind == "submit":
            calls[call.request].append(call)
    records = defaultdict(list)
    for task_id, life in story.lives.items():
        records[request_of(life[0].task)].append(task_id)
    for request, ids in records.items():
        asked = calls.get(request)
        if asked is None:
            yield from (Violation(6, task_id, "a record of what no client has asked for") for task_id in ids)
        elif all(is_refusal(call) or not call.sent for call in asked):
            recorded = any(call.limit in ("wait", "displaced") or call.code == "storage_unavailable" for call in asked)
            for task_id in ids:
                if not recorded:
                    yield Violation(6, task_id, "it was refused at the door, and left a record")
                yield from _never_ran(story, task_id)
    for call in story.history.calls:
        if call.kind == "submit" and is_refusal(call) and call.task_id:
            yield from _never_ran(story, call.task_id)
    yield from _images(story)


def request_of(task: GenerationTask) -> int:
    """The number of the request from which *task* was made; clients write it into the prompt. -1 if there is none."""
    word = task.parameters.prompt.rsplit(" ", 1)[-1]
    return int(word) if word.isdigit() else -1


def is_refusal(call: Call) -> bool:
    """Whether the answer promises that nothing will run."""
    if call.status is None:
        return False
    return 400 <= call.status < 500 or call.code in ("queue_overloaded", "storage_unavailable")


def _never_ran(story: Story, task_id: str) -> Iterator[Violation]:
    life = story.lives.get(task_id)
    if life is None:
        return
    if any(item.task.attempt or item.task.status is TaskStatus.PROCESSING for item in life):
        yield Violation(6, task_id, "it was refused, and a worker claimed it")


def _images(story: Story) -> Iterator[Violation]:
    for artifact in story.history.artifacts:
        if not artifact.path.startswith("images/"):
            continue
        task_id = task_id_of(artifact.path)
        life = story.lives.get(task_id)
        if life is not None and not life[-1].task.was_refused:
            continue
        broken = story.history.faults
        since = life[0].at if life else min((fault.at for fault in broken), default=None)
        if since is None or not story.faults((*STORE_FAULTS, *GATEWAY_FAULTS, *SERVER_FAULTS), since, _end_of(story)):
            yield Violation(6, task_id, f"it was refused, and left {artifact.path}")


def _end_of(story: Story) -> datetime:
    return max(revision.at for revision in story.history.revisions)
