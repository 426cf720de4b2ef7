"""The aims, and the known reasons why one is missed. Pure."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from msgspec import Struct

from tests.bench.names import (
    BARE,
    BARE_JSON,
    BARE_SWAP,
    CELERY,
    DIRECT,
    DISPATCH,
    GROWING,
    LIVE,
    MANY,
    MESSAGE_ONLY,
    NO_OP,
    REFUSAL,
    TASKIQ_KV,
    WARMLANE,
    at_times,
    finished,
)
from tests.bench.results import Part

Measure = Callable[[Part], float | None]


class Aim(Struct, frozen=True, kw_only=True):
    """A number to reach. *measure* returns the measured value; None when that is unknown."""

    name: str
    what: str
    part: str
    measure: Measure
    bound: float
    at_least: bool
    unit: str = ""


def ratio(part: Part, figure: str, over: str, under: str) -> float | None:
    """The median over the rounds of *over*'s value divided by *under*'s value; None if one is missing."""
    upper, lower = part.find(over, figure), part.find(under, figure)
    if upper is None or lower is None:
        return None
    return statistics.median(a / b for a, b in zip(upper.values, lower.values, strict=True))


def over_best_peer(part: Part, who: str = WARMLANE) -> float | None:
    """The throughput of *who* divided by that of the fastest peer that stores only the message; None when no such peer
    was run."""
    found = [series for peer in MESSAGE_ONLY if (series := part.find(peer, "per_s")) is not None]
    if not found:
        return None
    return ratio(part, "per_s", who, max(found, key=lambda series: series.median).contender)


def median_of(contender: str, figure: str) -> Measure:
    """A measure: the median of *figure* of *contender*."""

    def measure(part: Part) -> float | None:
        series = part.find(contender, figure)
        return None if series is None else series.median

    return measure


def _kept(part: Part, *, what: str, few: int) -> float | None:
    """How fast *what* still is with many finished tasks: the ratio of throughputs, or for dispatch the inverse ratio of
    p50."""
    if what == DISPATCH:
        return ratio(part, "p50_ms", finished(what, few), finished(what, MANY))
    return ratio(part, "per_s", finished(what, MANY), finished(what, few))


def at_least(name: str, what: str, part: str, measure: Measure, bound: float) -> Aim:
    """An aim that is met from *bound* on."""
    return Aim(name=name, what=what, part=part, measure=measure, bound=bound, at_least=True)


def at_most(name: str, what: str, part: str, measure: Measure, bound: float, unit: str = "") -> Aim:
    """An aim that is met up to *bound*."""
    return Aim(name=name, what=what, part=part, measure=measure, bound=bound, at_least=False, unit=unit)


def _ratio(figure: str, over: str, under: str) -> Measure:
    return partial(ratio, figure=figure, over=over, under=under)


AIMS: Final = (
    at_least(
        "accept_limit", "accept: throughput for that of the bare limit", "accept", _ratio("per_s", WARMLANE, BARE), 0.90
    ),
    at_least(
        "accept_peer",
        f"accept: throughput for that of {TASKIQ_KV}, which does the same work",
        "accept",
        _ratio("per_s", WARMLANE, TASKIQ_KV),
        1.0,
    ),
    at_most(
        "accept_p99",
        "accept: p99 at half load for that of the bare limit",
        "accept",
        _ratio("p99_ms", WARMLANE, BARE),
        2.0,
    ),
    at_least(
        "poll_live",
        "poll of a live task: throughput for that of a bare JSON handler",
        "poll",
        _ratio("per_s", LIVE, BARE_JSON),
        0.70,
    ),
    at_most("dispatch_p50", "dispatch: p50", "dispatch", median_of(WARMLANE, "p50_ms"), 3.0, " ms"),
    at_most(
        "dispatch_peer", f"dispatch: p50 for that of {CELERY}", "dispatch", _ratio("p50_ms", WARMLANE, CELERY), 1.0
    ),
    at_most("dispatch_p99", "dispatch: p99", "dispatch", median_of(WARMLANE, "all_p99_ms"), 15.0, " ms"),
    at_most(
        "overhead",
        "overhead: submit to done for the tiny pipeline called directly",
        "overhead",
        _ratio("p50_ms", WARMLANE, DIRECT),
        1.10,
    ),
    at_most(
        "swap",
        "swap: degraded alternation for a bare script that releases, loads and runs",
        "swap",
        _ratio("p50_ms", WARMLANE, BARE_SWAP),
        1.15,
    ),
    at_least(
        "refusals",
        "overload: refusals a second for those of a no-op handler",
        "refusals",
        _ratio("per_s", REFUSAL, NO_OP),
        0.5,
    ),
    at_most(
        "refusal_p99",
        "overload: p99 of a refusal at 10 times the capacity",
        "overload",
        median_of(at_times(10), "refused_p99_ms"),
        20.0,
        " ms",
    ),
    *(
        at_least(
            f"growth_{what.replace(', ', '_').replace(' ', '_')}",
            f"growth: {what} with {MANY:,} finished tasks for that with {few:,}",
            "tasks",
            partial(_kept, what=what, few=few),
            0.90,
        )
        for what, few in GROWING
    ),
)
# The known reasons why an aim is missed, from profiles (py-spy) on 2 cores. The report shows them only beside a missed
# aim.
REASONS: Final[Mapping[str, str]] = {
    "accept_limit": "on top of the limit's work: validation and fingerprint, the routing decision, the guard, the "
    "gateway's own writes that come back by its watch, and the bounds of connections. No single place is left: a "
    "quarter of the time goes into system calls, and the rest into 940 calls of functions (docs/benchmarks/notes.md)",
    "accept_peer": "both make the same two writes. Warmlane also checks every field, routes, and keeps every task in "
    "memory, so that a poll costs the server nothing. Next: as above",
    "accept_p99": "at half of its own throughput the gateway is busy for 75 to 80 % of the time and the limit for 65 "
    "to 70, since the more it is asked at once, the less a request costs; so it is the queue of a fuller server. No "
    "pause of the collector is longer than 2 ms. What its watch brings wakes it once for each read of the socket, and "
    "no more for each write. Next: the records of a create under way, which a sixth of the time are decoded again",
    "poll_live": "on top of the bare handler's work: the guard, the view of the task, its place in the queue, ETag",
    "dispatch_p50": "three round trips that follow each other, and four until ADR 0037: message, claim (each acked by "
    "the nats-server), and the hop to the pipeline's process. The hop is the longest: the process shares its core with "
    "worker, nats-server and load, and waits until the worker has nothing to do. 2.7 to 3.3 ms were seen on two cores "
    "in other runs. Next: what a lane notes of a start follows the start (notes.md); the same with a core more",
    "dispatch_peer": "Celery's worker runs a function in its own process, and claims nothing; Warmlane's claims the "
    "task by an acked write, and hands it to the process that alone has the model. Next: as above",
    "dispatch_p99": "the same round trips, each of which may have to wait for a core that is taken",
    "overhead": "what is added is the same for a video of minutes: accept and claim, cleaning up (FR-008), the store "
    "and the record, and an inference that shares its core with worker, nats-server and client here. Next: what is "
    "loaded put out of the collector's sight until it is released",
    "swap": "nearly all of it is what the script does too; added are the proof, 0.1 s between two samples of resident "
    "memory, and the round trips of accept, claim and settle; next: take a sample while the host answers",
    "refusals": "a refusal is checked and routed, counted in the fallback's episode, and given a `Retry-After`; the "
    "no-op handler reads no body. Next: Litestar's headers, which are made text for each request",
    "growth_dispatch": "the rounds differ more from each other than the levels do (see the ranges)",
    "refusal_p99": "client, nats-server and inference share a core here",
}
UNKNOWN: Final = "not looked into yet"
