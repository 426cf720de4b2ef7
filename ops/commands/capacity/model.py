"""What a deployment carries and costs: arrivals, service times, lanes in; shares, waits, cost per video out. Pure.

Lanes are queues that requests leave when they are not taken within a limit. `ops/capacity.md` derives the formulas, and
says what each assumes and where it is inexact. The degraded worker is simulated, because its order decides which swaps
it needs (`degraded.py` beside this). `warmlane capacity` prints the results.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ops.commands.capacity.degraded import simulated
from ops.commands.capacity.stations import HOUR_S, Demand, Station, Terms, station

# Multiples of the given arrivals, among which to look for the rate at which both deployments cost the same.
BREAK_EVEN_FACTORS: Final = tuple(10 ** (power / 4) for power in range(-8, 9))
# At that rate, a video has to cost less with lanes by more than this share. A smaller difference may be chance, because
# the degraded worker is simulated.
CHANCE: Final = 0.02
# How often the step that holds this rate is halved: to a ten thousandth.
HALVINGS: Final = 12


class Flow(Struct, frozen=True, kw_only=True):
    """What becomes of the requests for one model, or for all models. Shares are of the arrivals, times in seconds.

    *warm*: taken by a worker that holds the model. *loaded*: taken by the degraded worker, which loads it first.
    *overloaded*: `queue_overloaded`, at once or after the wait. *rerouted*: no lane took it in time (FR-021 c); it
    counts among the other shares as well. *utilisation* is that of the lanes. *wait_s* and *wait_p95_s* are those of
    the requests that are taken. *video_s* is their mean time to the video, loading included; 0 if none is taken.
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
    degraded = simulated(demands, per_h, terms)
    flows, waits = [], []
    for demand in demands:
        model, lane = demand.model, lanes[demand.model]
        later = degraded.stations[model]
        loaded = left[model] * degraded.loaded[model]
        warm_later = left[model] * later.taken - loaded
        own = [
            _Wait(demand.arrivals_per_h, 0.0, lane),
            _Wait(per_h[model], terms.lane_wait_s if demand.lanes else 0.0, later),
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
            overloaded=left[model] * (1.0 - later.taken),
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
    """The arrivals per hour, of all models in their mix, above which a video costs less with lanes than without.

    None if it never does, from a hundredth to a hundred times *demands*.
    """

    def dearer(factor: float) -> float:
        """How much more a video costs with lanes, as a share of its cost without."""
        at = scaled(demands, factor)
        lanes = deployment(at, terms).cost_per_video
        alone = deployment(without_lanes(at), terms).cost_per_video
        return math.inf if lanes is None or alone is None else lanes / alone - 1.0

    below, above = 0.0, None
    for factor in BREAK_EVEN_FACTORS:
        more = dearer(factor)
        if more < -CHANCE:
            above = factor
            break
        if more >= 0:
            below = factor
    if above is None:
        return None
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        below, above = (below, middle) if dearer(middle) < 0 else (middle, above)
    return above * sum(demand.arrivals_per_h for demand in demands)


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
