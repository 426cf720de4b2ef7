"""Which of the tasks that wait for one card starts next. Pure: no clock, no I/O, no logging.

It stands here, and not with the worker that calls it, because the gateway forecasts with the same function when a task
will start, and a lane orders its own queue with it. All times are seconds by one clock of the caller's choice.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from contracts.strict import Strict
from contracts.tasks import GenerationTask, Priority, WaitingGroup
from contracts.wire import Moment

OrderName = Literal["fifo", "swap-aware"]
ORDER_NAMES: Final[tuple[OrderName, ...]] = get_args(OrderName)

# After this time, the seconds of the card that a caller has had count half.
HALF_LIFE_S: Final = 60.0
# Less than this is as good as nothing, and is forgotten.
FORGOTTEN_S: Final = 0.01

# The rules of `choose`, in words for an operator.
RULES: Final[Mapping[int, str]] = {
    2: "the order is first in, first out",
    3: "higher classes had their share, and it is the turn of this one",
    4: "no higher class waits",
    5: "it would have expired during the next run, and its caller has had less of the card",
    6: "its model is loaded, and its slice lasts or no other model waits",
    7: "the oldest task of its model waits longest",
}


def words(rules: Iterable[int]) -> str:
    """*rules* in words for a person; a rule of a later version by its number."""
    return "; ".join(RULES.get(rule, f"rule {rule}") for rule in rules)


class Waiting(Struct, frozen=True, kw_only=True):
    """A task that waits. It may start before *deadline_s*, but not at it."""

    task_id: str
    model: str
    queued_s: float
    deadline_s: float
    caller: str = ""
    priority: Priority = Priority.STANDARD


class OnCard(Struct, frozen=True):
    """The model that is loaded, since *since_s*."""

    model: str
    since_s: float


class Costs(Struct, frozen=True, kw_only=True):
    """What a run of each model takes, and what it takes to load the model in place of another, in seconds.

    A model without a figure counts as the slowest that has one; where none has, as 0.
    """

    run_s: Mapping[str, float] = {}
    swap_s: Mapping[str, float] = {}

    def run_of(self, model: str) -> float:
        return _of(self.run_s, model)

    def swap_to(self, model: str) -> float:
        return _of(self.swap_s, model)


class Policy(Strict, frozen=True):
    """How the card is shared: `degraded` of the settings.

    *swap_share* is the largest share of the card's time that goes into swaps while two models wait all the time, unless
    a slice would be longer than *slice_max_s*. *turn_share* is the least share that each waiting class gets.
    """

    order: OrderName = "swap-aware"
    swap_share: float = 0.2
    slice_max_s: float = 120.0
    turn_share: float = 0.2


class Ledger(Struct, frozen=True, kw_only=True):
    """What the order remembers of the tasks that it started: `started` updates it.

    *callers* holds the seconds of the card that each caller has had, as of *at_s*; half of them is forgotten in
    HALF_LIFE_S. *passed_s* holds, for each class that waits, the seconds that higher classes have had since that
    class was last served.
    """

    callers: Mapping[str, float] = {}
    passed_s: Mapping[Priority, float] = {}
    at_s: float = 0.0

    def had_s(self, caller: str) -> float:
        return self.callers.get(caller, 0.0)


class Choice(Struct, frozen=True):
    """*task* is next, by the *rules* of `choose`; *slice_left_s* of the loaded model's slice were left (0: none)."""

    task: Waiting
    rules: tuple[int, ...]
    slice_left_s: float = 0.0


