"""A SimPy simulation of the degraded queue and the lanes before it: their places, their waits, one card for all models,
and any order that the caller asks for.

`warmlane replay` runs a recorded day through it, `warmlane capacity` a day that is made up, and `make order` compares
orders in it. Times are seconds from the beginning of the day.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import repeat
from typing import Any, TypeAlias

import simpy
from msgspec import Struct

from contracts.order import Costs, Ledger, OnCard, Policy, Waiting, choose, started
from contracts.tasks import Priority
from contracts.topology import DEGRADED_MAX_MSGS

Steps: TypeAlias = Generator[simpy.Event, Any, None]
# Chooses the next task among those that wait and may still start, which come oldest first.
ChooseNext = Callable[[Sequence[Waiting], OnCard | None, Costs, float], Waiting]

WAIT_S = 30.0


def first_in_first_out(waiting: Sequence[Waiting], loaded: OnCard | None, costs: Costs, now_s: float) -> Waiting:
    """In order of arrival."""
    return waiting[0]


def by_policy(policy: Policy) -> ChooseNext:
    """`contracts.order.choose` by *policy*, with a ledger of its own."""
    ledger = Ledger()

    def order(waiting: Sequence[Waiting], loaded: OnCard | None, costs: Costs, now_s: float) -> Waiting:
        nonlocal ledger
        choice = choose(waiting, loaded=loaded, costs=costs, ledger=ledger, policy=policy, now_s=now_s)
        assert choice is not None
        ledger = started(ledger, choice.task, waiting, loaded=loaded, costs=costs, now_s=now_s)
        return choice.task

    return order


class Arrival(Struct, frozen=True, kw_only=True):
    """A request that comes at *at_s*.

    Its run takes *run_s*; None: as long as the costs say for its model. Its caller withdraws it at *withdrawn_s*, if it
    still waits then. *to_lane*: routing sends it to a lane, where its model has one.
    """

    at_s: float
    model: str
    caller: str = ""
    priority: Priority = Priority.STANDARD
    run_s: float | None = None
    withdrawn_s: float = math.inf
    to_lane: bool = False


class SimulatedStart(Struct, frozen=True, kw_only=True):
    """*task*, which came as *arrival*, was started at *at_s*, after a swap where it *swapped*."""

    at_s: float
    task: Waiting
    arrival: Arrival
    swapped: bool
    ended_s: float
    on_lane: bool = False


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the arrivals of one run: each is in one of these, or still waits.

    *refused* found no place; *expired* waited in vain; *withdrawn* were taken back by their callers.
    """

    starts: Sequence[SimulatedStart]
    refused: Sequence[Arrival]
    expired: Sequence[Arrival]
    withdrawn: Sequence[Arrival]

    @property
    def served(self) -> int:
        return len(self.starts)

    @property
    def swaps_per_task(self) -> float:
        return sum(start.swapped for start in self.starts) / max(1, self.served)

    @property
    def longest_wait_s(self) -> float:
        """The longest wait in one queue of a task that was started."""
        return max((start.at_s - start.task.queued_s for start in self.starts), default=0.0)

    def shares(self, of: str) -> dict[str, float]:
        """The share of the served tasks by model, caller or priority, as *of* names it."""
        found: dict[str, float] = {}
        for start in self.starts:
            name = str(getattr(start.task, of))
            found[name] = found.get(name, 0.0) + 1 / self.served
        return found


class SimulatedLanes(Struct, frozen=True, kw_only=True):
    """The lanes of each model, which take what waits for them, each by an *order* of its own (ADR 0042).

    A task waits there for *wait_s* at most, and then goes to the degraded queue. The lanes have their models loaded.
    """

    count: Mapping[str, int] = {}
    wait_s: float = WAIT_S
    run_s: Mapping[str, float] = {}
    order: Callable[[], ChooseNext] = lambda: first_in_first_out


def simulate(
    arrivals: Sequence[Arrival],
    *,
    order: ChooseNext,
    costs: Costs,
    until_s: float | None = None,
    places: int = DEGRADED_MAX_MSGS,
    wait_s: float = WAIT_S,
    lanes: SimulatedLanes | None = None,
) -> Outcome:
    """Serves *arrivals*, in order of their times, until *until_s*; None: until no task waits.

    A task keeps its place until it is started or its wait is over. *order* knows what a run and a swap take (*costs*).
    """
    return _Run(arrivals, order, costs, until_s, places, wait_s, lanes or SimulatedLanes()).outcome()


