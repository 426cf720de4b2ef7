"""Queues that requests leave when they are not taken within a limit: the formulas of `ops/capacity.md`. Pure."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from msgspec import Struct

from contracts.order import Policy

HOUR_S: Final = 3_600.0
# The wait is computed in steps: their least and their greatest number.
STEPS_MIN: Final = 200
STEPS_MAX: Final = 1_000
# Numbers above this are scaled down: the wait's density grows exponentially under overload.
LARGE: Final = 1e150


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

    *release_s* is the time to release a pipeline, with proof. *policy* orders the degraded queue.
    """

    lane_wait_s: float
    degraded_wait_s: float
    degraded_depth: int
    release_s: float
    gpu_price_per_h: float
    policy: Policy = Policy()


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
    """A queue with random (Poisson) arrivals, which *servers* take in order. Those that have waited *patience_s* leave.

    *services* are the service times in seconds, each with its probability. The result is exact for one server, for
    service times that vary exponentially, and for no patience at all. Otherwise it assumes that the other servers are
    at a random point of their work whenever one becomes free.
    """
    mean_s = sum(share * service_s for share, service_s in services)
    if rate_per_s == 0:
        return Station(patience_s=patience_s, utilisation=0.0, taken_by=(1.0,))
    if servers == 0:
        return Station(patience_s=patience_s, utilisation=0.0, taken_by=(0.0,))
    load = rate_per_s * mean_s
    last_free = 1.0  # the share of the times with a free server in which just one is free (Erlang's loss formula)
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
    """The chance that no server becomes free within *wait_s* after the last one began a task."""
    # a service time that falls into the step counts in part, or the mean would be off
    new = sum(share * min(1.0, max(0.0, (service_s - wait_s) / step_s + 0.5)) for share, service_s in services)
    rest = sum(share * max(0.0, service_s - wait_s) for share, service_s in services) / mean_s
    return float(new * rest ** (servers - 1))


def _renewals(over: Sequence[float], step_rate: float) -> tuple[list[float], float]:
    """Solves u = over + rate · (u convolved with over) by the trapezoidal rule. Returns u and the scale of u."""
    reach = next((index for index, value in enumerate(over) if value == 0.0), len(over))
    grown, one = [over[0]], 1.0
    for index in range(1, len(over)):
        first = max(1, index - reach + 1)
        inner = sum(grown[at] * over[index - at] for at in range(first, index)) + grown[0] * over[index] / 2
        grown.append((over[index] * one + step_rate * inner) / (1 - step_rate * over[0] / 2))
        if grown[-1] > LARGE:
            grown, one = [each / LARGE for each in grown], one / LARGE
    return grown, one
