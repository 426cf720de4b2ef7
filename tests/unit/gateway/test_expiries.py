"""When a task is to be forgotten whose request said how long it is kept."""

from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask
from gateway.boards.expiries import Expiries
from tests.kit.records import NOW, TASK_ID, after, pending_task, processing_task

OTHER_ID = "01890a5d-ac96-774b-bcce-b302099a8058"


def ended(task_id: str = TASK_ID, *, keep_s: int | None = 60) -> GenerationTask:
    """A task that ended at NOW."""
    task = replace(processing_task(), id=task_id, keep_s=keep_s)
    return lifecycle.fail(task, code=FailureCode.CANCELLED, message="x", now=NOW)


def board(*tasks: GenerationTask) -> Expiries:
    expiries = Expiries()
    for task in tasks:
        expiries.take_in(task)
    return expiries


def test_a_task_is_due_when_its_time_since_its_end_is_over_and_until_it_is_gone() -> None:
    expiries = board(ended())
    assert (expiries.due(after(59.9)), expiries.is_due(TASK_ID, after(59.9))) == ([], False)
    for _ in range(2):  # a gateway that could not forget it tries again
        assert (expiries.due(after(60)), expiries.is_due(TASK_ID, after(60))) == ([TASK_ID], True)
    expiries.forget(TASK_ID)
    expiries.forget(TASK_ID)
    assert (expiries.due(after(60)), expiries.is_due(TASK_ID, after(60)), len(expiries)) == ([], False, 0)


def test_one_that_has_not_ended_or_says_nothing_is_never_due() -> None:
    expiries = board(pending_task(keep_s=60), replace(processing_task(), id=OTHER_ID, keep_s=60), ended(keep_s=None))
    assert expiries.due(after(1e9)) == []
    assert len(expiries) == 0


def test_those_that_were_due_first_come_first_each_once() -> None:
    expiries = board(ended(keep_s=90), ended(OTHER_ID), ended(OTHER_ID))
    expiries.forget(OTHER_ID)
    expiries.take_in(ended(OTHER_ID))
    assert expiries.due(after(100)) == [OTHER_ID, TASK_ID]


def test_the_newest_record_counts() -> None:
    """As after a restore: under the same id there may be a task that ended later, or has not ended."""
    expiries = board(ended(), ended(keep_s=90))
    assert expiries.due(after(60)) == []
    expiries.take_in(pending_task(keep_s=60))
    assert expiries.due(after(1e9)) == []
