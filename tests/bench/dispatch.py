"""dispatch: from just before a task is published to its first line of work, on an idle worker."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from tests.bench.load import LoadFailed, connect, percentile, request
from tests.bench.names import BARE, TASKIQ_KV, WARMLANE
from tests.bench.procs import Cores
from tests.bench.results import Absent, Part
from tests.bench.rounds import Values, empty_folder, rotated
from tests.bench.stacks import SMALL_BODY, Contender, Given, Stack, started_file

# The worker is idle between two tasks: that is the case to measure.
REST_S: Final = 0.02
BEGUN_S: Final = 60.0
WARM_UP: Final = 3


async def measure(
    contenders: Sequence[Contender], cores: Cores, *, rounds: int, tasks: int, say: Callable[[str], None]
) -> Part:
    """Measures *tasks* of each contender in each round, one at a time. Raises LoadFailed, NotStarted."""
    # the bare limit has no worker, and taskiq-nats with a record has the same worker as without one
    every = [each for each in contenders if each.name not in (BARE, TASKIQ_KV)]
    present = [each for each in every if each.absent is None]
    values = Values()
    pooled: dict[str, list[float]] = {each.name: [] for each in present}
    async with contextlib.AsyncExitStack() as leave:
        stacks = {}
        for contender in present:
            say(f"dispatch: starting {contender.name}")
            folder = leave.enter_context(empty_folder())
            stacks[contender.name] = await leave.enter_async_context(
                contender.start(Given(folder=folder, cores=cores, works=True))
            )
        for name, stack in stacks.items():
            await delays_ms(name, stack, WARM_UP)
        for number in range(rounds):
            for contender in rotated(present, number):
                say(f"dispatch, round {number + 1} of {rounds}: {contender.name}")
                found = await delays_ms(contender.name, stacks[contender.name], tasks)
                pooled[contender.name] += found
                values.add(contender.name, {"p50_ms": percentile(found, 50)})
        for name, stack in stacks.items():
            stack.require_running()
            values.add(name, {"all_p99_ms": percentile(pooled[name], 99)})
    return Part(
        name="dispatch",
        title="Dispatch",
        series=values.series(),
        absent=tuple(Absent(each.name, each.absent) for each in every if each.absent is not None),
        notes=(
            f"{rounds * tasks} tasks in rounds of {tasks}, one at a time, {REST_S * 1e3:g} ms after the one before has "
            "ended; the worker is not on the core of the service, as it would not be elsewhere. One clock: that of the "
            "machine.",
            "Warmlane: from `queued_at` to the event `inference_started`, on a real lane with a tiny pipeline, which "
            "claims the task in its record and hands it to the process of the pipeline before it starts. The peers: "
            "from just before the publish to the first line of the task's function, in the worker's own process "
            "(Celery with the pool `solo`). Nothing is claimed there.",
        ),
    )


async def delays_ms(name: str, stack: Stack, tasks: int) -> list[float]:
    """The times from publish to start of each of *tasks*, in milliseconds. Raises LoadFailed, NotStarted."""
    found = []
    for _ in range(tasks):
        known = 0 if name == WARMLANE else len(_started(stack))
        # a new connection for each task: a service closes one that was idle for 5 s, as while a worker starts
        line = await connect(stack.address)
        try:
            answer = await line.ask(stack.post(SMALL_BODY))
            if answer.status != 202:
                raise LoadFailed(f"{name}: status {answer.status}, {answer.body.decode(errors='replace')}")
            if name == WARMLANE:
                task_id = msgspec.json.decode(answer.body)["id"]
                ended = await line.ask(request("GET", f"/tasks/{task_id}?wait=60", stack.address))
                found.append(delay_ms(msgspec.json.decode(ended.body)))
            else:
                found.append(await _next_ms(name, stack, known))
        finally:
            line.close()
        await asyncio.sleep(REST_S)
    return found


def delay_ms(task: dict[str, Any]) -> float:
    """The time from just before the publish of a finished *task* to its first step. Raises LoadFailed if it failed."""
    if task["status"] != "done":
        raise LoadFailed(f"a task ended as {task['status']}: {task['error']}")
    at = {entry["event"]: datetime.fromisoformat(entry["at"]) for entry in task["timeline"]}
    return (at["inference_started"] - datetime.fromisoformat(task["queued_at"])).total_seconds() * 1e3


async def _next_ms(name: str, stack: Stack, known: int) -> float:
    until_s = time.monotonic() + BEGUN_S
    while len(lines := _started(stack)) <= known:
        stack.require_running()
        if time.monotonic() > until_s:
            raise LoadFailed(f"{name}: a task did not begin within {BEGUN_S:g} s")
        await asyncio.sleep(0.005)
    published_ns, started_ns = map(int, lines[known].split())
    return (started_ns - published_ns) / 1e6


def _started(stack: Stack) -> list[str]:
    path = started_file(stack.folder)
    # a line that is still being written has no end yet
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
