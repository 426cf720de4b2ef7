"""The heap of deadlines: what is due and when, and that it loses nothing."""

from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask
from gateway.boards.deadlines import AGAIN_S, SPREAD_S, Deadlines, share
from tests.kit.records import NOW, after, pending_task, processing_task

ENDED = lifecycle.fail(pending_task(), code=FailureCode.CANCELLED, message="", now=NOW)


def of(*tasks: GenerationTask, name: str = "g") -> Deadlines:
    deadlines = Deadlines(name)
    for task in tasks:
        deadlines.take_in(task)
    return deadlines


def due(deadlines: Deadlines, now: datetime, limit: int = 9) -> list[str]:
    return deadlines.due(now, limit=limit)


def test_a_task_is_due_at_its_deadline_and_again_until_its_record_moves() -> None:
    waits, runs = pending_task("waits"), replace(processing_task(), id="runs")
    deadlines = of(waits, runs)
    assert due(deadlines, after(19.9)) == []
    assert due(deadlines, after(20 + SPREAD_S)) == ["runs"]
    assert due(deadlines, after(20 + SPREAD_S)) == []
    assert due(deadlines, after(20 + SPREAD_S + AGAIN_S)) == ["runs"]
    deadlines.take_in(replace(runs, lease_expires_at=after(60)))
    assert due(deadlines, after(59.9)) == ["waits"]
    deadlines.take_in(replace(ENDED, id="waits"))
    assert due(deadlines, after(600)) == ["runs"]


def test_what_was_due_first_comes_first_and_the_rest_is_not_lost() -> None:
    deadlines = of(*(pending_task(f"t{number}", deadline_at=after(number)) for number in range(5)))
    assert due(deadlines, after(9), limit=2) == ["t0", "t1"]
    assert due(deadlines, after(9)) == ["t2", "t3", "t4"]


def test_a_task_that_was_moved_is_looked_at_sooner_unless_this_gateway_has_queued_it() -> None:
    moved = pending_task("moved", epoch=1)
    deadlines = of(moved)
    assert due(deadlines, after(2 + SPREAD_S)) == ["moved"]
    deadlines.placed(moved)
    assert deadlines.is_placed(moved)
    assert due(deadlines, after(29.9)) == []
    assert due(deadlines, after(30 + SPREAD_S)) == ["moved"]
    # at the next epoch it is another gateway's turn
    again = replace(moved, epoch=2)
    assert not deadlines.is_placed(again)
    deadlines.take_in(again)
    assert due(deadlines, after(30 + SPREAD_S + AGAIN_S)) == ["moved"]


def test_a_word_of_an_earlier_placement_does_not_replace_what_the_record_says_now() -> None:
    moved, claimed = pending_task(epoch=1), processing_task(lease_s=1)
    deadlines = of(moved)
    deadlines.take_in(claimed)
    deadlines.placed(moved)
    assert due(deadlines, after(1 + SPREAD_S)) == [claimed.id]


def test_what_is_put_off_comes_later_and_what_is_unknown_not_at_all() -> None:
    deadlines = of(processing_task())
    deadlines.put_off(processing_task().id, after(35))
    deadlines.put_off("unknown", after(1))
    deadlines.placed(pending_task("unknown"))
    assert deadlines.next_at() == after(35)
    assert due(deadlines, after(34.9)) == []
    deadlines.forget(processing_task().id)
    deadlines.forget("unknown")
    assert (due(deadlines, after(999)), deadlines.next_at()) == ([], None)


def test_who_sleeps_is_woken_for_what_is_due_sooner() -> None:
    deadlines, woken = Deadlines("g"), []
    deadlines.on_sooner = lambda: woken.append(deadlines.next_at())
    deadlines.take_in(pending_task("a", deadline_at=after(9)))
    deadlines.take_in(pending_task("b", deadline_at=after(30)))
    assert len(woken) == 1
    deadlines.take_in(pending_task("c", deadline_at=after(1)))
    assert len(woken) == 2


def test_a_hundred_gateways_do_not_all_come_first() -> None:
    """A different gateway is first for each task. Few follow within 2 ms, after which the others see what it did."""
    gateways = [f"gateway-{number}" for number in range(100)]
    firsts, crowds = set(), []
    for number in range(200):
        turns = sorted((share(name, f"task-{number}") * SPREAD_S, name) for name in gateways)
        firsts.add(turns[0][1])
        crowds.append(sum(turn - turns[0][0] < 0.002 for turn, _ in turns))
    assert len(firsts) > 50
    assert sum(crowds) / len(crowds) < 5
    assert all(0 <= share(name, "t") <= 1 for name in gateways)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["lane", "lease", "end", "due", "placed"]), st.integers(0, 9))
    )
)
def test_every_live_task_is_due_some_time(steps: list[tuple[int, str, int]]) -> None:
    """Whatever happens in whatever order: the heap holds the tasks that have not ended, and no others."""
    deadlines, live = Deadlines("g"), set()
    for number, what, at in steps:
        task_id = f"t{number}"
        if what == "end":
            deadlines.take_in(replace(ENDED, id=task_id))
            live.discard(task_id)
        elif what == "due":
            deadlines.due(after(at), limit=2)
        elif what == "placed":
            deadlines.placed(pending_task(task_id, epoch=at % 2))
        else:
            task = pending_task(task_id, epoch=at % 2, deadline_at=after(at)) if what == "lane" else None
            deadlines.take_in(task or replace(processing_task(lease_s=at), id=task_id))
            live.add(task_id)
    assert set(deadlines.due(after(1_000), limit=99)) == live
