"""`make overload` and `make swap`, shortened: everything that they judge, except how long things take."""

import asyncio
from pathlib import Path

from rich.console import Console

from tests.overload import judge as judge_overload
from tests.overload import overload
from tests.support import settings_file
from tests.swap import alternate
from tests.swap import judge as judge_swaps
from tests.system import UpProcess

QUIET = Console(quiet=True)
WAIT_LIMIT_S = 6.0


def test_ten_times_what_the_worker_can_do(tmp_path: Path) -> None:
    """SC-007, SC-008, SC-009."""
    settings = settings_file(tmp_path, wait_limit_s=WAIT_LIMIT_S)
    options = ("--lanes", "anisora=0,phr00t=0", "--step-seconds", "0.05", "--settings", str(settings))
    up = UpProcess(tmp_path, *options)
    try:
        up.start()
        seen = asyncio.run(overload(up, times=10, seconds=12, console=QUIET))
    finally:
        up.stop()
    assert {answer.limit for answer in seen.answers} == {"", "depth", "wait"}
    missed = [verdict for verdict in judge_overload(seen, wait_limit_s=WAIT_LIMIT_S) if not verdict.passed]
    assert [verdict.what for verdict in missed if "p99" not in verdict.what] == [], missed


async def test_heavy_pipelines_are_released_each_time(heavy_folder: Path) -> None:
    """FR-002."""
    alternations = await alternate(heavy_folder, count=6, leak=False, console=QUIET)
    assert [verdict.passed for verdict in judge_swaps(alternations)[:2]] == [True, True]


async def test_a_planted_leak_fails_the_same_check(heavy_folder: Path) -> None:
    alternations = await alternate(heavy_folder, count=3, leak=True, console=QUIET)
    assert [verdict.passed for verdict in judge_swaps(alternations)[:2]] == [False, False]
