"""The queues of `ops/commands/capacity`, simulated event by event: the same limits, none of the same formulas."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from ops.commands.capacity.model import HOUR_S, Demand, Terms


class Tally(Struct):
    """What became of the requests for one model."""

    arrived: int = 0
    by_lane: int = 0
    warm: int = 0
    loaded: int = 0
    rerouted: int = 0
    overloaded: int = 0
    waits_s: list[float] = []


class Request(Struct, eq=False):
    """One request, and where it is."""

    model: str
    arrived_s: float
    place: str = "new"


class Simulation:
    """Runs until *requests* have arrived; `tallies` and the busy shares tell what came of them.

    A task takes its model's service time, or one drawn from a gamma distribution around it with the coefficient of
    variation *spread*.
    """

    def __init__(
        self, demands: Sequence[Demand], terms: Terms, *, seed: int, requests: int, spread: float = 0.0
    ) -> None:
        self.tallies = {demand.model: Tally(waits_s=[]) for demand in demands}
        self._demands = {demand.model: demand for demand in demands}
        self._terms = terms
        self._random = random.Random(seed)
        self._spread = spread
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now_s = 0.0
        self._idle = {demand.model: demand.lanes for demand in demands}
        self._waiting: dict[str, deque[Request]] = {demand.model: deque() for demand in demands}
        self._degraded: deque[Request] = deque()
        self._degraded_runs = False
        self._resident: str | None = None
        self._degraded_s = 0.0
        for demand in demands:
            if demand.arrivals_per_h:
                self._next_arrival(demand.model)
        while sum(tally.arrived for tally in self.tallies.values()) < requests:
            self._now_s, _, happens = heapq.heappop(self._events)
            happens()
        self.degraded_busy = self._degraded_s / self._now_s

    def share(self, what: str, model: str | None = None) -> float:
        """The share of the requests for *model*, or of all, that came to *what*."""
        tallies = [tally for name, tally in self.tallies.items() if model in (None, name)]
        found: int = sum(getattr(tally, what) for tally in tallies)
        return found / sum(tally.arrived for tally in tallies)

    def waits_s(self) -> list[float]:
        """The waits of all requests that were taken, in order."""
        return sorted(wait_s for tally in self.tallies.values() for wait_s in tally.waits_s)

    def _in(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + seconds, next(self._numbers), happens))

    def _next_arrival(self, model: str) -> None:
        rate_per_s = self._demands[model].arrivals_per_h / HOUR_S
        self._in(self._random.expovariate(rate_per_s), lambda: self._arrive(model))

    def _arrive(self, model: str) -> None:
        self._next_arrival(model)
        request = Request(model, self._now_s)
        self.tallies[model].arrived += 1
        if not self._demands[model].lanes:
            self._to_degraded(request)
        elif self._idle[model]:
            self._start_on_lane(request)
        else:
            request.place = "lane"
            self._waiting[model].append(request)
            self._in(self._terms.lane_wait_s, lambda: self._lane_is_overdue(request))

    def _service_s(self, model: str) -> float:
        mean_s = self._demands[model].service_s
        if not self._spread:
            return mean_s
        return self._random.gammavariate(self._spread**-2, mean_s * self._spread**2)

    def _taken(self, request: Request) -> None:
        request.place = "taken"
        self.tallies[request.model].waits_s.append(self._now_s - request.arrived_s)

    def _start_on_lane(self, request: Request) -> None:
        self._taken(request)
        self._idle[request.model] -= 1
        self.tallies[request.model].by_lane += 1
        self.tallies[request.model].warm += 1
        self._in(self._service_s(request.model), lambda: self._lane_is_idle(request.model))

    def _lane_is_idle(self, model: str) -> None:
        self._idle[model] += 1
        if self._waiting[model]:
            self._start_on_lane(self._waiting[model].popleft())

    def _lane_is_overdue(self, request: Request) -> None:
        if request.place == "lane":
            self._waiting[request.model].remove(request)
            self.tallies[request.model].rerouted += 1
            self._to_degraded(request)

    def _to_degraded(self, request: Request) -> None:
        if not self._degraded_runs:
            self._start_degraded(request)
        elif len(self._degraded) >= self._terms.degraded_depth:
            self.tallies[request.model].overloaded += 1
        else:
            request.place = "degraded"
            self._degraded.append(request)
            self._in(self._terms.degraded_wait_s, lambda: self._degraded_is_overdue(request))

    def _degraded_is_overdue(self, request: Request) -> None:
        if request.place == "degraded":
            request.place = "overloaded"
            self._degraded.remove(request)
            self.tallies[request.model].overloaded += 1

    def _start_degraded(self, request: Request) -> None:
        self._taken(request)
        self._degraded_runs = True
        busy_s = self._service_s(request.model)
        if self._resident == request.model:
            self.tallies[request.model].warm += 1
        else:
            self._resident = request.model
            busy_s += self._terms.release_s + self._demands[request.model].load_s
            self.tallies[request.model].loaded += 1
        self._degraded_s += busy_s
        self._in(busy_s, self._degraded_is_idle)

    def _degraded_is_idle(self) -> None:
        self._degraded_runs = False
        if self._degraded:
            self._start_degraded(self._degraded.popleft())
