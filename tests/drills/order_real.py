"""The second half of `make order --real`: each order on the real worker, beside the simulation of the same arrivals.

Gateway, nats-server and degraded worker are the product's own. The pipelines sleep instead of computing, so that runs
and swaps take the wanted time on a busy machine too. All times are a quarter of those that they imitate.
"""

import asyncio
import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct

from contracts.order import ORDER_NAMES, Costs, Policy
from ops.simulation import Arrival, Outcome, by_policy, simulate
from tests.drills.soak import NoopSystem
from tests.kit.orders import ORDER_VARIABLE, named
from tests.kit.support import settings_file

MODELS: Final = ("anisora", "phr00t")
REAL_TIMES: Final = (0.5, 1.0, 3.0, 10.0)
# A run of 2 s, a swap of 4 s and a wait of 30 s, in quarters.
RUN_S: Final = 0.5
SWAP_S: Final = 1.0
WAIT_S: Final = 7.5
MARGIN_S: Final = 0.25
SLICE_S: Final = 7.5
SECONDS: Final = 60.0
MAY_DIFFER: Final = 0.10
NAMES: Final = ("fifo", "slice", "swap-aware", "llama-swap", "SwarmUI")
SEED: Final = 11
# An expected wait is right if it was off by no more than this share of the real wait, or by no more than RIGHT_S.
RIGHT_SHARE: Final = 0.25
RIGHT_S: Final = 0.5


class RealPair(Struct, frozen=True, kw_only=True):
    """How one order did on the real worker, and in the simulation of the same arrivals and measured times.

    The load was *times* what first in, first out can serve. *right_waits* is the share of the expected waits in the
    answers that were right, and *median_off_s* how far those were off.
    """

    times: float
    order: str
    real: int
    simulated: int
    of: int
    swaps_per_task: float
    simulated_swaps: float
    longest_wait_s: float
    right_waits: float
    median_off_s: float


def arrivals(rate_per_s: float, seconds: float) -> list[Arrival]:
    """Two models in equal parts, at random moments."""
    chance, at_s, found = random.Random(SEED), 0.0, []
    while (at_s := at_s + chance.expovariate(rate_per_s)) < seconds:
        found.append(Arrival(at_s=at_s, model=chance.choice(MODELS)))
    return found


def compare_real(*, say: Callable[[str], object], seconds: float = SECONDS) -> Iterator[RealPair]:
    """Runs every load with every order, each on a system of its own, one after the other."""
    for times in REAL_TIMES:
        came = arrivals(times / (RUN_S + SWAP_S / 2), seconds)
        for name in NAMES:
            say(f"{times:g} times the capacity, {name}: {len(came)} requests in {seconds:g} s")
            yield pair_of(name, came, run_on_system(name, came), times=times, seconds=seconds)


