"""The degraded queue as SimPy simulates it: its places, its wait, one card, and whatever order is asked for."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeAlias

import simpy
from msgspec import Struct

from contracts.order import Costs, OnCard, Waiting
from contracts.tasks import Priority
from contracts.topology import DEGRADED_MAX_MSGS
from tests.kit.orders import Order

Steps: TypeAlias = Generator[simpy.Event, Any, None]

WAIT_S = 30.0


class Arrival(Struct, frozen=True, kw_only=True):
    """A request that comes at *at_s*."""

    at_s: float
    model: str
    caller: str = ""
    priority: Priority = Priority.STANDARD


class Start(Struct, frozen=True, kw_only=True):
    """A task that was started, and what it found."""

    at_s: float
    task: Waiting
    swapped: bool
    ended_s: float


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the arrivals of one run."""

    starts: Sequence[Start]
    refused: Sequence[Arrival]
    expired: Sequence[Waiting]

    @property
    def served(self) -> int:
        return len(self.starts)

    @property
    def swaps_per_task(self) -> float:
        return sum(start.swapped for start in self.starts) / max(1, self.served)

    @property
    def longest_wait_s(self) -> float:
        return max((start.at_s - start.task.queued_s for start in self.starts), default=0.0)

    def shares(self, of: str) -> dict[str, float]:
        """The share of the tasks served of each model, caller or priority, as *of* names it."""
        found: dict[str, float] = {}
        for start in self.starts:
            name = str(getattr(start.task, of))
            found[name] = found.get(name, 0.0) + 1 / self.served
        return found


def simulate(
    arrivals: Sequence[Arrival],
    *,
    order: Order,
    costs: Costs,
    until_s: float,
    places: int = DEGRADED_MAX_MSGS,
    wait_s: float = WAIT_S,
) -> Outcome:
    """Serves *arrivals*, in order of their times, until *until_s*.

    A task keeps its place until it is started or its wait is over. The card knows what a run and a swap take.
    """
    return _Run(arrivals, order, costs, until_s, places, wait_s).outcome()


class _Run:
    def __init__(
        self,
        arrivals: Sequence[Arrival],
        order: Order,
        costs: Costs,
        until_s: float,
        places: int,
        wait_s: float,
    ) -> None:
        self._env = simpy.Environment()
        self._order, self._measured, self._places, self._wait_s = order, costs, places, wait_s
        self._waiting: list[Waiting] = []
        self._starts: list[Start] = []
        self._refused: list[Arrival] = []
        self._expired: list[Waiting] = []
        self._arrived = self._env.event()
        self._env.process(self._arrive(arrivals))
        self._env.process(self._serve())
        self._env.run(until_s)

    def outcome(self) -> Outcome:
        return Outcome(starts=self._starts, refused=self._refused, expired=self._expired)

    def _arrive(self, arrivals: Sequence[Arrival]) -> Steps:
        for number, arrival in enumerate(arrivals):
            yield self._env.timeout(max(0.0, arrival.at_s - self._env.now))
            self._let_go()
            if len(self._waiting) >= self._places:
                self._refused.append(arrival)
                continue
            self._waiting.append(
                Waiting(
                    task_id=f"{number:09d}",
                    model=arrival.model,
                    caller=arrival.caller,
                    priority=arrival.priority,
                    queued_s=self._env.now,
                    deadline_s=self._env.now + self._wait_s,
                )
            )
            self._arrived.succeed()
            self._arrived = self._env.event()

    def _let_go(self) -> None:
        """What is at its deadline leaves."""
        self._expired += [task for task in self._waiting if self._env.now >= task.deadline_s]
        self._waiting = [task for task in self._waiting if self._env.now < task.deadline_s]

    def _serve(self) -> Steps:
        loaded: OnCard | None = None
        while True:
            self._let_go()
            if not self._waiting:
                yield self._arrived
                continue
            now_s = self._env.now
            task = self._order(self._waiting, loaded, self._measured, now_s)
            self._waiting.remove(task)
            swapped = loaded is None or loaded.model != task.model
            if swapped:
                yield self._env.timeout(self._measured.swap_to(task.model))
                loaded = OnCard(task.model, self._env.now)
            yield self._env.timeout(self._measured.run_of(task.model))
            self._starts.append(Start(at_s=now_s, task=task, swapped=swapped, ended_s=self._env.now))


def costs_alike(models: Sequence[str], *, run_s: float, swap_s: float) -> Costs:
    """All *models* alike."""
    return Costs(run_s=_each(models, run_s), swap_s=_each(models, swap_s))


def _each(models: Sequence[str], seconds: float) -> Mapping[str, float]:
    return dict.fromkeys(models, seconds)
