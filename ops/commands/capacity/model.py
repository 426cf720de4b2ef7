"""What a deployment carries and costs: arrivals, service times, lanes in; shares, waits, cost per video out. Pure.

Each worker is a queue that requests leave when they are not taken within a limit. `ops/capacity.md` derives the
formulas, and says what each assumes and where it is off; `warmlane capacity` prints the results.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

HOUR_S: Final = 3_600.0
# The wait is computed in steps: the least and the most of them.
STEPS_MIN: Final = 200
STEPS_MAX: Final = 1_000
# Numbers above this are scaled down: the wait's density grows exponentially with an overload.
LARGE: Final = 1e150
# How far, from the given arrivals, a rate is looked for at which both deployments cost the same.
BREAK_EVEN_FACTORS: Final = tuple(10 ** (power / 8) for power in range(-16, 17))


class Demand(Struct, frozen=True, kw_only=True):
    """The demand on one model, and the lanes that it has.

    *service_s* is a worker's time for one task: inference, encoding, cleanup. *load_s* is the time to load the model
    after another.
    """

    model: str
    arrivals_per_h: float
    service_s: float
    load_s: float
    lanes: int


class Terms(Struct, frozen=True, kw_only=True):
    """What holds for all models: the limits of the protocol, and a price.

    *release_s* is the time to give a pipeline back, with proof.
    """

    lane_wait_s: float
    degraded_wait_s: float
    degraded_depth: int
    release_s: float
    gpu_price_per_h: float


class Station(Struct, frozen=True, kw_only=True):
    """A queue and its servers in the long run.

    *taken_by* is the share of arrivals that is taken after a wait of at most 0, *step_s*, …, *patience_s*; the rest is
    not taken. *waited_s* is the wait of those that are taken, per arrival.
    """

    patience_s: float
    utilisation: float
    taken_by: tuple[float, ...]
    step_s: float = 1.0
    waited_s: float = 0.0

    @property
    def taken(self) -> float:
        """The share of arrivals that is taken."""
        return self.taken_by[-1]

    def taken_within(self, wait_s: float) -> float:
        """The share of arrivals that is taken after at most *wait_s*."""
        if wait_s < 0:
            return 0.0
        index = math.floor(wait_s / self.step_s)
        if index >= len(self.taken_by) - 1:
            return self.taken
        left, right = self.taken_by[index : index + 2]
        return left + (right - left) * (wait_s / self.step_s - index)


def station(*, rate_per_s: float, servers: int, services: Sequence[tuple[float, float]], patience_s: float) -> Station:
    """Arrivals at random (Poisson), which *servers* take in their order; those that have waited for *patience_s* leave.

    *services* are the service times in seconds, each with its probability. Exact for one server, for service times
    that vary exponentially, and for no patience at all; in between, the other servers are taken to be at a random point
    of their work whenever one gets free.
    """
    mean_s = sum(share * service_s for share, service_s in services)
    if rate_per_s == 0:
        return Station(patience_s=patience_s, utilisation=0.0, taken_by=(1.0,))
    if servers == 0:
        return Station(patience_s=patience_s, utilisation=0.0, taken_by=(0.0,))
    load = rate_per_s * mean_s
    last_free = 1.0  # of the times when a server is free: the share when just one is (Erlang's loss formula)
    for number in range(1, servers):
        last_free = load * last_free / (number + load * last_free)
    shortest_s = min(service_s for _, service_s in services)
    finest_s = min(patience_s / STEPS_MIN, shortest_s / 20, 0.25 / rate_per_s)
    steps = min(STEPS_MAX, math.ceil(patience_s / finest_s))
    step_s = patience_s / steps
    over = [_still_busy(index * step_s, step_s, servers, services, mean_s) for index in range(steps + 1)]
    grown, one = _renewals(over, rate_per_s * step_s)
    areas = [step_s * (left + right) / 2 for left, right in pairwise(grown)]
    # the chance that some server is free comes out as one / whole
    whole = one + load / servers * last_free * (one + rate_per_s * sum(areas))
    waits = [rate_per_s * last_free * area / whole for area in areas]
    taken_by = tuple(min(1.0, share) for share in accumulate(waits, initial=one / whole))  # rounding may exceed it
    return Station(
        patience_s=patience_s,
        utilisation=taken_by[-1] * load / servers,
        taken_by=taken_by,
        step_s=step_s,
        waited_s=sum((index + 0.5) * step_s * share for index, share in enumerate(waits)),
    )


def _still_busy(
    wait_s: float, step_s: float, servers: int, services: Sequence[tuple[float, float]], mean_s: float
) -> float:
    """The chance that no server gets free within *wait_s* of the moment in which the last one began a task."""
    # a service time that falls into the step counts in part, or the mean would be off
    new = sum(share * min(1.0, max(0.0, (service_s - wait_s) / step_s + 0.5)) for share, service_s in services)
    rest = sum(share * max(0.0, service_s - wait_s) for share, service_s in services) / mean_s
    return float(new * rest ** (servers - 1))


def _renewals(over: Sequence[float], step_rate: float) -> tuple[list[float], float]:
    """u = over + rate · (u convolved with over) by the trapezoidal rule, and the scale that u is in."""
    reach = next((index for index, value in enumerate(over) if value == 0.0), len(over))
    grown, one = [over[0]], 1.0
    for index in range(1, len(over)):
        first = max(1, index - reach + 1)
        inner = sum(grown[at] * over[index - at] for at in range(first, index)) + grown[0] * over[index] / 2
        grown.append((over[index] * one + step_rate * inner) / (1 - step_rate * over[0] / 2))
        if grown[-1] > LARGE:
            grown, one = [each / LARGE for each in grown], one / LARGE
    return grown, one


class Flow(Struct, frozen=True, kw_only=True):
    """What becomes of the requests for one model, or for all of them. Shares are of its arrivals, times in seconds.

    *warm*: taken by a worker that holds the model. *loaded*: taken by the degraded worker, which loads it first.
    *overloaded*: `queue_overloaded`, at once or after the wait. *rerouted*: no lane took it in time (FR-021 c); it is
    one of the others as well. *utilisation* is that of its lanes. *wait_s* and *wait_p95_s* are those of the requests
    that are taken, and *video_s* is their mean time to the video, loading included; 0 where none is taken.
    """

    model: str
    arrivals_per_h: float
    lanes: int
    utilisation: float
    warm: float
    loaded: float
    rerouted: float
    overloaded: float
    wait_s: float
    wait_p95_s: float
    video_s: float

    @property
    def videos_per_h(self) -> float:
        """Videos that come out."""
        return self.arrivals_per_h * (self.warm + self.loaded)


class Deployment(Struct, frozen=True, kw_only=True):
    """One way to serve the demand, on *gpus* cards: those of the lanes, and one for the degraded worker."""

    gpus: int
    degraded_utilisation: float
    flows: tuple[Flow, ...]
    total: Flow
    cost_per_h: float

    @property
    def cost_per_video(self) -> float | None:
        """The cost of each video that comes out; None where none does."""
        return self.cost_per_h / self.total.videos_per_h if self.total.videos_per_h else None


class _Wait(Struct, frozen=True):
    """Requests per hour that go to *station* after *before_s*."""

    per_h: float
    before_s: float
    station: Station


def deployment(demands: Sequence[Demand], terms: Terms) -> Deployment:
    """The lanes that *demands* name, and a degraded worker for what they do not take in time."""
    lanes = {
        demand.model: station(
            rate_per_s=demand.arrivals_per_h / HOUR_S,
            servers=demand.lanes,
            services=[(1.0, demand.service_s)],
            patience_s=terms.lane_wait_s,
        )
        for demand in demands
    }
    left = {demand.model: 1.0 - lanes[demand.model].taken if demand.lanes else 1.0 for demand in demands}
    per_h = {demand.model: demand.arrivals_per_h * left[demand.model] for demand in demands}
    all_per_h = sum(per_h.values())
    share = {model: rate / all_per_h if all_per_h else 0.0 for model, rate in per_h.items()}
    degraded = _degraded(demands, share, all_per_h, terms)
    flows, waits = [], []
    for demand in demands:
        model, lane = demand.model, lanes[demand.model]
        taken_later = left[model] * degraded.taken
        warm_later = taken_later * share[model]  # the one before was of the same model
        loaded = taken_later - warm_later
        own = [
            _Wait(demand.arrivals_per_h, 0.0, lane),
            _Wait(per_h[model], terms.lane_wait_s if demand.lanes else 0.0, degraded),
        ]
        waits += own
        wait_s, p95_s = _waits(own)
        warm = (lane.taken if demand.lanes else 0.0) + warm_later
        swap_s = terms.release_s + demand.load_s
        flow = Flow(
            model=model,
            arrivals_per_h=demand.arrivals_per_h,
            lanes=demand.lanes,
            utilisation=lane.utilisation,
            warm=warm,
            loaded=loaded,
            rerouted=left[model] if demand.lanes else 0.0,
            overloaded=left[model] * (1.0 - degraded.taken),
            wait_s=wait_s,
            wait_p95_s=p95_s,
            video_s=wait_s + demand.service_s + swap_s * loaded / (warm + loaded) if warm + loaded else 0.0,
        )
        flows.append(flow)
    gpus = sum(demand.lanes for demand in demands) + 1
    return Deployment(
        gpus=gpus,
        degraded_utilisation=degraded.utilisation,
        flows=tuple(flows),
        total=_total(flows, waits),
        cost_per_h=gpus * terms.gpu_price_per_h,
    )


def without_lanes(demands: Sequence[Demand]) -> tuple[Demand, ...]:
    """The same demand, left to the degraded worker alone."""
    return tuple(replace(demand, lanes=0) for demand in demands)


def scaled(demands: Sequence[Demand], factor: float) -> tuple[Demand, ...]:
    """*factor* times the arrivals, in the same mix."""
    return tuple(replace(demand, arrivals_per_h=demand.arrivals_per_h * factor) for demand in demands)


def break_even_per_h(demands: Sequence[Demand], terms: Terms) -> float | None:
    """The arrivals per hour, of all models in their mix, from which on a video costs less with lanes than without.

    None where it never does, from a hundredth to a hundred times *demands*.
    """

    def dearer(factor: float) -> float:
        at = scaled(demands, factor)
        lanes = deployment(at, terms).cost_per_video
        alone = deployment(without_lanes(at), terms).cost_per_video
        return math.inf if lanes is None or alone is None else lanes - alone

    below, above = 0.0, None
    for factor in BREAK_EVEN_FACTORS:
        if dearer(factor) < 0:
            above = factor
            break
        below = factor
    if above is None:
        return None
    for _ in range(24):
        middle = (below + above) / 2
        below, above = (below, middle) if dearer(middle) < 0 else (middle, above)
    return above * sum(demand.arrivals_per_h for demand in demands)


def _degraded(demands: Sequence[Demand], share: Mapping[str, float], per_h: float, terms: Terms) -> Station:
    """One server for all models, which loads a model whenever the task before was of another."""
    services = []
    for demand in demands:
        same = share[demand.model]
        services.append((same * same, demand.service_s))
        services.append((same * (1.0 - same), demand.service_s + terms.release_s + demand.load_s))
    likely = [(chance, service_s) for chance, service_s in services if chance > 0]
    mean_s = sum(chance * service_s for chance, service_s in likely)
    # a request that finds the queue full would have waited for that many tasks; with long tasks the wait limit comes
    # first
    patience_s = min(terms.degraded_wait_s, terms.degraded_depth * mean_s) if likely else terms.degraded_wait_s
    return station(rate_per_s=per_h / HOUR_S, servers=1, services=likely, patience_s=patience_s)


def _waits(waits: Sequence[_Wait]) -> tuple[float, float]:
    """Mean and 95th percentile of the wait of requests that are taken."""
    taken_per_h = sum(each.per_h * each.station.taken for each in waits)
    if not taken_per_h:
        return 0.0, 0.0
    waited = sum(each.per_h * (each.before_s * each.station.taken + each.station.waited_s) for each in waits)

    def within(wait_s: float) -> float:
        return sum(each.per_h * each.station.taken_within(wait_s - each.before_s) for each in waits)

    low_s, high_s = 0.0, max(each.before_s + each.station.patience_s for each in waits)
    if within(low_s) >= 0.95 * taken_per_h:
        return waited / taken_per_h, 0.0
    for _ in range(30):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (low_s, middle_s) if within(middle_s) >= 0.95 * taken_per_h else (middle_s, high_s)
    return waited / taken_per_h, high_s


def _total(flows: Sequence[Flow], waits: Sequence[_Wait]) -> Flow:
    arrivals_per_h = sum(flow.arrivals_per_h for flow in flows)
    lanes = sum(flow.lanes for flow in flows)
    videos_per_h = sum(flow.videos_per_h for flow in flows)
    wait_s, p95_s = _waits(waits)

    def of_arrivals(share: Callable[[Flow], float]) -> float:
        return sum(flow.arrivals_per_h * share(flow) for flow in flows) / arrivals_per_h

    return Flow(
        model="all",
        arrivals_per_h=arrivals_per_h,
        lanes=lanes,
        utilisation=sum(flow.lanes * flow.utilisation for flow in flows) / lanes if lanes else 0.0,
        warm=of_arrivals(lambda flow: flow.warm),
        loaded=of_arrivals(lambda flow: flow.loaded),
        rerouted=of_arrivals(lambda flow: flow.rerouted),
        overloaded=of_arrivals(lambda flow: flow.overloaded),
        wait_s=wait_s,
        wait_p95_s=p95_s,
        video_s=sum(flow.videos_per_h * flow.video_s for flow in flows) / videos_per_h if videos_per_h else 0.0,
    )
