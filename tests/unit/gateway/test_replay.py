"""A recorded day: what is read from its records, and what another policy would have done."""

from typing import Any, Literal

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.memory import SwapReceipt
from contracts.order import Policy
from contracts.tasks import FailureCode, GenerationTask, LaneInput, Priority, RoutingDecision, TaskStatus
from gateway.replay.day import Fate, NoTasks, RecordedDay, arrivals, recorded_day
from gateway.replay.records import Records, between
from gateway.replay.replaying import DayAccount, ReplayTerms, account, accounts, replay
from gateway.replay.report import notes
from tests.kit.records import NOW, after, pending_task

RUN_S, SWAP_S = 2.0, 4.0


def request(
    number: int,
    at_s: float,
    *,
    model: str = "anisora",
    caller: str = "anonymous",
    warm_lanes: int = 0,
    is_forced: bool = False,
    wait_s: float = 30,
) -> GenerationTask:
    """A task that came at *at_s*, when routing saw *warm_lanes*."""
    lanes = tuple(LaneInput(worker=f"{model}-{n}", state="warm", healthy_at=after(at_s)) for n in range(warm_lanes))
    route: Literal["lane", "degraded"] = "lane" if warm_lanes and not is_forced else "degraded"
    return pending_task(
        f"{number:08d}-ac96-774b-bcce-b302099a8057",
        model=model,
        caller=caller,
        route=route,
        created_at=after(at_s),
        queued_at=after(at_s),
        deadline_at=after(at_s + wait_s),
        decision=RoutingDecision(at=after(at_s), forced_degraded=is_forced, lanes=lanes, outcome=route),
    )


def served(
    task: GenerationTask, claimed_s: float, *, swap: bool = False, worker: str = "degraded-0", run_s: float = RUN_S
) -> GenerationTask:
    """*task*, taken at *claimed_s* after NOW and done."""
    claimed = lifecycle.claim(task, owner="owner", worker=worker, lease_s=20, now=after(claimed_s))
    receipt = SwapReceipt(
        slot="cpu-0", released_model=None, loaded_model=task.model, how="unloaded", probe="rss", load_s=SWAP_S
    )
    return replace(
        claimed,
        status=TaskStatus.DONE,
        finished_at=after(claimed_s + run_s + (SWAP_S if swap else 0)),
        swap=receipt if swap else None,
    )


def ended(task: GenerationTask, code: FailureCode, at_s: float) -> GenerationTask:
    return lifecycle.fail(task, code=code, message="-", now=after(at_s))


def terms(day: RecordedDay, policy: Policy, **changes: Any) -> ReplayTerms:
    return ReplayTerms(
        policy=policy,
        lanes=changes.get("lanes"),
        places=changes.get("places", 25),
        lane_wait_s=day.lane_wait_s or 30,
        degraded_wait_s=changes.get("degraded_wait_s", day.degraded_wait_s or 30),
    )


def alternating(count: int) -> list[GenerationTask]:
    """First in, first out, on requests for two models in turns that all come at once: each costs a swap."""
    each_s = RUN_S + SWAP_S
    found = []
    for number in range(count):
        task = request(number, number / 100, model=("anisora", "phr00t")[number % 2])
        start_s = number * each_s
        is_in_time = start_s < number / 100 + 30
        found.append(served(task, start_s, swap=True) if is_in_time else ended(task, FailureCode.QUEUE_OVERLOADED, 31))
    return found


def test_what_happened_is_read_from_the_records() -> None:
    day = recorded_day(
        [
            served(request(1, 0), 1, swap=True),
            served(request(2, 1, caller="b", warm_lanes=1), 1.5, worker="anisora-0"),
            ended(request(3, 2), FailureCode.QUEUE_OVERLOADED, 32),
            ended(request(4, 3), FailureCode.CANCELLED, 5),
            ended(request(5, 4), FailureCode.STORAGE_FAILED, 4),
            request(6, 5),
        ]
    )
    assert day.fates == [
        Fate(model="anisora", caller="anonymous", end="served", wait_s=1, swapped=True),
        Fate(model="anisora", caller="b", end="served", wait_s=0.5, on_lane=True),
        Fate(model="anisora", caller="anonymous", end="refused"),
        Fate(model="anisora", caller="anonymous", end="withdrawn"),
    ]
    assert (day.unended, day.unqueued) == (1, 1)
    assert (day.begun_at, day.lane_wait_s, day.degraded_wait_s) == (NOW, 30, 30)
    assert day.lanes == {"anisora": 1}


def test_a_second_attempt_waited_until_the_first_began() -> None:
    first = lifecycle.claim(request(1, 0), owner="a", worker="degraded-0", lease_s=1, now=after(2))
    again = lifecycle.requeue(first, route="degraded", decision=first.decision or _none(), wait_s=30, now=after(5))
    assert recorded_day([served(again, 9)]).fates[0].wait_s == 2


def _none() -> RoutingDecision:
    raise AssertionError


def test_what_lies_between_two_tasks_is_part_of_the_first_where_the_second_waited() -> None:
    day = recorded_day(
        [
            served(request(1, 0), 0, swap=True),  # until 6 s
            served(request(2, 1), 6.5),  # it waited: 0.5 s of the worker's own
            served(request(3, 20), 20),  # the worker stood idle
        ]
    )
    assert [arrival.run_s for arrival in arrivals(day, lanes=None)] == [RUN_S + 0.5, RUN_S, RUN_S]
    assert day.measured.degraded.run_s["anisora"] == pytest.approx(RUN_S + 0.5 / 3)
    assert day.measured.degraded.swap_s == {"anisora": SWAP_S}


