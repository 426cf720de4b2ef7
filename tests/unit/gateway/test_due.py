"""The table of deadlines, row by row (design §4), and when a gateway looks."""

from datetime import datetime

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.settings import Catalog
from contracts.tasks import HANDED_BACK_MAX, FailureCode, GenerationTask, RoutingDecision
from gateway.rules.due import (
    DueAction,
    Fail,
    Leave,
    LookAgain,
    Republish,
    Requeue,
    Reroute,
    due_action,
    look_at,
)
from tests.kit.records import NOW, after, pending_task, processing_task

CANCELLED = lifecycle.fail(pending_task(), code=FailureCode.CANCELLED, message="", now=NOW)


def decide(
    task: GenerationTask | None,
    now: datetime,
    *,
    unbroken_s: float = 1_000,
    is_placed: bool = False,
    catalog: Catalog,
) -> DueAction:
    return due_action(task, is_placed=is_placed, unbroken_s=unbroken_s, windows=catalog.windows, attempts=2, now=now)


def test_rows_1_and_2_no_record_and_ended(catalog: Catalog) -> None:
    assert decide(None, NOW, catalog=catalog) == Leave()
    assert decide(CANCELLED, after(1_000), catalog=catalog) == Leave()
    assert look_at(CANCELLED, is_placed=False) is None


def test_row_3_overdue(catalog: Catalog) -> None:
    """FR-021 c: the degraded queue comes before a refusal; on it, overdue is final."""
    assert decide(pending_task(), after(30), catalog=catalog) == Reroute()
    failed = decide(pending_task(route="degraded"), after(30), catalog=catalog)
    assert isinstance(failed, Fail)
    assert failed.code is FailureCode.QUEUE_OVERLOADED


@pytest.mark.parametrize("route", ["lane", "degraded"])
def test_row_4_not_overdue(route: str, catalog: Catalog) -> None:
    """The message was queued before the record was made. After a move, the mover published it, or nobody did."""
    first, moved = pending_task(route=route), pending_task(route=route, epoch=1)
    assert decide(first, after(29.999), catalog=catalog) == Leave()
    assert look_at(first, is_placed=False) == after(30)
    assert decide(moved, after(1.999), catalog=catalog) == Leave()
    assert decide(moved, after(2), catalog=catalog) == Republish()
    assert look_at(moved, is_placed=False) == after(2)
    assert decide(moved, after(29.999), is_placed=True, catalog=catalog) == Leave()
    assert look_at(moved, is_placed=True) == after(30)


def test_row_5_live_lease(catalog: Catalog) -> None:
    assert decide(processing_task(), after(19.999), catalog=catalog) == Leave()
    assert look_at(processing_task(), is_placed=False) == after(20)
    assert look_at(processing_task(lease_expires_at=None), is_placed=False) == NOW


def test_row_6_a_gateway_that_was_cut_off_does_not_judge(catalog: Catalog) -> None:
    assert decide(processing_task(), after(25), unbroken_s=4, catalog=catalog) == LookAgain(after(31))
    assert decide(processing_task(), after(25), unbroken_s=10, catalog=catalog) == Requeue()


def test_rows_7_and_8_attempts(catalog: Catalog) -> None:
    lost = processing_task()
    assert decide(lost, after(20), catalog=catalog) == Requeue()
    second = replace(lost, attempt=2)
    failed = decide(second, after(20), catalog=catalog)
    assert isinstance(failed, Fail)
    assert failed.code is FailureCode.WORKER_LOST
    assert decide(replace(second, handed_back=1), after(20), catalog=catalog) == Requeue()


def test_rows_7_and_8_workers_that_are_stopped_again_and_again(catalog: Catalog) -> None:
    """Handing back costs the task nothing, and yet it ends: a worker that leaves in every run is a fault as well."""
    task, claims = pending_task(), 0
    while True:
        task = lifecycle.claim(task, owner="o", worker="w", lease_s=20, now=NOW)
        claims += 1
        task = lifecycle.release_lease(task, reason="asked to stop", now=NOW, on_purpose=True)
        action = decide(task, after(1), catalog=catalog)
        if not isinstance(action, Requeue):
            break
        decision = RoutingDecision(at=NOW, forced_degraded=False, lanes=(), outcome="lane")
        task = lifecycle.requeue(task, route="lane", decision=decision, wait_s=30, now=NOW)
    assert isinstance(action, Fail)
    assert (action.code, claims) == (FailureCode.WORKER_LOST, HANDED_BACK_MAX + 2)
