"""The checker finds an end that was not delivered, one that was delivered wrongly, and one that never happened."""

from datetime import UTC, datetime

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask
from tests.faults.deliveries import delivered_what_ended, missing
from tests.faults.history import Delivered, History, Limits, Revision
from tests.faults.story import Story
from tests.kit.records import NOW, TASK_ID, pending_task

LIMITS = Limits(wait_limit_s=30, attempts=2, depth=25, late_s=5)
FAILED = lifecycle.fail(pending_task(), code=FailureCode.CANCELLED, message="", now=NOW)
REFUSED = lifecycle.withdraw(pending_task(promised=False), now=NOW)


def judged(task: GenerationTask, *delivered: Delivered) -> list[str]:
    revisions = (Revision(sequence=1, at=datetime.now(UTC), task=task),)
    history = History(seed=1, limits=LIMITS, revisions=revisions, delivered=delivered)
    return [violation.text for violation in delivered_what_ended(Story(history))]


def test_an_end_that_was_told_once_or_twice_under_its_id_is_right() -> None:
    delivered = Delivered("a", TASK_ID, "task.failed")
    assert judged(FAILED, delivered, delivered, Delivered("b", TASK_ID, "task.claimed")) == []
    assert judged(REFUSED) == []
    assert judged(pending_task()) == []


def test_what_is_missing_wrong_doubled_or_invented_is_found() -> None:
    assert judged(FAILED)
    assert judged(FAILED, Delivered("a", TASK_ID, "task.done"))
    assert judged(FAILED, Delivered("a", TASK_ID, "task.failed"), Delivered("b", TASK_ID, "task.failed"))
    assert judged(FAILED, Delivered("a", TASK_ID, "task.failed"), Delivered("c", "another", "task.done"))
    assert judged(REFUSED, Delivered("a", TASK_ID, "task.failed"))
    assert missing([FAILED, REFUSED, pending_task()], []) == [TASK_ID]