class _Line:
    """The tasks that wait in one queue. An idle server of the queue waits for *came*."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.waiting: list[Waiting] = []
        self.came = env.event()

    def add(self, task: Waiting) -> None:
        self.waiting.append(task)
        if self.came.callbacks:  # a server waits for it
            self.came.succeed()
            self.came = self._env.event()


class _Run:
    def __init__(
        self,
        arrivals: Sequence[Arrival],
        order: ChooseNext,
        costs: Costs,
        until_s: float | None,
        places: int,
        wait_s: float,
        lanes: SimulatedLanes,
    ) -> None:
        self._env = simpy.Environment()
        self._costs, self._places, self._wait_s, self._lanes = costs, places, wait_s, lanes
        self._arrivals: dict[str, Arrival] = {}
        self._starts: list[SimulatedStart] = []
        self._refused: list[Arrival] = []
        self._expired: list[Arrival] = []
        self._withdrawn: list[Arrival] = []
        self._degraded = _Line(self._env)
        self._lines = {model: _Line(self._env) for model, count in lanes.count.items() if count}
        self._env.process(self._arrive(arrivals))
        self._env.process(self._serve(self._degraded, order, costs))
        for model, line in self._lines.items():
            for _ in repeat(None, lanes.count[model]):
                lane = OnCard(model, 0.0)
                self._env.process(self._serve(line, lanes.order(), Costs(run_s=lanes.run_s), lane))
        self._env.run(until_s)

    def outcome(self) -> Outcome:
        return Outcome(starts=self._starts, refused=self._refused, expired=self._expired, withdrawn=self._withdrawn)

    def _arrive(self, arrivals: Sequence[Arrival]) -> Steps:
        for number, arrival in enumerate(arrivals):
            yield self._env.timeout(max(0.0, arrival.at_s - self._env.now))
            task_id = f"{number:09d}"
            self._arrivals[task_id] = arrival
            line = self._lines.get(arrival.model) if arrival.to_lane else None
            if line is None:
                self._to_degraded(task_id)
                continue
            task = self._task(task_id, self._lanes.wait_s)
            line.add(task)
            self._env.process(self._pass_on(line, task))

    def _pass_on(self, line: _Line, task: Waiting) -> Steps:
        """*task* leaves the lanes that have not taken it in time."""
        yield self._env.timeout(task.deadline_s - self._env.now)
        if task not in line.waiting:
            return
        line.waiting.remove(task)
        if self._env.now >= self._arrivals[task.task_id].withdrawn_s:
            self._withdrawn.append(self._arrivals[task.task_id])
        else:
            self._to_degraded(task.task_id)

    def _to_degraded(self, task_id: str) -> None:
        self._let_go()
        if len(self._degraded.waiting) >= self._places:
            self._refused.append(self._arrivals[task_id])
        else:
            self._degraded.add(self._task(task_id, self._wait_s))

    def _task(self, task_id: str, wait_s: float) -> Waiting:
        arrival = self._arrivals[task_id]
        return Waiting(
            task_id=task_id,
            model=arrival.model,
            caller=arrival.caller,
            priority=arrival.priority,
            queued_s=self._env.now,
            deadline_s=min(self._env.now + wait_s, max(self._env.now, arrival.withdrawn_s)),
        )

    def _let_go(self) -> None:
        """Tasks that are at their deadline leave the degraded queue."""
        line, now_s = self._degraded, self._env.now
        over = [task for task in line.waiting if now_s >= task.deadline_s]
        if not over:
            return
        for task in over:
            arrival = self._arrivals[task.task_id]
            (self._withdrawn if now_s >= arrival.withdrawn_s == task.deadline_s else self._expired).append(arrival)
        line.waiting = [task for task in line.waiting if now_s < task.deadline_s]

    def _serve(self, line: _Line, order: ChooseNext, costs: Costs, lane: OnCard | None = None) -> Steps:
        """Serves what waits in *line*, one after the other: on a *lane*, or on the card of the degraded worker."""
        loaded = lane
        while True:
            now_s = self._env.now
            if lane is None:
                self._let_go()
            able = [task for task in line.waiting if now_s < task.deadline_s]
            if not able:
                yield line.came
                continue
            task = order(able, loaded, costs, now_s)
            line.waiting.remove(task)
            arrival = self._arrivals[task.task_id]
            swapped = loaded is None or loaded.model != task.model
            if swapped:
                yield self._env.timeout(costs.swap_to(task.model))
                loaded = OnCard(task.model, self._env.now)
            yield self._env.timeout(costs.run_of(task.model) if arrival.run_s is None else arrival.run_s)
            self._starts.append(
                SimulatedStart(
                    at_s=now_s,
                    task=task,
                    arrival=arrival,
                    swapped=swapped,
                    ended_s=self._env.now,
                    on_lane=lane is not None,
                )
            )


def costs_alike(models: Sequence[str], *, run_s: float, swap_s: float) -> Costs:
    """The same costs for all *models*."""
    return Costs(run_s=dict.fromkeys(models, run_s), swap_s=dict.fromkeys(models, swap_s))
