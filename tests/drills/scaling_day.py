"""A day of traffic for one model, as SimPy simulates it: with lanes that follow the demand, or a fixed number of lanes.

These are real: the demand (`gateway/rules/demand.py`, over real task records), the autoscaler's arithmetic
(`scaling_rules.py`), a pod's deletion cost (`ops/lanes/kubernetes/deletion_cost.py`) and the limits of the queues. How
long a run, a cold start and a swap take is assumed. Times are seconds from the beginning of the day.
"""

import math
import random
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import simpy
from msgspec import Struct
from msgspec.structs import replace

from contracts.lanes import LaneState
from contracts.order import Costs
from contracts.tasks import GenerationTask, TaskStatus
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.rules.demand import demand
from ops.lanes.kubernetes.deletion_cost import Occupation, cost_of
from tests.drills.scaling_rules import SYNC_S, Autoscaler, Pick, ScaledObject, picked
from tests.kit.records import NOW, pending_task

Steps: TypeAlias = Generator[simpy.Event, Any, None]
MODEL: Final = "anisora"
DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0
WAIT_S: Final = 30.0


class Times(Struct, frozen=True):
    """How long things take."""

    run_s: float = 60.0
    cold_start_s: float = 120.0
    swap_s: float = 15.0


class Lanes(Struct, frozen=True, kw_only=True):
    """*first* lanes are warm at the beginning. Without *rules* that number stays. *keeps_costs*: the supervisor
    updates the deletion cost of each pod."""

    first: int = 1
    rules: ScaledObject | None = None
    keeps_costs: bool = True


class Counted(Struct, frozen=True, kw_only=True):
    """What became of one day."""

    came: int
    by_lane: int
    by_degraded: int
    turned_away: int
    """Refused with `queue_overloaded`. Requests in none of these three counts still wait at midnight."""
    waits_s: Sequence[float]
    """From arrival to start, of the requests that were served."""
    lane_hours: float
    """From the moment that a lane takes its card until it gives it back."""
    more: int
    fewer: int
    busy_told_to_go: int
    lanes: Sequence[tuple[float, int]]
    """How many lanes held a card from each moment on."""
    demand: Sequence[tuple[float, int]]


def arrivals(rate_per_s: Callable[[float], float], *, most_per_s: float, seed: int) -> list[float]:
    """Random moments at the rate *rate_per_s*, which is at most *most_per_s*."""
    chance, at_s, found = random.Random(seed), 0.0, []
    while (at_s := at_s + chance.expovariate(most_per_s)) < DAY_S:
        if chance.random() * most_per_s < rate_per_s(at_s):
            found.append(at_s)
    return found


def simulate(came: Sequence[float], lanes: Lanes, times: Times) -> Counted:
    """Simulates one day, until midnight."""
    return _Day(came, lanes, times).counted()


class _Lane:
    def __init__(self, name: int, made_s: float) -> None:
        self.name, self.made_s = name, made_s
        self.word = Occupation(LaneState.STARTING)
        self.ready_s = math.inf
        self.leaves = False

    def says(self, state: LaneState, now_s: float) -> None:
        self.word = self.word.then(state, now_s=now_s)


