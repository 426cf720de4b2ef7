"""Which task is next: the rules one by one, and what has to hold of any of them."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.order import (
    RULES,
    Choice,
    Costs,
    Ledger,
    OnCard,
    Policy,
    Waiting,
    choose,
    cost_s,
    slice_s,
    started,
)
from contracts.tasks import Priority

NOW_S = 100.0
COSTS = Costs(run_s={"a": 2, "b": 2}, swap_s={"a": 4, "b": 4})
LOADED = OnCard("a", NOW_S - 10)
SLICE_S = 30.0
POLICY = Policy()
INTERACTIVE, STANDARD, BACKGROUND = Priority


def waiting(name: str, *, waited_s: float = 1, left_s: float | None = None, **changes: Any) -> Waiting:
    """A task named by its model first, as `a1`."""
    deadline_s = NOW_S - waited_s + 30 if left_s is None else NOW_S + left_s
    task = Waiting(task_id=name, model=name[0], queued_s=NOW_S - waited_s, deadline_s=deadline_s, caller="one")
    return replace(task, **changes)


def chosen(tasks: Sequence[Waiting], loaded: OnCard | None = LOADED, **changes: Any) -> Choice | None:
    arguments: dict[str, Any] = {"costs": COSTS, "ledger": Ledger(), "policy": POLICY, "now_s": NOW_S}
    return choose(tasks, loaded=loaded, **arguments | changes)


def passed(**seconds: float) -> Ledger:
    return Ledger(passed_s={Priority(name): passed_s for name, passed_s in seconds.items()})


LATE = OnCard("a", NOW_S - SLICE_S)


@pytest.mark.parametrize(
    ("tasks", "loaded", "changes", "expected", "rules"),
    [
        pytest.param([waiting("a1", left_s=0)], LOADED, {}, None, (), id="1-at-its-deadline"),
        pytest.param([waiting("b1", waited_s=30), waiting("a1")], LATE, {}, "a1", (4, 6), id="1-costs-no-swap"),
        pytest.param(
            [waiting("a1"), waiting("b1", waited_s=2)],
            LOADED,
            {"policy": Policy(order="fifo")},
            "b1",
            (2,),
            id="2-fifo",
        ),
        pytest.param(
            [waiting("a1", priority=INTERACTIVE), waiting("a2", waited_s=9)],
            LOADED,
            {"ledger": passed(standard=8)},
            "a2",
            (3, 6),
            id="3-the-turn-of-a-class",
        ),
        pytest.param(
            [waiting("a1", priority=INTERACTIVE), waiting("a2", waited_s=9)],
            LOADED,
            {"ledger": passed(standard=7.9)},
            "a1",
            (4, 6),
            id="3-not-yet",
        ),
        pytest.param(
            [waiting("a1", priority=INTERACTIVE), waiting("b1", waited_s=9)],
            LOADED,
            {"ledger": passed(standard=39.9)},
            "a1",
            (4, 6),
            id="3-not-yet-with-the-swap-and-back",
        ),
        pytest.param(
            [waiting("a1", priority=INTERACTIVE), waiting("b1", waited_s=9)],
            LOADED,
            {"ledger": passed(standard=40)},
            "b1",
            (3, 7),
            id="3-the-turn-with-a-swap",
        ),
        pytest.param(
            [waiting("a1", waited_s=9), waiting("b1", priority=INTERACTIVE)], LOADED, {}, "b1", (4, 7), id="4-class"
        ),
        pytest.param(
            [waiting("a1"), waiting("b1", left_s=2, caller="two")],
            LOADED,
            {"ledger": Ledger(callers={"one": 15})},
            "b1",
            (4, 5),
            id="5-whoever-had-less",
        ),
        pytest.param(
            [waiting("a1"), waiting("b1", left_s=2, caller="two")],
            LOADED,
            {"ledger": Ledger(callers={"one": 14.9})},
            "a1",
            (4, 6),
            id="5-not-much-less",
        ),
        pytest.param(
            [waiting("a1"), waiting("b1", left_s=2.1, caller="two")],
            LOADED,
            {"ledger": Ledger(callers={"one": 99})},
            "a1",
            (4, 6),
            id="5-it-can-wait-for-one-more",
        ),
        pytest.param([waiting("a1"), waiting("b1", waited_s=9)], LOADED, {}, "a1", (4, 6), id="6-within-the-slice"),
        pytest.param([waiting("a1"), waiting("b1", waited_s=9)], LATE, {}, "b1", (4, 7), id="7-after-it"),
        pytest.param([waiting("a1", waited_s=9), waiting("b1")], LATE, {}, "a1", (4, 7), id="7-the-loaded-one"),
        pytest.param([waiting("a1"), waiting("b1", waited_s=9)], None, {}, "b1", (4, 7), id="7-nothing-is-loaded"),
        pytest.param(
            [waiting("a1", waited_s=9), waiting("a2", caller="two")],
            LOADED,
            {"ledger": Ledger(callers={"one": 2})},
            "a2",
            (4, 6),
            id="fair-between-callers",
        ),
    ],
)
def test_the_next_task(
    tasks: list[Waiting], loaded: OnCard | None, changes: dict[str, Any], expected: str | None, rules: tuple[int, ...]
) -> None:
    choice = chosen(tasks, loaded, **changes)
    assert (None if choice is None else choice.task.task_id) == expected
    assert (() if choice is None else choice.rules) == rules


def test_a_slice_grows_with_what_was_measured_up_to_its_cap() -> None:
    assert slice_s("a", "b", costs=COSTS, policy=POLICY) == SLICE_S
    slow = Costs(run_s={"a": 26, "b": 26}, swap_s={"a": 60, "b": 60})
    assert slice_s("a", "b", costs=slow, policy=POLICY) == 120
    assert slice_s("a", "b", costs=slow, policy=Policy(slice_max_s=600)) == 430


def test_what_was_not_measured_counts_as_the_slowest_that_was() -> None:
    costs = Costs(run_s={"a": 2}, swap_s={"a": 4, "b": 9})
    assert cost_s(waiting("c1"), loaded=None, costs=costs) == 11
    assert cost_s(waiting("c1"), loaded=None, costs=Costs()) == 0


def test_the_ledger_halves_what_a_caller_had() -> None:
    ledger = started(Ledger(), waiting("b1"), [], loaded=LOADED, costs=COSTS, now_s=NOW_S)
    assert ledger.had_s("one") == 6
    later = started(ledger, waiting("a1", caller="two"), [], loaded=LOADED, costs=COSTS, now_s=NOW_S + 60)
    assert (later.had_s("one"), later.had_s("two")) == (3, 2)
    assert "one" not in started(later, waiting("a2", caller="two"), [], loaded=None, costs=Costs(), now_s=1e6).callers


def test_the_ledger_counts_what_went_by_a_class_while_it_waited() -> None:
    both = [waiting("a1", priority=INTERACTIVE), waiting("a2"), waiting("a3", priority=BACKGROUND, left_s=0)]
    ledger = started(Ledger(), both[0], both, loaded=LOADED, costs=COSTS, now_s=NOW_S)
    assert ledger.passed_s == {STANDARD: 2}
    alone = started(ledger, both[0], both[:1], loaded=LOADED, costs=COSTS, now_s=NOW_S)
    assert alone.passed_s == {STANDARD: 2}
    assert started(alone, both[1], both, loaded=LOADED, costs=COSTS, now_s=NOW_S).passed_s == {}


def test_every_rule_that_chooses_has_words() -> None:
    documented = {
        int(line.split(".")[0]) for line in map(str.strip, (choose.__doc__ or "").splitlines()) if line[:1].isdigit()
    }
    assert set(RULES) == documented - {1}


# What has to hold

SECONDS = st.integers(0, 40).map(float)
# Mostly one class: most rules are about what happens within one.
PRIORITIES = st.sampled_from((STANDARD, STANDARD, STANDARD, INTERACTIVE, BACKGROUND))
TASKS = st.lists(
    st.builds(
        lambda number, model, waited_s, caller, priority: waiting(
            f"{model}{number}", waited_s=waited_s, caller=caller, priority=priority
        ),
        st.integers(0, 9_999),
        st.sampled_from("abc"),
        SECONDS,
        st.sampled_from(("one", "two", "three")),
        PRIORITIES,
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda task: task.task_id,
)
SLOT = st.none() | st.builds(OnCard, st.sampled_from("abc"), st.integers(0, 100).map(float))
ANY_COSTS = st.builds(
    lambda run_s, swap_s: Costs(
        run_s=dict(zip("abc", run_s, strict=True)), swap_s=dict(zip("abc", swap_s, strict=True))
    ),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(0, 9)] * 3),
)
LEDGERS = st.builds(
    lambda had, gone: Ledger(
        callers=dict(zip(("one", "two", "three"), had, strict=True)), passed_s=dict(zip(Priority, gone, strict=True))
    ),
    st.tuples(*[SECONDS] * 3),
    st.tuples(st.just(0.0), SECONDS, SECONDS),
)


@given(TASKS, SLOT, ANY_COSTS, LEDGERS, st.randoms(use_true_random=False))
def test_equal_inputs_give_equal_answers_in_whatever_order_they_come(
    tasks: list[Waiting], loaded: OnCard | None, costs: Costs, ledger: Ledger, chance: random.Random
) -> None:
    shuffled = list(tasks)
    chance.shuffle(shuffled)
    same = {"costs": costs, "ledger": ledger}
    assert chosen(tasks, loaded, **same) == chosen(shuffled, loaded, **same)


@given(TASKS, SLOT, ANY_COSTS, LEDGERS, st.sampled_from(("fifo", "swap-aware")))
def test_it_starts_what_may_start_and_first_in_first_out_within_model_class_and_caller(
    tasks: list[Waiting], loaded: OnCard | None, costs: Costs, ledger: Ledger, order: Any
) -> None:
    choice = chosen(tasks, loaded, costs=costs, ledger=ledger, policy=Policy(order=order))
    able = [task for task in tasks if task.deadline_s > NOW_S]
    if choice is None:
        assert not able
        return
    task = choice.task
    assert task in able
    alike = [
        each for each in able if (each.model, each.priority, each.caller) == (task.model, task.priority, task.caller)
    ]
    assert task == min(alike, key=lambda each: (each.queued_s, each.task_id))


@settings(max_examples=400)
@given(TASKS, SLOT, ANY_COSTS, LEDGERS)
def test_no_swap_while_the_loaded_model_could_run_within_its_slice(
    tasks: list[Waiting], loaded: OnCard | None, costs: Costs, ledger: Ledger
) -> None:
    choice = chosen(tasks, loaded, costs=costs, ledger=ledger)
    if choice is None or loaded is None or choice.task.model == loaded.model:
        return
    able = [task for task in tasks if task.deadline_s > NOW_S and task.priority is choice.task.priority]
    here = [task for task in able if task.model == loaded.model]
    others = sorted(
        (task for task in able if task.model != loaded.model), key=lambda task: (task.queued_s, task.task_id)
    )
    if not here:
        return
    whole_s = slice_s(loaded.model, others[0].model, costs=costs, policy=POLICY)
    if loaded.since_s + whole_s > NOW_S:
        assert choice.rules[1] == 5
        assert choice.task.deadline_s <= NOW_S + costs.run_of(loaded.model)
        had_s = min(ledger.had_s(task.caller) for task in here)
        assert had_s - ledger.had_s(choice.task.caller) >= whole_s / 2
    else:
        assert min(task.queued_s for task in here) >= others[0].queued_s


@settings(max_examples=60, deadline=None)
@given(
    ANY_COSTS,
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc"), PRIORITIES), min_size=20, max_size=60),
    st.sampled_from((1, 2)),
)
def test_nobody_starves(costs: Costs, came: list[tuple[int, str, Priority]], callers: int) -> None:
    """Served one after the other, without an end of the wait: of a class, a younger task of another model goes first
    only within a slice, and each slice begins with the oldest; and no class is passed over for longer than its turn."""
    arrivals, at_s = [], 0.0
    for number, (gap_s, model, priority) in enumerate(came):
        at_s += gap_s
        arrivals.append(
            Waiting(
                task_id=f"{number:03d}",
                model=model,
                queued_s=at_s,
                deadline_s=1e9,
                priority=priority,
                caller=str(number % callers),
            )
        )
    now_s, loaded, ledger = 0.0, None, Ledger()
    left = list(arrivals)
    each_s = [costs.run_of(model) + 2 * max(costs.swap_s.values()) for model in "abc"]
    while left:
        now_s = max(now_s, min(task.queued_s for task in left))
        there = [task for task in left if task.queued_s <= now_s]
        choice = choose(there, loaded=loaded, costs=costs, ledger=ledger, policy=POLICY, now_s=now_s)
        assert choice is not None
        task = choice.task
        same = [each for each in there if each.priority is task.priority]
        older = [each for each in same if each.queued_s < task.queued_s and each.model != task.model]
        if loaded is None or task.model != loaded.model:
            assert task.model in {each.model for each in same if each.queued_s == min(e.queued_s for e in same)}
        elif older:
            oldest = min(older, key=lambda each: (each.queued_s, each.task_id))
            whole_s = slice_s(loaded.model, oldest.model, costs=costs, policy=POLICY)
            may_be_fair = any(each.caller != task.caller for each in same if each.model == task.model)
            assert now_s < loaded.since_s + whole_s or may_be_fair
        turn_s = max(each_s) * (1 - POLICY.turn_share) / POLICY.turn_share
        for priority in {each.priority for each in there}:
            assert ledger.passed_s.get(priority, 0.0) <= turn_s + 2 * max(each_s)
        ledger = started(ledger, task, there, loaded=loaded, costs=costs, now_s=now_s)
        left.remove(task)
        if loaded is None or task.model != loaded.model:
            now_s += costs.swap_to(task.model)
            loaded = OnCard(task.model, now_s)
        now_s += costs.run_of(task.model)
