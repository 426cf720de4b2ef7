"""A recorded day under another policy: the functions of routing and order, run over its requests. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from contracts.order import Policy
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.replay.day import Fate, RecordedDay, arrivals
from ops.simulation import Arrival, Outcome, SimulatedLanes, by_policy, simulate


class ReplayTerms(Struct, frozen=True, kw_only=True):
    """How the day is served again. *lanes* gives the number of warm lanes for each model; None: as routing saw them
    then. *policy* orders the degraded queue, *lane_policy* the queues of lanes (ADR 0042). Waits are in seconds."""

    policy: Policy
    lane_policy: Policy = Policy()
    lanes: Mapping[str, int] | None
    places: int = DEGRADED_MAX_MSGS
    lane_wait_s: float
    degraded_wait_s: float


class DayAccount(Struct, frozen=True, kw_only=True):
    """What became of some requests. The waits, in seconds, are those of the requests that were served, from arrival to
    start; None if none was served. *swaps* are those of the degraded worker."""

    requests: int
    served: int
    on_lanes: int
    swaps: int
    refused: int
    withdrawn: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    wait_longest_s: float | None


class DayAccounts(Struct, frozen=True, kw_only=True):
    """What became of a whole day: of all its requests, and of those of each model and each caller."""

    all: DayAccount
    models: dict[str, DayAccount]
    callers: dict[str, DayAccount]


def replay(day: RecordedDay, terms: ReplayTerms) -> list[Fate]:
    """What becomes of the requests of *day* under *terms*, in no particular order."""
    outcome = simulate(
        arrivals(day, lanes=terms.lanes),
        order=by_policy(terms.policy),
        costs=day.measured.degraded,
        places=terms.places,
        wait_s=terms.degraded_wait_s,
        lanes=SimulatedLanes(
            count=day.lanes if terms.lanes is None else terms.lanes,
            wait_s=terms.lane_wait_s,
            run_s=day.measured.lane_run_s,
            order=lambda: by_policy(terms.lane_policy),
        ),
    )
    return fates(outcome)


def fates(outcome: Outcome) -> list[Fate]:
    """What became of the arrivals of *outcome*."""
    found = [
        Fate(
            model=start.task.model,
            caller=start.task.caller,
            end="served",
            wait_s=start.at_s - start.arrival.at_s,
            swapped=start.swapped,
            on_lane=start.on_lane,
        )
        for start in outcome.starts
    ]
    ends: Sequence[tuple[Literal["refused", "withdrawn"], Sequence[Arrival]]] = (
        ("refused", outcome.refused),
        ("refused", outcome.expired),
        ("withdrawn", outcome.withdrawn),
    )
    found += [Fate(model=arrival.model, caller=arrival.caller, end=end) for end, arrived in ends for arrival in arrived]
    return found


def accounts(found: Sequence[Fate]) -> DayAccounts:
    """*found*, counted."""
    return DayAccounts(
        all=account(found),
        models=_each(found, lambda fate: fate.model),
        callers=_each(found, lambda fate: fate.caller),
    )


def account(found: Sequence[Fate]) -> DayAccount:
    """*found*, counted as one."""
    waits_s = sorted(fate.wait_s for fate in found if fate.wait_s is not None)
    return DayAccount(
        requests=len(found),
        served=sum(fate.end == "served" for fate in found),
        on_lanes=sum(fate.on_lane for fate in found),
        swaps=sum(fate.swapped for fate in found),
        refused=sum(fate.end == "refused" for fate in found),
        withdrawn=sum(fate.end == "withdrawn" for fate in found),
        wait_p50_s=_percentile(waits_s, 50),
        wait_p95_s=_percentile(waits_s, 95),
        wait_longest_s=_percentile(waits_s, 100),
    )


def _each(found: Sequence[Fate], name_of: Callable[[Fate], str]) -> dict[str, DayAccount]:
    return {
        name: account([fate for fate in found if name_of(fate) == name]) for name in sorted(set(map(name_of, found)))
    }


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The least of *ordered* that *percent* of them, or more, do not exceed (nearest rank)."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)], 3)
