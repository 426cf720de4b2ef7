"""`make bench`, shortened: all its figures can be measured, and the limit stores what the gateway stores."""

import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS
from tests.bench import accept, growth, overhead, overload, overload_figures, poll, swap
from tests.bench.dispatch import delays_ms
from tests.bench.load import LoadFailed, connect, request
from tests.bench.names import (
    ACCEPT,
    BARE,
    BARE_JSON,
    BARE_SWAP,
    CELERY,
    DIRECT,
    DISPATCH,
    FINISHED,
    FRESH,
    GROWING,
    LIVE,
    LONG_POLLS,
    NO_OP,
    POLL_LIVE,
    POLL_NEW,
    POLL_OLD,
    REFUSAL,
    STREAMS,
    TASKIQ,
    TASKIQ_KV,
    WARMLANE,
    finished,
)
from tests.bench.procs import Cores, Script, apart, usable_cores
from tests.bench.results import OTHERS
from tests.bench.rounds import empty_folder
from tests.bench.stacks import BODY, Contender, Given, Stack, contenders, degraded, direct
from tests.bench.turns import scripted, through
from tests.kit.behind import js_of
from tests.kit.support import eventually, settings_file, shared_forks

SECONDS = 0.1
FIGURES = {"per_s", "p50_ms", "p99_ms", "cpu_s", "busy_percent", "peak_mb", "others_percent"}


def quiet(_: str) -> None:
    """Drops a progress line, which nobody reads here."""


async def test_accept_and_poll_can_be_measured() -> None:
    cores = apart(usable_cores())
    async with contextlib.AsyncExitStack() as leave:
        await judge_figures(shared(leave), cores)


def shared(leave: contextlib.AsyncExitStack) -> list[Contender]:
    """Warmlane and the limit, each started once and not for each part: their starts take most of the time here."""
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
    accepted = await accept.measure(every, cores, rounds=1, seconds=SECONDS, say=quiet)
    assert accepted.contenders == (WARMLANE, BARE)
    for contender in accepted.contenders:
        found = {series.figure: series.median for series in accepted.series if series.contender == contender}
        assert found.keys() == FIGURES | {"broker_cpu_s"}
        assert all(found[figure] > 0 for figure in ("per_s", "p50_ms", "p99_ms", "peak_mb"))
        assert found["p50_ms"] <= found["p99_ms"]
    writes = re.findall(r"([\d,]+) bytes in `(\w+)`", accepted.notes[-1])
    assert [stream for _, stream in writes] == ["LANE_PHR00T", "KV_tasks"]
    assert len({size for size, _ in writes}) == 1

    polled, waited = await poll.measure(every, cores, rounds=1, seconds=SECONDS, say=quiet, waiters=5)
    assert set(polled.contenders) == {LIVE, FINISHED, BARE_JSON}
    assert {series.figure for series in polled.series} == FIGURES
    assert {(each.contender, each.values) for each in waited.series if each.figure == "open"} == {
        (LONG_POLLS, (5,)),
        (STREAMS, (5,)),
    }


async def test_overhead_and_swap_can_be_measured(tmp_path: Path) -> None:
    """With tiny pipelines, and on one service: the degraded worker keeps its pipeline as well, until a task needs the
    other one."""
    cores = apart(usable_cores())
    settings = settings_file(tmp_path)
    models_dir, folder = tmp_path / "models", tmp_path / "service"
    models_dir.mkdir()
    folder.mkdir()

    async with degraded(folder, cores, settings=settings, models_dir=models_dir, forks=shared_forks()) as stack:
        with direct("script", folder, cores.rest, settings=settings, models_dir=models_dir) as script:

            def start(_: str) -> contextlib.AbstractContextManager[Script]:
                return contextlib.nullcontext(script)  # a new process would cost six CPU seconds for its imports

            over = await overhead.compare(stack, script, rounds=1, tasks=2, say=quiet)
            swapped = await swap.compare(stack, script, start, rounds=1, swaps=2, fresh_swaps=1, say=quiet)
            task = (await through(stack, swap.body_of("phr00t"))).task
            other = structs.replace(task, parameters=structs.replace(task.parameters, seed=8))
            with pytest.raises(LoadFailed, match="made another video"):
                await scripted(script, other)
    figures = {"p50_ms", "cpu_ms", "peak_mb"}
    for part, script_name in ((over, DIRECT), (swapped, BARE_SWAP)):
        assert {each.figure for each in part.series if each.contender == script_name} == figures | {OTHERS}
        assert {each.figure for each in part.series if each.contender == WARMLANE} == figures | {OTHERS, "over_ms"}
        assert all(each.median > 0 for each in part.series if each.figure in figures)
    assert {each.figure for each in swapped.series if each.contender == FRESH} == figures
    assert not any("nan" in note for note in (*over.notes, *swapped.notes))


