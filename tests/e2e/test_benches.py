"""`make overload`, `make failover`, `make regression`, `make soak` and `make panel`, shortened. The tests judge what
these judge, except durations and growth.

`make swap` is in `test_heavy_swaps.py`, which makes the heavy pipelines anyway.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace
from rich.console import Console

from contracts.memory import SwapReceipt
from contracts.topology import DEGRADED_MAX_MSGS
from tests.drills.failover import fail_over, settings_for
from tests.drills.failover_moves import UNSEEN
from tests.drills.failover_moves import judge as judge_failover
from tests.drills.overload import judge as judge_overload
from tests.drills.overload import overload
from tests.drills.panel import judge as judge_panel
from tests.drills.panel import measure as measure_panel
from tests.drills.regression import judge as judge_regression
from tests.drills.regression import result_of, send
from tests.drills.soak import KEEP_S, NoopSystem, soak
from tests.drills.soak_report import judge as judge_soak
from tests.drills.swap import Alternation
from tests.drills.swap import judge as judge_swaps
from tests.kit.support import settings_file, shared_forks
from tests.kit.system import UpProcess

QUIET = Console(quiet=True)
WAIT_LIMIT_S = 6.0


def test_an_overload_of_ten_times_the_capacity_is_refused_in_order(tmp_path: Path) -> None:
    """SC-007, SC-008, SC-009, with the order that decides more. The limits are those of the queue in any order."""
    settings = settings_file(tmp_path, wait_limit_s=WAIT_LIMIT_S)
    slowed = ("--step-seconds", "0.05", "--degraded-order", "swap-aware")
    options = ("--lanes", "anisora=0,phr00t=0", *slowed, "--settings", str(settings))
    up = UpProcess(tmp_path, *options, **shared_forks())
    try:
        up.start()
        # on a busy machine ten times the capacity can be too little for 25 tasks to wait before the first wait is over
        places_per_s = 2 * DEGRADED_MAX_MSGS / WAIT_LIMIT_S
        seen = asyncio.run(overload(up, times=10, seconds=9, console=QUIET, at_least_per_s=places_per_s))
    finally:
        up.stop()
    assert {answer.limit for answer in seen.answers} == {"", "depth", "wait"}
    missed = [verdict for verdict in judge_overload(seen, wait_limit_s=WAIT_LIMIT_S) if not verdict.passed]
    # the times of an answer and of a refusal also depend on the machine: the gateway refuses half a second before the
    # limit, and may get no core then; no worker claims a task after it
    refused = "longest wait from the queue message to refusal"
    timed = ("longest held answer", refused, *(verdict.what for verdict in missed if "p99" in verdict.what))
    assert [verdict.what for verdict in missed if verdict.what not in timed] == [], missed


def test_a_lane_that_dies_unnoticed_fails_no_request(tmp_path: Path) -> None:
    """FR-021 b, and back: only the lane's silence shows its death, and no request fails because of it."""
    window_s = 4.0
    settings = settings_for(tmp_path, window_s, lease_s=2.0, lease_renew_s=0.5)
    up = UpProcess(tmp_path, "--settings", str(settings), **shared_forks())
    try:
        up.start()
        seen = asyncio.run(fail_over(up, [UNSEEN], rate=2, window_s=window_s, after=10))
    finally:
        up.stop()
    figures = {figure.what.split(",")[0]: figure for figure in judge_failover(seen)}
    for timed in ("until routing moves", "from warm until routing is back"):
        assert figures.pop(timed).measured is not None
    assert [(figure.what, figure.note) for figure in figures.values() if not figure.is_met] == []


@pytest.fixture(scope="module")
def noop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoopSystem]:
    up = NoopSystem(tmp_path_factory.mktemp("noop"), "--keep", f"{KEEP_S:g}s")
    up.start()
    yield up
    up.stop()


def test_a_short_soak_and_a_short_regression_pass(noop: NoopSystem) -> None:
    """SC-004, on a system whose pipelines do nothing: it accepts every request until its server stops."""
    soaked = asyncio.run(soak(noop, count=200, seconds=None, clients=8, keep_s=KEEP_S, console=QUIET))
    well = asyncio.run(send(noop.url, count=10, rate=10, console=QUIET))
    server = noop.find("nats-server")
    os.kill(server, signal.SIGSTOP)
    try:
        stopped = asyncio.run(send(noop.url, count=4, rate=10, console=QUIET))
    finally:
        os.kill(server, signal.SIGCONT)
    assert (soaked.accepted, soaked.ends, soaked.refused) == (200, {"done": 200}, {})
    assert soaked.asked == {"long polls": 20, "event streams": 14, "videos": 4}
    assert [line.what for line in judge_soak(soaked)[:3] if not line.is_met] == [], soaked.processes
    last = soaked.samples[-1].values
    assert last["messages KV_tasks"] >= 200
    assert last["objects artifacts"] == 2 * 200  # a video and its thumbnail
    assert min(last[f"rss {name}"] for name in ("gateway", "nats-server", "supervisor", "phr00t-0's host")) > 1e6

    baseline = result_of(well, rate=10)
    assert well.ends == {"done": 10}
    assert [figure.what for figure in judge_regression(well, baseline)[1:] if not figure.is_met] == []
    assert stopped.answers == {("submit", 503): 4}
    missed = {figure.what for figure in judge_regression(stopped, baseline)[1:] if not figure.is_met}
    assert missed == {"accepted", "of the submits answered with 5xx"}


def test_pages_that_stay_open_are_told_of_a_task_each(noop: NoopSystem) -> None:
    loads, crowd = asyncio.run(measure_panel(noop, tasks=50, pages=5, loads=1, idle_s=1.0))
    assert [line.what for line in judge_panel(loads, crowd)[1:] if not line.passed] == []
    assert loads[0].first_cards_ms >= loads[0].first_paint_ms > 0
    deaf = replace(crowd, heard=4)
    assert [line.what for line in judge_panel(loads, deaf)[1:] if not line.passed] == ["pages told of a new task"]


def test_the_judge_of_swaps_sees_a_leak() -> None:
    """On receipts like those of a leak of 200 MB; `make swap SWAP_ARGS=--leak` plants a real one."""

    def alternation(after_bytes: int, how: Literal["unloaded", "killed"] = "unloaded") -> Alternation:
        receipt = SwapReceipt(
            slot="cpu-0",
            released_model="anisora",
            loaded_model="phr00t",
            how=how,
            probe="rss",
            base_bytes=400_000_000,
            before_bytes=1_200_000_000,
            after_bytes=after_bytes,
            tolerance_bytes=128_000_000,
            free_bytes=16_000_000_000,
            samples=2,
        )
        return Alternation(receipt=receipt, ours_s=1.0, bare_s=1.0)

    def judged(alternations: list[Alternation]) -> list[bool]:
        return [verdict.passed for verdict in judge_swaps(alternations)]

    assert judged([alternation(400_000_000)] * 40) == [True, True, True]
    assert judged([alternation(400_000_000, "killed")] * 40) == [False, False, True]
    grows = [alternation(400_000_000 + number * 2_000_000) for number in range(40)]
    assert judged(grows) == [True, False, True]
