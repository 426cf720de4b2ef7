"""The simulation of `make order` against figures that were found without it, and what is read out of it."""

import pytest
from msgspec.structs import replace

from contracts.order import OnCard, Policy, Waiting
from contracts.tasks import Priority
from ops.simulation import Arrival, by_policy, costs_alike, first_in_first_out, simulate
from tests.drills.order import (
    CASES,
    FIFO,
    GAINS,
    MODELS,
    PAGE,
    SWAP_AWARE,
    Case,
    Row,
    arrivals,
    compare,
    judge,
    page,
)
from tests.kit.orders import fixed_slice, llama_swap, swarm_ui

# At three times the capacity: tasks served with a fixed slice, against first in, first out; and swaps for each task.
FIXED_SLICES = [
    (Case(2, 4), 15, 1.60, 0.13),
    (Case(2, 4), 30, 1.76, 0.07),
    (Case(2, 4), 60, 1.86, 0.04),
    (Case(2, 10), 15, 2.07, 0.14),
    (Case(2, 10), 30, 2.36, 0.10),
    (Case(2, 10), 60, 2.43, 0.09),
    (Case(8, 15), 15, 1.02, 0.49),
    (Case(8, 15), 30, 1.29, 0.28),
    (Case(8, 15), 60, 1.47, 0.18),
    (Case(26, 20), 15, 0.90, 0.75),
    (Case(26, 20), 30, 1.00, 0.52),
    (Case(26, 20), 60, 1.09, 0.38),
    (Case(26, 60), 15, 0.87, None),
    (Case(26, 60), 30, 1.00, None),
    (Case(26, 60), 60, 1.09, None),
]


@pytest.mark.parametrize(("case", "slice_s", "gain", "swaps"), FIXED_SLICES, ids=str)
def test_the_simulation_gives_the_figures_of_another_one(
    case: Case, slice_s: float, gain: float, swaps: float | None
) -> None:
    until_s = 2_000 * case.fifo_s
    costs = costs_alike(MODELS, run_s=case.run_s, swap_s=case.swap_s)
    came = arrivals(3 / case.fifo_s, until_s)
    found = [
        simulate(came, order=order, costs=costs, until_s=until_s)
        for order in (first_in_first_out, fixed_slice(slice_s))
    ]
    assert found[1].served / found[0].served == pytest.approx(gain, rel=0.05)
    assert found[0].swaps_per_task == pytest.approx(0.5, abs=0.03)
    if swaps is not None:
        assert found[1].swaps_per_task == pytest.approx(swaps, abs=0.04)
    assert found[1].shares("model")["anisora"] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("times", [0.5, 1, 3, 10])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_order_of_the_product_is_worth_having(case: Case, times: float) -> None:
    rows = compare(case, times, tasks=500)
    assert judge(rows) == []
    by_order = {row.order: row for row in rows}
    assert by_order[SWAP_AWARE].few_served >= by_order[FIFO].few_served - 0.03
    assert by_order[SWAP_AWARE].least_model > 0.4


def test_a_caller_with_few_tasks_is_not_pushed_out() -> None:
    """One caller keeps the queue full for the loaded model; the other one has a single task at a time."""
    costs = costs_alike(MODELS, run_s=2, swap_s=10)
    came = [Arrival(at_s=number / 4, model="anisora", caller="many") for number in range(2_000)]
    came += [Arrival(at_s=35 + 40.0 * number, model="phr00t", caller="few") for number in range(10)]
    came.sort(key=lambda arrival: arrival.at_s)
    found = {
        name: simulate(came, order=order, costs=costs, until_s=500, places=1_000)
        for name, order in {"slices": fixed_slice(60), "ours": by_policy(Policy())}.items()
    }
    few = {name: sum(start.task.caller == "few" for start in outcome.starts) for name, outcome in found.items()}
    assert few["ours"] == 10
    assert few["slices"] < 10  # or the test shows nothing
    swaps = sum(start.swapped for start in found["ours"].starts)
    assert swaps <= 2 * 10 + 1


def test_a_class_gets_its_share_where_a_higher_one_would_take_all() -> None:
    costs = costs_alike(MODELS, run_s=2, swap_s=4)
    came = [
        Arrival(at_s=number / 2, model="anisora", priority=priority)
        for number in range(2_000)
        for priority in (Priority.INTERACTIVE, Priority.BACKGROUND)
    ]
    found = simulate(came, order=by_policy(Policy()), costs=costs, until_s=1_000, places=1_000)
    shares = found.shares("priority")
    assert shares["background"] == pytest.approx(0.2, abs=0.02)
    alone = simulate(came, order=by_policy(Policy(turn_share=1e-9)), costs=costs, until_s=1_000, places=1_000)
    assert alone.shares("priority").get("background", 0.0) == 0


def test_what_others_do() -> None:
    def task(name: str, queued_s: float) -> Waiting:
        return Waiting(task_id=name, model=name[0], queued_s=queued_s, deadline_s=99)

    costs = costs_alike("ab", run_s=1, swap_s=1)
    waiting = [task("b1", 1), task("a1", 2), task("a2", 3)]
    assert first_in_first_out(waiting, None, costs, 4).task_id == "b1"
    loaded_a = OnCard("a", 0)
    assert llama_swap(waiting, loaded_a, costs, 4).task_id == "a1"
    assert llama_swap(waiting[:1], loaded_a, costs, 4).task_id == "b1"
    assert swarm_ui(waiting, loaded_a, costs, 4).task_id == "a1"  # 2 x 10 + 2 against 10 + 3
    assert swarm_ui(waiting[:2], loaded_a, costs, 4).task_id == "b1"
    assert swarm_ui(waiting[1:], loaded_a, costs, 4).task_id == "a1"


def test_a_missed_aim_is_reported() -> None:
    row = Row(
        case=Case(2, 4),
        times=3,
        order=SWAP_AWARE,
        served=1,
        of=2,
        against_fifo=GAINS,
        swaps_per_task=0,
        longest_wait_s=30,
        least_model=0.5,
        few_served=1,
    )
    assert judge([row]) == []
    assert judge([replace(row, against_fifo=1.69)]) == ["2 s, 4 s, 3 times: 1.69 instead of 1.7"]
    assert judge([replace(row, times=1, against_fifo=0.96)]) == ["2 s, 4 s, 1 times: 0.96 of first in, first out"]
    assert judge([replace(row, longest_wait_s=30.1)]) == ["2 s, 4 s, 3 times: somebody waited 30.1 s"]


def test_the_page_has_the_table_of_the_drill() -> None:
    rows = compare(CASES[0], 0.5, tasks=50)
    written = page(rows, PAGE.read_text(), name="simulated")
    assert page(rows, written, name="simulated") == written
    assert written.count("| 2 s, 4 s | 0.5 | swap-aware |") == 1
