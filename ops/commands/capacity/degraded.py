"""The degraded worker of a deployment: the simulation of `ops/simulation.py`, over requests that are made up. Pure.

The same question gives the same answer, because chance is seeded. The same mix gives the same requests, spread over a
longer or a shorter day.
"""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Final

from msgspec import Struct

from contracts.order import Costs
from ops.commands.capacity.stations import HOUR_S, Demand, Station, Terms
from ops.simulation import Arrival, Outcome, by_policy, simulate

# How many requests are simulated: a share of them is right within 1 or 2 percentage points.
REQUESTS: Final = 4_000
SEED: Final = 7
# How many steps the waits of requests that are taken are counted in.
STEPS: Final = 200


class DegradedFigures(Struct, frozen=True, kw_only=True):
    """What becomes of the requests that reach the degraded worker, by model.

    *loaded* is the share of a model's requests that is taken after a load, *utilisation* the share of time in which the
    worker is busy.
    """

    utilisation: float
    stations: Mapping[str, Station]
    loaded: Mapping[str, float]


def simulated(demands: Sequence[Demand], per_h: Mapping[str, float], terms: Terms) -> DegradedFigures:
    """The degraded worker, when *per_h* requests an hour reach it, at random and independent of each other."""
    return _simulated(tuple(demands), tuple(per_h[demand.model] for demand in demands), terms)


# the tables, the verdict and the search for a break-even ask for the same results
@lru_cache(maxsize=256)
def _simulated(demands: tuple[Demand, ...], per_h: tuple[float, ...], terms: Terms) -> DegradedFigures:
    models = [demand.model for demand in demands]
    if not sum(per_h):
        nobody = Station(patience_s=terms.degraded_wait_s, utilisation=0.0, taken_by=(1.0,))
        return DegradedFigures(
            utilisation=0.0, stations=dict.fromkeys(models, nobody), loaded=dict.fromkeys(models, 0.0)
        )
    came = _arrivals(models, per_h)
    outcome = simulate(
        came,
        order=by_policy(terms.policy),
        costs=Costs(
            run_s={demand.model: demand.service_s for demand in demands},
            swap_s={demand.model: terms.release_s + demand.load_s for demand in demands},
        ),
        places=terms.degraded_depth,
        wait_s=terms.degraded_wait_s,
    )
    counts = Counter(arrival.model for arrival in came)
    ends_s = max([came[-1].at_s, *(start.ended_s for start in outcome.starts)])
    busy_s = sum(start.ended_s - start.at_s for start in outcome.starts)
    return DegradedFigures(
        utilisation=busy_s / ends_s,
        stations={model: _station(model, max(1, counts[model]), outcome, terms) for model in models},
        loaded={
            model: sum(start.swapped for start in outcome.starts if start.task.model == model) / max(1, counts[model])
            for model in models
        },
    )


def _arrivals(models: Sequence[str], per_h: Sequence[float]) -> list[Arrival]:
    shares, all_per_h, at_s, found = list(accumulate(per_h)), sum(per_h), 0.0, []
    for gap, place in _chances():
        at_s += gap * HOUR_S / all_per_h
        which = bisect_right(shares, place * shares[-1], 0, len(models) - 1)
        found.append(Arrival(at_s=at_s, model=models[which]))
    return found


@cache
def _chances() -> tuple[tuple[float, float], ...]:
    """For each request: the gap before it (1 on average), and a number between 0 and 1 that picks its model."""
    chance = random.Random(SEED)  # noqa: S311  # no secret
    return tuple((chance.expovariate(1.0), chance.random()) for _ in range(REQUESTS))


def _station(model: str, count: int, outcome: Outcome, terms: Terms) -> Station:
    waits_s = sorted(start.at_s - start.task.queued_s for start in outcome.starts if start.task.model == model)
    step_s = terms.degraded_wait_s / STEPS
    return Station(
        patience_s=terms.degraded_wait_s,
        utilisation=0.0,
        taken_by=(
            *(bisect_right(waits_s, step * step_s) / count for step in range(STEPS)),
            len(waits_s) / count,
        ),
        step_s=step_s,
        waited_s=sum(waits_s) / count,
    )
