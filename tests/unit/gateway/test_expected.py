"""Which request is refused at once, because it will almost certainly not start in time (ADR 0039)."""

import random
from typing import Any, Final

import pytest

from contracts.order import Ledger, OnCard, OrderState, Waiting, choose, cost_s, started
from contracts.tasks import Priority
from gateway.rules.expected import Running, is_hopeless
from tests.kit.records import after

NOW_S: Final = after(0).timestamp()
INTERACTIVE, STANDARD, BACKGROUND = Priority
LIMIT_S: Final = 29.5


def state(run_s: float, swap_s: float, *, models: str = "ab", **changes: Any) -> OrderState:
    figures: dict[str, Any] = {
        "at": after(0),
        "order": "swap-aware",
        "swap_share": 0.2,
        "slice_max_s": 120.0,
        "turn_share": 0.2,
        "loaded": "a",
        "loaded_at": after(-10),
        "run_s": dict.fromkeys(models, run_s),
        "swap_s": dict.fromkeys(models, swap_s),
    }
    return OrderState(**figures | changes)


def task(name: str, *, waited_s: float = 1.0, priority: Priority = STANDARD) -> Waiting:
    """Named by its model first."""
    return Waiting(
        task_id=name,
        model=name[0],
        queued_s=NOW_S - waited_s,
        deadline_s=NOW_S - waited_s + LIMIT_S,
        priority=priority,
    )


NEW: Final = task("a-new", waited_s=0)


@pytest.mark.parametrize(
    ("new", "waiting", "orders", "running", "expected"),
    [
        pytest.param(NEW, [], state(26, 20), None, False, id="the-card-is-free"),
        pytest.param(NEW, [], state(26, 20), Running("a", NOW_S - 1, NOW_S + 25), False, id="behind-one-run"),
        pytest.param(
            NEW, [task("a1")], state(26, 20), Running("a", NOW_S - 1, NOW_S + 25), False, id="2-a-little-faster"
        ),
        pytest.param(
            NEW, [task("a1")], state(40, 20), Running("a", NOW_S - 1, NOW_S + 39), False, id="3-it-may-go-away"
        ),
        pytest.param(NEW, [], state(26, 60), Running("b", NOW_S - 1, NOW_S + 85), True, id="3-one-long-swap-and-run"),
        pytest.param(
            NEW,
            [task("a1"), task("a2")],
            state(20, 20),
            Running("a", NOW_S - 1, NOW_S + 19),
            False,
            id="3-one-is-enough-to-go",
        ),
        pytest.param(
            NEW,
            [task("a1"), task("a2"), task("a3")],
            state(15, 20),
            Running("a", NOW_S - 1, NOW_S + 14),
            False,
            id="2-the-last-of-them-may-expire",
        ),
        pytest.param(
            task("a-new", waited_s=0, priority=INTERACTIVE),
            [task("a1", priority=BACKGROUND)] * 1,
            state(50, 20),
            Running("a", NOW_S - 30, NOW_S + 20),
            False,
            id="a-higher-class-goes-first",
        ),
        pytest.param(
            NEW, [task("a1")], state(70, 20, models="b"), Running("a", NOW_S, NOW_S + 90), False, id="1-not-measured"
        ),
        pytest.param(
            NEW, [], state(70, 20, models=""), Running("a", NOW_S, NOW_S + 90), False, id="1-nothing-measured"
        ),
    ],
)
def test_who_is_refused(
    new: Waiting, waiting: list[Waiting], orders: OrderState, running: Running | None, expected: bool
) -> None:
    assert is_hopeless(new, waiting, state=orders, running=running, now_s=NOW_S) is expected


def starts_in_time(
    new: Waiting, waiting: list[Waiting], orders: OrderState, free_s: float, chance: random.Random
) -> bool:
    """Whether *new* starts before its deadline where each run and swap takes between 0.7 and 1.6 times what was
    measured, and some of those that wait are cancelled."""
    left = [each for each in waiting if chance.random() > 0.05] + [new]
    ledger, loaded, now_s = Ledger(), orders.on_card, free_s
    while True:
        choice = choose(left, loaded=loaded, costs=orders.costs, ledger=ledger, policy=orders.policy, now_s=now_s)
        if choice is None:
            return False
        if choice.task is new:
            return True
        ledger = started(ledger, choice.task, left, loaded=loaded, costs=orders.costs, now_s=now_s)
        now_s += cost_s(choice.task, loaded=loaded, costs=orders.costs) * chance.uniform(0.7, 1.6)
        if loaded is None or loaded.model != choice.task.model:
            loaded = OnCard(choice.task.model, now_s - orders.run_s[choice.task.model])
        left = [each for each in left if each is not choice.task]


def test_hardly_anybody_is_refused_who_would_have_started() -> None:
    """Two thousand scenes: of those that are refused, less than one in a hundred would have started in time, also where
    nothing takes as long as it did."""
    chance = random.Random(22)
    refused = wrong = 0
    for _ in range(2_000):
        orders = state(chance.choice((8.0, 15.0, 26.0, 40.0)), chance.choice((4.0, 20.0, 60.0)))
        waiting = [
            task(
                f"{chance.choice('ab')}{number}",
                waited_s=chance.uniform(0, 20),
                priority=chance.choice((STANDARD, STANDARD, *Priority)),
            )
            for number in range(chance.randrange(8))
        ]
        lasts_s = orders.run_s["a"] + chance.choice((0.0, orders.swap_s["a"]))
        since_s = NOW_S - chance.uniform(0, lasts_s)
        running = Running("a", since_s, since_s + lasts_s)
        if not is_hopeless(NEW, waiting, state=orders, running=running, now_s=NOW_S):
            continue
        refused += 1
        free_s = max(NOW_S, since_s + lasts_s * chance.uniform(0.7, 1.6))
        wrong += starts_in_time(NEW, waiting, orders, free_s, chance)
    assert refused > 60
    assert wrong < refused / 100