async def test_overload_and_growth_can_be_measured() -> None:
    """Both need only one gateway with one degraded worker, which serves all models without a lane."""
    cores = apart(usable_cores())
    async with contextlib.AsyncExitStack() as leave:
        folder = leave.enter_context(empty_folder())
        stack = await leave.enter_async_context(degraded(folder, cores, step_seconds=0.05, forks=shared_forks()))
        start = {each.name: each for each in shared(leave)}
        same = structs.replace(start[WARMLANE], start=lambda _: contextlib.nullcontext(stack))
        await judge_growth([same], cores)
        await judge_overload(stack, start[BARE], cores)


async def judge_growth(every: list[Contender], cores: Cores) -> None:
    """On the second level, the oldest of 1,001 finished tasks is not in memory any more; on the first, all are."""
    tasks, lanes = await growth.measure(
        every, cores, rounds=1, seconds=2 * SECONDS, tasks=1, say=quiet, tasks_levels=(2, 1_000), lanes_levels=(1,)
    )
    assert set(tasks.contenders) == {finished(what, count) for what, _ in GROWING for count in (2, 1_000)} - {
        finished(POLL_OLD, 2)
    }
    reads = {each.contender: each.median for each in tasks.series if each.figure == "kv_reads"}
    assert reads == {
        finished(POLL_LIVE, 2): 0,
        finished(POLL_LIVE, 1_000): 0,
        finished(POLL_NEW, 2): 1,  # here the other level's 1,000 tasks came to the same gateway later
        finished(POLL_NEW, 1_000): 0,
        finished(POLL_OLD, 1_000): 1,
    }
    assert set(lanes.contenders) >= {f"{what}, 1 lane" for what in (ACCEPT, POLL_LIVE, POLL_NEW, DISPATCH)}


async def judge_overload(stack: Stack, bare: Contender, cores: Cores) -> None:
    def start(_: float) -> contextlib.AbstractAsyncContextManager[Stack]:
        return contextlib.nullcontext(stack)

    async with overload.offered_by(start, 0.0) as offered:
        capacity = await overload.capacity_per_s(offered, 2)
        assert capacity > 0
        level = await overload.one_level(offered, rate_per_s=20 * capacity, seconds=1.0, is_full=True)
        found = overload_figures.figures_of(level)
        assert 0 < found["refused_percent"] <= 100
        assert 0 < found["refused_p50_ms"] <= found["refused_p99_ms"]

        async def has_room() -> bool:  # later than the refusal said, if the worker got no core meanwhile
            assert stack.link is not None
            return (await js_of(stack.link).stream_info(DEGRADED)).state.messages < DEGRADED_MAX_MSGS

        first, second = await overload.refused_once(offered, "full", until=partial(eventually, has_room))
        assert (first.status, first.limit, second.status) == (503, "depth", 202)
        assert first.retry_after_s >= 1
        refusals = await overload.refusals_of([bare], cores, offered, rounds=1, seconds=SECONDS, say=quiet)
    assert refusals.contenders == (REFUSAL, NO_OP)
    assert all(each.median > 0 for each in refusals.series if each.figure == "per_s")


@pytest.mark.parametrize("name", [CELERY, TASKIQ, TASKIQ_KV])
async def test_a_peer_runs_what_it_accepts(name: str) -> None:
    contender = next(each for each in contenders() if each.name == name)
    if contender.absent is not None:
        pytest.skip(contender.absent)
    with empty_folder() as folder:
        given = Given(folder=folder, cores=apart(usable_cores()), works=True)
        async with contender.start(given) as stack:
            found_ms = await delays_ms(name, stack, 2)
            if name == TASKIQ_KV:
                await judge_record(stack)
    assert len(found_ms) == 2
    assert min(found_ms) > 0


async def judge_record(stack: Stack) -> None:
    """A client can ask for an accepted task."""
    line = await connect(stack.address)
    try:
        accepted = msgspec.json.decode((await line.ask(stack.post())).body)
        asked = await line.ask(request("GET", f"/tasks/{accepted['id']}", stack.address))
        unknown = await line.ask(request("GET", "/tasks/none", stack.address))
    finally:
        line.close()
    record = msgspec.json.decode(asked.body)
    assert (record["id"], record["status"]) == (accepted["id"], "pending")
    assert record["request"] == msgspec.json.decode(BODY)
    assert unknown.status == 404