def choose(
    waiting: Iterable[Waiting],
    *,
    loaded: OnCard | None,
    costs: Costs,
    ledger: Ledger,
    policy: Policy,
    now_s: float,
) -> Choice | None:
    """The task that starts next on a card that is free at *now_s*. The order of *waiting* does not matter.

    1. A task at its deadline is left to expire: it is not started, and costs no swap. None if nothing else waits.
    2. With the order `fifo`: the oldest task.
    3. The highest class whose turn it is: while it waited, higher classes had so much of the card that its oldest
       task, with a swap to its model and back, takes at most `turn_share` of their time and its own together. So no
       class starves another.
    4. If it is no class's turn: the highest class that waits.
    Of this class:
    5. A task of another model that would expire during the next run, if its caller has had less of the card, by half a
       slice or more, than the caller who would be served. So a caller with many tasks does not push out one with a
       single task.
    6. The loaded model, while its slice lasts (`slice_s`).
    7. The model whose oldest task waits longest; that may be the loaded one.
       Of this class and model: the caller who has had the least of the card lately, and of this caller the oldest task.
    """
    able = sorted((task for task in waiting if now_s < task.deadline_s), key=_age)  # 1
    if not able:
        return None
    if policy.order == "fifo":  # 2
        return Choice(able[0], (2,))
    classes = sorted({task.priority for task in able}, key=_rank)
    turns = [
        priority
        for priority in classes
        if _is_turn_of(priority, able, loaded=loaded, costs=costs, ledger=ledger, policy=policy)
    ]
    priority, class_rule = (turns[0], 3) if turns else (classes[0], 4)  # 3, 4
    able = [task for task in able if task.priority is priority]
    here = [task for task in able if loaded is not None and task.model == loaded.model]
    others = [task for task in able if loaded is None or task.model != loaded.model]
    if not here or not others:
        task = _fair(here or others, ledger)
        return Choice(task, (class_rule, 6 if here else 7))
    assert loaded is not None
    whole_s = slice_s(loaded.model, others[0].model, costs=costs, policy=policy)
    left_s = max(0.0, loaded.since_s + whole_s - now_s)
    if left_s:
        following = _fair(here, ledger)
        over_s = now_s + costs.run_of(loaded.model)
        for task in others:  # 5
            less_s = ledger.had_s(following.caller) - ledger.had_s(task.caller)
            if task.deadline_s <= over_s and less_s >= whole_s / 2:
                return Choice(task, (class_rule, 5), left_s)
        return Choice(following, (class_rule, 6), left_s)  # 6
    return Choice(_fair(here if _age(here[0]) < _age(others[0]) else others, ledger), (class_rule, 7))  # 7


def slice_s(model: str, other: str, *, costs: Costs, policy: Policy) -> float:
    """How long *model* is served, counted from when it was loaded, while *other* waits.

    So long that the swap that ends the slice, with one run more, takes at most `swap_share` of it. The run is added
    because no run is cut short: a slice that is shorter than a swap would be worse than none.
    """
    return min(policy.slice_max_s, (costs.swap_to(other) + costs.run_of(model)) / policy.swap_share)


def cost_s(task: Waiting, *, loaded: OnCard | None, costs: Costs) -> float:
    """The expected seconds of the card of *task*, with the swap to its model where another one is loaded."""
    is_there = loaded is not None and loaded.model == task.model
    return costs.run_of(task.model) + (0.0 if is_there else costs.swap_to(task.model))


def started(
    ledger: Ledger,
    task: Waiting,
    waiting: Iterable[Waiting],
    *,
    loaded: OnCard | None,
    costs: Costs,
    now_s: float,
) -> Ledger:
    """*ledger* after *task* was started at *now_s*, while those *waiting* waited. Its expected cost is charged to its
    caller, and counted for each lower class as time that passed it by."""
    spent_s = cost_s(task, loaded=loaded, costs=costs)
    left = 0.5 ** (max(0.0, now_s - ledger.at_s) / HALF_LIFE_S)
    callers = {caller: had_s * left for caller, had_s in ledger.callers.items() if had_s * left > FORGOTTEN_S}
    callers[task.caller] = callers.get(task.caller, 0.0) + spent_s
    lower = {each.priority for each in waiting if each.priority.rank > task.priority.rank and now_s < each.deadline_s}
    passed_s = {
        priority: ledger.passed_s.get(priority, 0.0) + (spent_s if priority in lower else 0.0)
        for priority in {*ledger.passed_s, *lower} - {task.priority}
    }
    return Ledger(callers=callers, passed_s=passed_s, at_s=now_s)


def _is_turn_of(
    priority: Priority,
    able: Sequence[Waiting],
    *,
    loaded: OnCard | None,
    costs: Costs,
    ledger: Ledger,
    policy: Policy,
) -> bool:
    passed_s = ledger.passed_s.get(priority, 0.0)
    if not passed_s:
        return False
    oldest = next(task for task in able if task.priority is priority)
    spent_s = cost_s(oldest, loaded=loaded, costs=costs)
    if loaded is not None and loaded.model != oldest.model:
        spent_s += costs.swap_to(loaded.model)
    return passed_s * policy.turn_share >= spent_s * (1 - policy.turn_share)


def _fair(tasks: Sequence[Waiting], ledger: Ledger) -> Waiting:
    """The next of *tasks*, which are of one class and sorted by age. Only tasks of the first one's model are
    considered."""
    model = tasks[0].model
    return min(
        (task for task in tasks if task.model == model), key=lambda task: (ledger.had_s(task.caller), *_age(task))
    )


