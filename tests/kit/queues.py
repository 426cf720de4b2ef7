"""The queues of `ops/commands/capacity` as SimPy simulates them, in order of arrival. The two share their limits and
nothing else. Also a formula for the degraded worker."""

import random
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import simpy
from msgspec import Struct

from ops.commands.capacity.stations import HOUR_S, Demand, Station, Terms, station

Steps: TypeAlias = Generator[simpy.Event, Any, None]


class Tally(Struct):
    """What became of the requests for one model."""

    arrived: int = 0
    by_lane: int = 0
    warm: int = 0
    loaded: int = 0
    rerouted: int = 0
    overloaded: int = 0
    waits_s: list[float] = []


class Simulation:
    """Runs until *requests* have arrived; `tallies` and the busy shares say what became of them.

    A task takes its model's service time, or one drawn from a gamma distribution around it with the coefficient of
    variation *spread*.
    """

    def __init__(
        self, demands: Sequence[Demand], terms: Terms, *, seed: int, requests: int, spread: float = 0.0
    ) -> None:
        self.tallies = {demand.model: Tally(waits_s=[]) for demand in demands}
        self._terms = terms
        self._random = random.Random(seed)
        self._spread = spread
        self._env = simpy.Environment()
        self._lanes = {demand.model: simpy.Resource(self._env, demand.lanes) for demand in demands if demand.lanes}
        self._degraded = simpy.Resource(self._env)
        self._resident: str | None = None
        self._degraded_s = 0.0
        self._to_come = requests
        self._all_came = self._env.event()
        for demand in demands:
            if demand.arrivals_per_h:
                self._env.process(self._arrivals(demand))
        self._env.run(self._all_came)
        self.degraded_busy = self._degraded_s / self._env.now

    def share(self, what: str, model: str | None = None) -> float:
        """The share of the requests for *model*, or of all, that came to *what*."""
        tallies = [tally for name, tally in self.tallies.items() if model in (None, name)]
        found: int = sum(getattr(tally, what) for tally in tallies)
        return found / sum(tally.arrived for tally in tallies)

    def waits_s(self) -> list[float]:
        """The waits of all requests that were taken, in order."""
        return sorted(wait_s for tally in self.tallies.values() for wait_s in tally.waits_s)

    def _arrivals(self, demand: Demand) -> Steps:
        while True:
            yield self._env.timeout(self._random.expovariate(demand.arrivals_per_h / HOUR_S))
            self.tallies[demand.model].arrived += 1
            self._env.process(self._request(demand))
            self._to_come -= 1
            if not self._to_come:
                self._all_came.succeed()

    def _request(self, demand: Demand) -> Steps:
        arrived_s, tally = self._env.now, self.tallies[demand.model]
        if demand.model in self._lanes:
            with self._lanes[demand.model].request() as turn:
                yield from self._wait(turn, self._terms.lane_wait_s)
                if turn.triggered:
                    tally.waits_s.append(self._env.now - arrived_s)
                    tally.by_lane += 1
                    tally.warm += 1
                    yield self._env.timeout(self._service_s(demand))
                    return
            tally.rerouted += 1
        if len(self._degraded.queue) >= self._terms.degraded_depth:
            tally.overloaded += 1
            return
        with self._degraded.request() as turn:
            yield from self._wait(turn, self._terms.degraded_wait_s)
            if turn.triggered:
                tally.waits_s.append(self._env.now - arrived_s)
                yield self._env.timeout(self._degraded_run_s(demand))
            else:
                tally.overloaded += 1

    def _wait(self, turn: simpy.Event, limit_s: float) -> Steps:
        if not turn.triggered:
            yield turn | self._env.timeout(limit_s)

    def _service_s(self, demand: Demand) -> float:
        if not self._spread:
            return demand.service_s
        return self._random.gammavariate(self._spread**-2, demand.service_s * self._spread**2)

    def _degraded_run_s(self, demand: Demand) -> float:
        """How long the degraded worker is busy with a task, with the load if its model is not resident."""
        busy_s, tally = self._service_s(demand), self.tallies[demand.model]
        if self._resident == demand.model:
            tally.warm += 1
        else:
            self._resident = demand.model
            busy_s += self._terms.release_s + demand.load_s
            tally.loaded += 1
        self._degraded_s += busy_s
        return busy_s


def degraded_station(demands: Sequence[Demand], terms: Terms) -> Station:
    """One server for all models in order of arrival. It loads a model whenever the task before was of another: the
    formula of `ops/capacity.md`."""
    per_h = sum(demand.arrivals_per_h for demand in demands)
    services = []
    for demand in demands:
        same = demand.arrivals_per_h / per_h
        services.append((same * same, demand.service_s))
        services.append((same * (1.0 - same), demand.service_s + terms.release_s + demand.load_s))
    likely = [(chance, service_s) for chance, service_s in services if chance > 0]
    mean_s = sum(chance * service_s for chance, service_s in likely)
    # a request that finds the queue full would have to wait for as many tasks as the queue holds; with long tasks the
    # wait limit comes first
    patience_s = min(terms.degraded_wait_s, terms.degraded_depth * mean_s)
    return station(rate_per_s=per_h / HOUR_S, servers=1, services=likely, patience_s=patience_s)
