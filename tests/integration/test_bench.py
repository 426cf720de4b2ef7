"""`make bench`, shortened: that its figures can be had, and that the limit stores what the gateway stores."""

import contextlib
import re
from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from ops.bench import accept, poll
from ops.bench.dispatch import delays_ms
from ops.bench.names import BARE, BARE_JSON, CELERY, FINISHED, LIVE, LONG_POLLS, STREAMS, TASKIQ, WARMLANE
from ops.bench.procs import Cores, apart, usable_cores
from ops.bench.rounds import empty_folder
from ops.bench.stacks import Contender, Given, Stack, contenders

SECONDS = 0.1
FIGURES = {"per_s", "p50_ms", "p99_ms", "cpu_s", "busy_percent", "peak_mb", "others_percent"}


def told(_: str) -> None:
    """Progress, which nobody reads here."""


async def test_accept_and_poll_can_be_measured() -> None:
    cores = apart(usable_cores())
    async with contextlib.AsyncExitStack() as leave:
        await judge_figures(shared(leave), cores)


def shared(leave: contextlib.AsyncExitStack) -> list[Contender]:
    """Warmlane and the limit, each started once and not for each part: their starts are what costs most here."""
    running: dict[str, Stack] = {}

    def once(contender: Contender) -> Contender:
        @contextlib.asynccontextmanager
        async def start(given: Given) -> AsyncIterator[Stack]:
            if contender.name not in running:
                folder = leave.enter_context(empty_folder())
                own = structs.replace(given, folder=folder)
                running[contender.name] = await leave.enter_async_context(contender.start(own))
            yield running[contender.name]

        return structs.replace(contender, start=start)

    return [once(each) for each in contenders() if each.name in (WARMLANE, BARE)]


async def judge_figures(every: list[Contender], cores: Cores) -> None:
    # raises where the two do not store the same number of bytes in the same order
    accepted = await accept.measure(every, cores, rounds=1, seconds=SECONDS, say=told)
    assert accepted.contenders == (WARMLANE, BARE)
    for contender in accepted.contenders:
        found = {series.figure: series.median for series in accepted.series if series.contender == contender}
        assert found.keys() == FIGURES | {"broker_cpu_s"}
        assert all(found[figure] > 0 for figure in ("per_s", "p50_ms", "p99_ms", "peak_mb"))
        assert found["p50_ms"] <= found["p99_ms"]
    writes = re.findall(r"([\d,]+) bytes in `(\w+)`", accepted.notes[-1])
    assert [stream for _, stream in writes] == ["LANE_PHR00T", "DEADLINES", "KV_tasks"]
    assert len({size for size, _ in writes}) == 1

    polled, waited = await poll.measure(every, cores, rounds=1, seconds=SECONDS, say=told, waiters=5)
    assert set(polled.contenders) == {LIVE, FINISHED, BARE_JSON}
    assert {series.figure for series in polled.series} == FIGURES
    assert {(each.contender, each.values) for each in waited.series if each.figure == "open"} == {
        (LONG_POLLS, (5,)),
        (STREAMS, (5,)),
    }


@pytest.mark.parametrize("name", [CELERY, TASKIQ])
async def test_a_peer_runs_what_it_accepts(name: str) -> None:
    contender = next(each for each in contenders() if each.name == name)
    if contender.absent is not None:
        pytest.skip(contender.absent)
    with empty_folder() as folder:
        given = Given(folder=folder, cores=apart(usable_cores()), works=True)
        async with contender.start(given) as stack:
            found_ms = await delays_ms(name, stack, 2)
    assert len(found_ms) == 2
    assert min(found_ms) > 0