def _age(task: Waiting) -> tuple[float, str]:
    return task.queued_s, task.task_id


def _rank(priority: Priority) -> int:
    return priority.rank


def _of(seconds: Mapping[str, float], model: str) -> float:
    found = seconds.get(model)
    return max(seconds.values(), default=0.0) if found is None else found


class Forecast(Struct, frozen=True, kw_only=True):
    """When a task will start; *position* 1 is the next one. *in_time*: before its deadline."""

    position: int
    start_s: float
    in_time: bool


def forecast(
    waiting: Iterable[Waiting],
    *,
    loaded: OnCard | None,
    costs: Costs,
    ledger: Ledger,
    policy: Policy,
    free_s: float,
) -> dict[str, Forecast]:
    """By its id, when each of those *waiting* will start on a card that is free at *free_s*, if no other task comes.

    A task that cannot start in time gives up its place and costs nothing. It is listed behind those that can, with the
    moment at which it would start if it went on waiting.
    """
    left = {task.task_id: task for task in waiting}
    found: dict[str, Forecast] = {}
    now_s, in_time = free_s, True
    while left:
        choice = choose(left.values(), loaded=loaded, costs=costs, ledger=ledger, policy=policy, now_s=now_s)
        if choice is None:
            in_time = False
            left = {task_id: replace(task, deadline_s=float("inf")) for task_id, task in left.items()}
            continue
        task = choice.task
        found[task.task_id] = Forecast(position=len(found) + 1, start_s=now_s, in_time=in_time)
        ledger = started(ledger, task, left.values(), loaded=loaded, costs=costs, now_s=now_s)
        del left[task.task_id]
        run_s = costs.run_of(task.model)
        now_s += cost_s(task, loaded=loaded, costs=costs)
        if loaded is None or loaded.model != task.model:
            loaded = OnCard(task.model, now_s - run_s)
    return found


class OrderTally(Struct, frozen=True, kw_only=True):
    """How a leader's order has used the card since it began to lead: tasks that ran, swaps, the seconds of each, and
    how many slices ended for each cause."""

    tasks: int = 0
    swaps: int = 0
    running_s: float = 0.0
    swapping_s: float = 0.0
    slice_ends: dict[str, int] = {}


class OrderState(Struct, frozen=True, kw_only=True):
    """The state of a leader's order as of *at*: everything that `forecast` needs but the tasks.

    *loaded* is the model on the card since *loaded_at*. The card is free at *free_at*; None if it is free now.
    *callers* are those who have had the most of the card lately.
    """

    at: Moment
    order: OrderName
    swap_share: float
    slice_max_s: float
    turn_share: float
    loaded: str | None = None
    loaded_at: Moment | None = None
    free_at: Moment | None = None
    run_s: dict[str, float] = {}
    swap_s: dict[str, float] = {}
    callers: dict[str, float] = {}
    passed_s: dict[Priority, float] = {}
    tally: OrderTally = OrderTally()

    @property
    def policy(self) -> Policy:
        return Policy(
            order=self.order, swap_share=self.swap_share, slice_max_s=self.slice_max_s, turn_share=self.turn_share
        )

    @property
    def on_card(self) -> OnCard | None:
        if self.loaded is None or self.loaded_at is None:
            return None
        return OnCard(self.loaded, self.loaded_at.timestamp())

    @property
    def costs(self) -> Costs:
        return Costs(run_s=self.run_s, swap_s=self.swap_s)

    @property
    def ledger(self) -> Ledger:
        return Ledger(callers=self.callers, passed_s=self.passed_s, at_s=self.at.timestamp())


def waiting_of(task: GenerationTask) -> Waiting:
    """*task* as the order sees it, with times in seconds since the epoch."""
    return Waiting(
        task_id=task.message_id,
        model=task.model,
        caller=task.caller,
        priority=task.priority,
        queued_s=task.queued_at.timestamp(),
        deadline_s=task.deadline_at.timestamp(),
    )


def groups(waiting: Sequence[Waiting], *, now_s: float) -> tuple[WaitingGroup, ...]:
    """Those *waiting*, counted by class, the highest first, and by model, in the form that a task record keeps."""
    found: dict[tuple[Priority, str], list[float]] = {}
    for task in waiting:
        found.setdefault((task.priority, task.model), []).append(max(0.0, now_s - task.queued_s))
    return tuple(
        WaitingGroup(model=model, priority=priority, count=len(waits_s), oldest_s=round(max(waits_s), 3))
        for (priority, model), waits_s in sorted(found.items(), key=lambda each: (each[0][0].rank, each[0][1]))
    )