class _Day:
    def __init__(self, came: Sequence[float], lanes: Lanes, times: Times) -> None:
        self._env = simpy.Environment()
        self._times, self._keeps_costs = times, lanes.keeps_costs
        self._live: dict[str, GenerationTask] = {}
        self._queued: list[str] = []
        self._degraded: list[str] = []
        self._news = self._env.event()
        self._lanes: dict[int, _Lane] = {}
        self._numbers = iter(range(10**6))
        self._waits_s: list[float] = []
        self._by_lane = self._by_degraded = self._turned_away = self._busy_gone = 0
        self._lane_s = 0.0
        self._held: list[tuple[float, int]] = []
        self._demand: list[tuple[float, int]] = []
        self._came = came
        for _ in range(lanes.first):
            self._begin(cold_start_s=0.0)
        self._env.process(self._arrive())
        self._env.process(self._serve_degraded())
        self._autoscaler = None if lanes.rules is None else Autoscaler(rules=lanes.rules)
        if self._autoscaler is not None:
            self._env.process(self._scale())
        self._env.run(DAY_S)
        for lane in list(self._lanes.values()):
            self._lane_s += DAY_S - lane.made_s

    def counted(self) -> Counted:
        changes = () if self._autoscaler is None else self._autoscaler.changes
        return Counted(
            came=len(self._came),
            by_lane=self._by_lane,
            by_degraded=self._by_degraded,
            turned_away=self._turned_away,
            waits_s=self._waits_s,
            lane_hours=self._lane_s / HOUR_S,
            more=sum(max(0, change.by) for change in changes),
            fewer=sum(max(0, -change.by) for change in changes),
            busy_told_to_go=self._busy_gone,
            lanes=self._held,
            demand=self._demand,
        )

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arrive(self) -> Steps:
        for number, at_s in enumerate(self._came):
            yield self._env.timeout(at_s - self._env.now)
            name = f"{number:06d}"
            until = self._moment(WAIT_S)
            self._live[name] = replace(pending_task(name), model=MODEL, queued_at=self._moment(), deadline_at=until)
            if any(lane.word.state in {LaneState.WARM, LaneState.BUSY} for lane in self._lanes.values()):
                self._queued.append(name)
                self._report()
                self._env.process(self._pass_on(name))
            else:
                self._to_degraded(name)

    def _pass_on(self, name: str) -> Steps:
        """A task that no lane took in time goes to the degraded queue (FR-021 c)."""
        yield self._env.timeout(WAIT_S)
        if name in self._queued:
            self._queued.remove(name)
            self._to_degraded(name)

    def _to_degraded(self, name: str) -> None:
        self._let_go()
        if len(self._degraded) >= DEGRADED_MAX_MSGS:
            self._turn_away(name)
            return
        self._degraded.append(name)
        self._live[name] = replace(self._live[name], route="degraded", deadline_at=self._moment(WAIT_S))
        self._report()

    def _let_go(self) -> None:
        for name in [name for name in self._degraded if self._live[name].deadline_at <= self._moment()]:
            self._degraded.remove(name)
            self._turn_away(name)

    def _turn_away(self, name: str) -> None:
        self._turned_away += 1
        del self._live[name]

    def _serve_degraded(self) -> Steps:
        is_loaded = False
        while True:
            self._let_go()
            if not self._degraded:
                yield self._news
                continue
            name = self._start(self._degraded.pop(0))
            self._by_degraded += 1
            yield self._env.timeout(self._times.run_s + (0.0 if is_loaded else self._times.swap_s))
            is_loaded = True
            del self._live[name]

    def _start(self, name: str) -> str:
        self._waits_s.append(self._env.now - self._came[int(name)])
        self._live[name] = replace(self._live[name], status=TaskStatus.PROCESSING)
        return name

    # ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, *, cold_start_s: float) -> None:
        lane = _Lane(next(self._numbers), self._env.now)
        self._lanes[lane.name] = lane
        self._env.process(self._live_as(lane, cold_start_s))
        self._note()

    def _live_as(self, lane: _Lane, cold_start_s: float) -> Steps:
        warm = self._env.timeout(cold_start_s)
        while not lane.leaves and not warm.processed:
            yield warm | self._news
        if not lane.leaves:
            lane.ready_s = self._env.now
            lane.says(LaneState.WARM, self._env.now)
        while not lane.leaves:
            if not self._queued:
                yield self._news
                continue
            name = self._start(self._queued.pop(0))
            lane.says(LaneState.BUSY, self._env.now)
            self._by_lane += 1
            yield self._env.timeout(self._times.run_s)
            lane.says(LaneState.WARM, self._env.now)
            del self._live[name]
        del self._lanes[lane.name]
        self._lane_s += self._env.now - lane.made_s
        self._note()

    def _scale(self) -> Steps:
        assert self._autoscaler is not None
        while True:
            yield self._env.timeout(SYNC_S)
            found = demand(MODEL, self._live.values(), now=self._moment())
            staying = [lane for lane in self._lanes.values() if not lane.leaves]
            self._autoscaler, count = self._autoscaler.asked(found, lanes=len(staying), now_s=self._env.now)
            self._demand.append((self._env.now, found))
            for _ in range(count - len(staying)):
                self._begin(cold_start_s=self._times.cold_start_s)
            for _ in range(len(staying) - count):
                self._end_one()

    def _end_one(self) -> None:
        now_s = self._env.now
        picks = [
            Pick(
                name=lane.name,
                is_ready=lane.word.state is not LaneState.STARTING,
                cost=cost_of(lane.word, now_s=now_s) if self._keeps_costs else 0,
                ready_at_s=lane.ready_s,
            )
            for lane in self._lanes.values()
            if not lane.leaves
        ]
        lane = self._lanes[picked(picks)]
        lane.leaves = True
        self._busy_gone += lane.word.state is LaneState.BUSY
        self._report()

    # ── beside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _report(self) -> None:
        self._news.succeed()
        self._news = self._env.event()

    def _note(self) -> None:
        self._held.append((self._env.now, len(self._lanes)))

    def _moment(self, later_s: float = 0.0) -> datetime:
        return NOW + timedelta(seconds=self._env.now + later_s)


def costs_of(times: Times) -> Costs:
    """*times* in the form of `ops/simulation.py`."""
    return Costs(run_s={MODEL: times.run_s}, swap_s={MODEL: times.swap_s})