def run_on_system(name: str, came: Sequence[Arrival]) -> list[dict[str, Any]]:
    """The tasks of *came* on a fresh system that serves by the order *name*, without the refused ones."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_file(Path(folder), wait_limit_s=WAIT_S, degraded_margin_s=MARGIN_S)
        slowed = ("--step-seconds", f"{RUN_S:g}", "--load-seconds", f"{SWAP_S:g}")
        own = ("--degraded-order", name) if name in ORDER_NAMES else ()
        environment = {} if own else {ORDER_VARIABLE: f"{name} {SLICE_S:g}"}
        options = ("--lanes", "anisora=0,phr00t=0", "--settings", str(settings), *slowed, *own)
        up = NoopSystem(Path(folder), *options, **environment)
        try:
            up.start()
            return asyncio.run(send_all(up.url, came))
        finally:
            up.stop()


async def send_all(url: str, came: Sequence[Arrival]) -> list[dict[str, Any]]:
    """Posts *came* at their moments; returns the tasks, once all have ended, each with its expected wait."""
    # each request has a connection of its own: the gateway may close an idle one just when it is used again
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        loop, begun_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()

        async def one(arrival: Arrival) -> dict[str, Any] | None:
            await asyncio.sleep(max(0.0, begun_s + arrival.at_s - loop.time()))
            body = {"model": arrival.model, "prompt": "a red fox"}
            answer = await client.post("/generate", json=body, headers={"prefer": "respond-async"})
            if answer.status_code != 202:
                return None
            accepted = answer.json()
            while (task := (await client.get(f"/tasks/{accepted['id']}?wait=30")).json())["finished_at"] is None:
                pass
            place = accepted["queue"]
            found: dict[str, Any] = task | {"expected_s": None if place is None else place["expected_wait_s"]}
            return found

        answers = await asyncio.gather(*(one(arrival) for arrival in came))
    return [task for task in answers if task is not None]


def pair_of(
    name: str, came: Sequence[Arrival], tasks: Sequence[dict[str, Any]], *, times: float, seconds: float
) -> RealPair:
    """*tasks* of the real worker, beside a simulation with the times that the worker took."""
    began = min(datetime.fromisoformat(task["queued_at"]).timestamp() for task in tasks) - came[0].at_s
    started = [task for task in tasks if task["claimed_at"] is not None]
    in_time = [task for task in started if _at(task, "claimed_at") - began <= seconds]
    costs = costs_of(started)
    order = by_policy(Policy()) if name == "swap-aware" else named(SLICE_S)[name]
    outcome: Outcome = simulate(came, order=order, costs=costs, until_s=seconds, wait_s=WAIT_S - MARGIN_S)
    said = [
        (task["expected_s"], _at(task, "claimed_at") - _at(task, "queued_at"))
        for task in started
        if task["expected_s"] is not None
    ]
    off_s = [abs(expected_s - waited_s) for expected_s, waited_s in said]
    right = [off <= max(RIGHT_S, RIGHT_SHARE * waited_s) for off, (_, waited_s) in zip(off_s, said, strict=True)]
    return RealPair(
        times=times,
        order=name,
        real=len(in_time),
        simulated=outcome.served,
        of=len(came),
        swaps_per_task=sum(task["swap"] is not None for task in in_time) / max(1, len(in_time)),
        simulated_swaps=outcome.swaps_per_task,
        longest_wait_s=max((_at(task, "claimed_at") - _at(task, "queued_at") for task in started), default=0.0),
        right_waits=sum(right) / max(1, len(right)),
        median_off_s=statistics.median(off_s) if off_s else 0.0,
    )


def costs_of(tasks: Sequence[dict[str, Any]]) -> Costs:
    """What runs and swaps took, from one claim to the next: the mean of each model."""
    in_turn = sorted(tasks, key=lambda task: str(task["claimed_at"]))
    runs_s: dict[str, list[float]] = {model: [] for model in MODELS}
    swaps_s: dict[str, list[float]] = {model: [] for model in MODELS}
    for task, following in itertools.pairwise(in_turn):
        if _at(following, "queued_at") > _at(task, "finished_at"):
            continue  # the card was idle
        took_s = _at(following, "claimed_at") - _at(task, "claimed_at")
        swap = task["swap"]
        swap_s = 0.0 if swap is None else swap["release_s"] + swap["verify_s"] + swap["load_s"]
        runs_s[task["model"]].append(took_s - swap_s)
        if swap is not None:
            swaps_s[task["model"]].append(swap_s)
    return Costs(
        run_s={model: statistics.fmean(each) for model, each in runs_s.items() if each},
        swap_s={model: statistics.fmean(each) for model, each in swaps_s.items() if each},
    )


def judge_real(pairs: Sequence[RealPair]) -> list[str]:
    """Where the real worker differs from the simulation; empty when nowhere."""
    missed = []
    for pair in pairs:
        if abs(pair.real - pair.simulated) > MAY_DIFFER * pair.simulated:
            missed.append(f"{pair.times:g} times, {pair.order}: {pair.real} started, {pair.simulated} simulated")
        if pair.longest_wait_s > WAIT_S:
            missed.append(f"{pair.times:g} times, {pair.order}: somebody waited {pair.longest_wait_s:.2f} s")
    return missed


REAL_HEADINGS: Final = (
    "times the capacity",
    "order",
    "started",
    "simulated",
    "difference",
    "swaps per task",
    "simulated",
    "longest wait, s",
    "expected waits that were right",
    "off by, s (median)",
)


def real_cells(pair: RealPair) -> tuple[str, ...]:
    """The printed cells of *pair*."""
    return (
        f"{pair.times:g}",
        pair.order,
        f"{pair.real} of {pair.of}",
        str(pair.simulated),
        f"{pair.real / pair.simulated - 1:+.0%}",
        f"{pair.swaps_per_task:.2f}",
        f"{pair.simulated_swaps:.2f}",
        f"{pair.longest_wait_s:.2f}",
        f"{pair.right_waits:.0%}",
        f"{pair.median_off_s:.2f}",
    )


def _at(task: dict[str, Any], field: str) -> float:
    return datetime.fromisoformat(task[field]).timestamp()