def test_the_same_policy_gives_the_same_day_again() -> None:
    day = recorded_day(alternating(12))
    found = accounts(replay(day, terms(day, Policy(order="fifo"))))
    assert found == accounts(day.fates)
    assert (found.all.served, found.all.swaps, found.all.wait_longest_s) == (6, 6, 29.95)


def test_another_order_swaps_less_and_serves_more() -> None:
    day = recorded_day(alternating(12))
    found = accounts(replay(day, terms(day, Policy()))).all
    assert (found.served, found.swaps, found.refused) == (12, 2, 0)
    assert accounts(day.fates).all.refused == 6


def test_another_limit_refuses_others() -> None:
    day = recorded_day(alternating(12))
    fifo = Policy(order="fifo")
    assert accounts(replay(day, terms(day, fifo, degraded_wait_s=100))).all.served == 12
    assert accounts(replay(day, terms(day, fifo, places=2))).all.refused == 9


def test_more_lanes_take_what_the_degraded_worker_had() -> None:
    day = recorded_day(alternating(12))
    found = accounts(replay(day, terms(day, Policy(), lanes={"anisora": 1, "phr00t": 1})))
    assert (found.all.served, found.all.on_lanes, found.all.swaps) == (12, 12, 0)
    one = accounts(replay(day, terms(day, Policy(), lanes={"anisora": 1})))
    assert (one.models["anisora"].on_lanes, one.models["phr00t"].on_lanes) == (6, 0)


def test_lanes_order_what_waits_too() -> None:
    """One lane is busy until 20 s; then the interactive one goes before the older background one."""
    first = served(request(1, 0, warm_lanes=1), 0, worker="anisora-0", run_s=20)
    background = served(replace(request(2, 1, warm_lanes=1), priority=Priority.BACKGROUND), 20, worker="anisora-0")
    urgent = served(replace(request(3, 2, warm_lanes=1), priority=Priority.INTERACTIVE), 22, worker="anisora-0")
    day = recorded_day([first, background, urgent])
    waits_s = [fate.wait_s for fate in replay(day, terms(day, Policy()))]
    assert waits_s == [0, 18, 21]


def test_a_switch_of_the_operator_keeps_requests_from_more_lanes_too() -> None:
    day = recorded_day([served(request(1, 0, is_forced=True), 1)])
    assert not arrivals(day, lanes={"anisora": 3})[0].to_lane


def test_lanes_as_they_were_then() -> None:
    """The third finds the only lane busy, waits as long as it may, and goes on to the degraded worker."""
    day = recorded_day(
        [
            served(request(1, 0, warm_lanes=1), 0, worker="anisora-0", run_s=50),
            served(request(2, 1), 1),
            ended(request(3, 2, warm_lanes=1), FailureCode.QUEUE_OVERLOADED, 62),
        ]
    )
    assert [arrival.to_lane for arrival in arrivals(day, lanes=None)] == [True, False, True]
    found = {(fate.on_lane, fate.wait_s) for fate in replay(day, terms(day, Policy()))}
    assert found == {(True, 0), (False, 0), (False, 30)}


def test_who_hung_up_then_hangs_up_again() -> None:
    day = recorded_day([served(request(1, 0), 0, run_s=20), ended(request(2, 1), FailureCode.CANCELLED, 4)])
    assert [fate.end for fate in replay(day, terms(day, Policy()))] == ["served", "withdrawn"]
    sooner = recorded_day([served(request(1, 0), 0, run_s=2), ended(request(2, 1), FailureCode.CANCELLED, 4)])
    assert [fate.end for fate in replay(sooner, terms(sooner, Policy()))] == ["served", "served"]


def test_a_full_queue_is_said() -> None:
    """What was refused at once has no record."""
    tasks = [ended(request(number, 0), FailureCode.QUEUE_OVERLOADED, 30) for number in range(25)]
    day = recorded_day(tasks)
    assert day.full_s == 30
    assert "The degraded queue was full for 30.0 s." in " ".join(notes(day, 2))
    assert "No swap to anisora was measured: one counts 0.0 s." in " ".join(notes(day, 2))
    assert "2 records could not be read" in " ".join(notes(day, 2))
    assert recorded_day(tasks[:24]).full_s == 0


def test_without_an_ended_task_there_is_nothing_to_replay() -> None:
    with pytest.raises(NoTasks, match="no task in these records has ended"):
        recorded_day([request(1, 0)])
    with pytest.raises(NoTasks):
        recorded_day([])


def test_a_lane_state_of_a_later_version_is_no_lane_that_was_seen() -> None:
    task = served(request(1, 0, warm_lanes=1), 0, worker="anisora-0")
    assert task.decision is not None
    later = replace(task.decision, lanes=(replace(task.decision.lanes[0], state="hovering"),))
    day = recorded_day([replace(task, decision=later)])
    assert arrivals(day, lanes=None)[0].to_lane


def test_a_span_of_time() -> None:
    records = Records([request(1, 0), request(2, 10), request(3, 20)], 0)
    assert [task.id[7] for task in between(records, after(10), after(20))] == ["2"]
    assert len(between(records, None, None)) == 3


def test_percentiles_are_of_what_was_served() -> None:
    fates = [Fate(model="a", caller="", end="served", wait_s=float(number)) for number in range(1, 101)]
    assert account([*fates, Fate(model="a", caller="", end="refused")]) == DayAccount(
        requests=101,
        served=100,
        on_lanes=0,
        swaps=0,
        refused=1,
        withdrawn=0,
        wait_p50_s=50,
        wait_p95_s=95,
        wait_longest_s=100,
    )
    assert account([]).wait_p95_s is None
