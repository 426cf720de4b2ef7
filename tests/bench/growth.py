"""growth: accept, poll and dispatch beside many finished tasks, and beside many lanes."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from nats.aio.msg import Msg

from contracts.tasks import GenerationTask, decode_task, encode_task
from contracts.topology import TASKS, bucket_stream, bucket_subject, lane_stream
from ops.ending import end as ended
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.waiting import set_within
from tests.bench.accept import Sample
from tests.bench.dispatch import WARM_UP, delays_ms
from tests.bench.load import LoadFailed, connect, percentile, request
from tests.bench.names import (
    ACCEPT,
    DISPATCH,
    FEW,
    MANY,
    POLL_LIVE,
    POLL_NEW,
    POLL_OLD,
    SOME,
    WARMLANE,
    finished,
    lanes,
)
from tests.bench.poll import end, take, until_shown
from tests.bench.procs import Cores
from tests.bench.results import Part
from tests.bench.rounds import Values, empty_folder, one_round, rotated
from tests.bench.stacks import BODY, Contender, Given, Stack, say_warm
from tests.kit.behind import client_of, until_subscribed

TASKS_LEVELS: Final = (FEW, SOME, MANY)
LANES_LEVELS: Final = (1, 10, 100)
# Its lanes are heartbeats only: no worker takes the accepted tasks.
MODEL: Final = "anisora"
BODY_OF_IT: Final = msgspec.json.encode(msgspec.json.decode(BODY) | {"model": MODEL})
HEARTBEAT_S: Final = 5.0
# The share of `--seconds` and of `--tasks`, because there is much to measure in turn.
SHARE: Final = 0.4
# How many writes of records are under way at once, so as not to overrun the server.
WRITTEN_AT_ONCE: Final = 32
TRIES: Final = 5
READ_S: Final = 120.0
READS: Final = 50
PAGE: Final = 100
REMOVED: Final = {"KV-Operation": "DEL"}
# No task has an id that ends so.
NO_TASK: Final = "f" * 12
WHATS: Final = (ACCEPT, POLL_LIVE, POLL_NEW, POLL_OLD, DISPATCH)


class Grown(Struct, kw_only=True):
    """A stack with the tasks that are polled there. *old* is a task that the gateway does not hold in memory; None:
    it holds all.

    *shown* is the task whose record the report describes.
    """

    stack: Stack
    level: int
    live: Sample
    finished: Sample
    shown: str
    old: str | None = None

    @property
    def link(self) -> NatsLink:
        assert self.stack.link is not None
        return self.stack.link

    @property
    def gateway(self) -> Stack:
        """The same stack, with the gateway as the only watched process."""
        return replace(self.stack, served=self.stack.served[:1])


async def measure(
    every: Sequence[Contender],
    cores: Cores,
    *,
    rounds: int,
    seconds: float,
    tasks: int,
    say: Callable[[str], None],
    tasks_levels: Sequence[int] = TASKS_LEVELS,
    lanes_levels: Sequence[int] = LANES_LEVELS,
) -> tuple[Part, ...]:
    """Measures Warmlane of *every* once for each level. The levels of a part run side by side.

    Raises LoadFailed, NotStarted.
    """
    start = next(each.start for each in every if each.name == WARMLANE)

    tasks = max(1, round(tasks * SHARE))

    async def measured(name: Callable[[str, int], str], levels: Sequence[int]) -> tuple[Values, list[int]]:
        async with contextlib.AsyncExitStack() as leave:
            every_grown = []
            for level in levels:
                say(f"growth: starting {name('a system', level)}")
                folder = leave.enter_context(empty_folder())
                stack = await leave.enter_async_context(start(Given(folder=folder, cores=cores, works=True)))
                await leave.enter_async_context(_beating(stack, level if name is lanes else 1))
                every_grown.append(await _grown(stack, level, records=level if name is finished else 0))
            values = await _rounds(every_grown, name, rounds=rounds, seconds=seconds * SHARE, tasks=tasks, say=say)
            return values, [await _record_bytes(each) for each in every_grown]

    values, sizes = await measured(finished, tasks_levels)
    by_tasks = Part(
        name="tasks",
        title="Growth: finished tasks",
        series=values.series(),
        notes=(
            f"A system for each level, all up at the same time, with a gateway that saw the tasks pass: "
            f"{', '.join(f'{level:,}' for level in tasks_levels)} records of {sizes[-1]:,} bytes, copies of one "
            "that a lane's worker has finished, and their (empty) files in the artifact store. They are written into "
            "the KV bucket directly, and each once: a task that ran leaves three to six revisions. While it is "
            f"measured, each level gains {rounds * tasks} more by dispatch.",
            "A poll is of a live task, of one that has just finished, or of the oldest one, which the gateway does not "
            "keep in memory beyond the newest 1,000; its record is read from the server each time, as the requests "
            "for records that the server saw show.",
            "What was accepted is removed again after each round. CPU and memory are the gateway's.",
        ),
    )
    values, lane_sizes = await measured(lanes, lanes_levels)
    by_lanes = Part(
        name="lanes",
        title="Growth: lanes",
        series=values.series(),
        notes=(
            f"Lanes are heartbeats, one in {HEARTBEAT_S:g} s each, of as many lanes of each of two models; the one "
            "lane that dispatch needs is real. All lanes of one model are the worst case: a routing decision keeps "
            "the state of each, so that it can be derived again. Of the least and the most lanes, the record of an "
            f"accepted task has {lane_sizes[0]:,} and {lane_sizes[-1]:,} bytes.",
        ),
    )
    return by_tasks, by_lanes


async def beat(link: NatsLink, model: str, numbers: Sequence[int]) -> None:
    """Sends heartbeats of the lanes of *model* with these *numbers*, first all at once, then evenly spread, until
    cancelled."""
    for number in numbers:
        await say_warm(link, model, f"{model}-{number}")
    for number in itertools.cycle(numbers):
        await asyncio.sleep(HEARTBEAT_S / len(numbers))
        await say_warm(link, model, f"{model}-{number}")


@contextlib.asynccontextmanager
async def _beating(stack: Stack, count: int) -> AsyncIterator[None]:
    link = stack.link
    assert link is not None
    beats = [asyncio.create_task(beat(link, MODEL, range(count)))]
    if count > 1:  # the first lane is real
        beats.append(asyncio.create_task(beat(link, "phr00t", range(1, count))))
    try:
        yield
    finally:
        await ended(*beats)


async def _grown(stack: Stack, level: int, *, records: int) -> Grown:
    link = stack.link
    assert link is not None
    await delays_ms(WARMLANE, stack, WARM_UP)
    first = await fill(stack, records) if records else None
    live, done = await _submitted(stack), await _submitted(stack)
    await end(link, await take(link, done))
    await take(link, live)
    await until_shown(stack.address, {live.id: "processing", done.id: "done"})
    grown = Grown(stack=stack, level=level, live=live, finished=done, shown=first or live.id, old=first)
    if first is not None and not await reads_per_poll(grown, first):
        grown.old = None
    return grown


async def _record_bytes(grown: Grown) -> int:
    entry = await grown.link.entries.get(TASKS, grown.shown)
    return 0 if entry is None or entry.value is None else len(entry.value)


async def _submitted(stack: Stack) -> Sample:
    """Submits a task that no lane takes."""
    line = await connect(stack.address)
    until_s = time.monotonic() + READ_S
    try:
        while True:
            answer = await line.ask(stack.post(BODY_OF_IT))
            task = msgspec.json.decode(answer.body)
            if answer.status != 202:
                raise LoadFailed(f"a task is not accepted: {answer.body.decode(errors='replace')}")
            if task["route"] == "lane":
                return Sample(id=task["id"], record=b"")
            if time.monotonic() > until_s:
                raise LoadFailed("the gateway does not know of a heartbeat")
            await asyncio.sleep(0.05)
    finally:
        line.close()


async def fill(stack: Stack, count: int) -> str:
    """Stores *count* finished tasks, copies of the newest that a worker has finished; returns the id of the first.

    Returns when the gateway has read them all. Raises LoadFailed.
    """
    link = stack.link
    assert link is not None
    sample = (await _listed(stack, "done", 1))[0]
    entry = await link.entries.get(TASKS, sample)
    if entry is None or entry.value is None:
        raise LoadFailed(f"the task {sample} has no record")
    task = decode_task(entry.value)
    ids = [f"{sample[:-12]}{number:012x}" for number in range(count)]
    for begin in range(0, count, WRITTEN_AT_ONCE):
        some = range(begin, min(count, begin + WRITTEN_AT_ONCE))
        await asyncio.gather(*(_copy(stack, link, task, ids[number], number) for number in some))
    await _until(partial(_is_newest, stack, ids[-1]), "the gateway has not read all finished tasks")
    return ids[0]


async def _copy(stack: Stack, link: NatsLink, task: GenerationTask, task_id: str, number: int) -> None:
    assert task.video is not None
    copied = replace(task, id=task_id, created_at=task.created_at + timedelta(microseconds=number + 1))
    copied = replace(copied, video=replace(task.video, path=copied.video_path, thumbnail=None))
    (stack.folder / "artifacts" / copied.video_path).touch()
    await _surely(partial(link.entries.put, TASKS, task_id, encode_task(copied)))


async def _surely(call: Callable[[], Awaitable[object]]) -> None:
    """Repeats *call* while a busy server does not answer: *call* is idempotent. Raises LoadFailed."""
    for _ in range(TRIES):
        try:
            await call()
            return
        except TransportUnavailable as error:
            last_error = str(error)
    raise LoadFailed(f"the nats-server does not answer {TRIES} times: {last_error}")


async def _is_newest(stack: Stack, task_id: str) -> bool:
    return await _listed(stack, "done", 1) == [task_id]


async def _listed(stack: Stack, status: str, limit: int) -> list[str]:
    line = await connect(stack.address)  # the gateway closes a connection that is idle for a while
    answer = await line.ask(request("GET", f"/tasks?status={status}&limit={limit}", stack.address))
    line.close()
    return [task["id"] for task in msgspec.json.decode(answer.body)["tasks"]]


async def _until(holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    until_s = time.monotonic() + READ_S
    while not await holds():
        if time.monotonic() > until_s:
            raise LoadFailed(f"{otherwise} within {READ_S:g} s")
        await asyncio.sleep(0.05)


async def reads_per_poll(grown: Grown, task_id: str) -> float:
    """How often any client asks the server for the record of *task_id*, for each poll of it.

    The server may answer a question before it copies the question to this subscription. It takes the questions of one
    connection in order. So a last one, for a task that does not exist, closes the count. Raises LoadFailed.
    """
    asked, last, closed = 0, f"{task_id[: -len(NO_TASK)]}{NO_TASK}", asyncio.Event()

    async def count(question: Msg) -> None:
        nonlocal asked
        asked += task_id.encode() in question.data
        if last.encode() in question.data:
            closed.set()

    subscription = await client_of(grown.link).subscribe(f"$JS.API.STREAM.MSG.GET.{bucket_stream(TASKS)}", cb=count)
    await until_subscribed(grown.link)
    line = await connect(grown.stack.address)
    for polled, status in [(task_id, 200)] * READS + [(last, 404)]:
        answer = await line.ask(request("GET", f"/tasks/{polled}", grown.stack.address))
        if answer.status != status:
            raise LoadFailed(f"{polled} is answered with {answer.status}: {answer.body.decode(errors='replace')}")
    line.close()
    if not await set_within(READ_S, closed):
        raise LoadFailed(f"the server was not asked for {last} within {READ_S:g} s")
    await subscription.unsubscribe()
    return asked / READS


async def _rounds(
    every: Sequence[Grown],
    name: Callable[[str, int], str],
    *,
    rounds: int,
    seconds: float,
    tasks: int,
    say: Callable[[str], None],
) -> Values:
    values = Values()
    pooled: dict[str, list[float]] = {name(DISPATCH, each.level): [] for each in every}

    async def polled(what: str, grown: Grown, task_id: str) -> dict[str, float]:
        data = request("GET", f"/tasks/{task_id}", grown.stack.address)
        figures = await one_round(grown.gateway, data, what=what, expected=200, seconds=seconds)
        return figures | {"kv_reads": await reads_per_poll(grown, task_id)}

    async def one(what: str, grown: Grown) -> dict[str, float] | None:
        if what == ACCEPT:
            data = grown.stack.post(BODY_OF_IT)
            figures = await one_round(grown.gateway, data, what=what, expected=202, seconds=seconds)
            await _remove_accepted(grown)
            return figures
        if what == DISPATCH:
            found = await delays_ms(WARMLANE, grown.stack, tasks)
            pooled[name(what, grown.level)] += found
            return {"p50_ms": percentile(found, 50)}
        task_id = {POLL_LIVE: grown.live.id, POLL_NEW: grown.finished.id, POLL_OLD: grown.old}[what]
        return None if task_id is None else await polled(what, grown, task_id)

    for number in range(rounds):
        for what in WHATS:
            for grown in rotated(every, number):
                called = name(what, grown.level)
                say(f"round {number + 1} of {rounds}: {called}")
                figures = await one(what, grown)
                if figures is not None:
                    values.add(called, figures)
    for grown in every:
        grown.stack.require_running()
        called = name(DISPATCH, grown.level)
        values.add(called, {"all_p99_ms": percentile(pooled[called], 99)})
    return values


async def _remove_accepted(grown: Grown) -> None:
    """Removes record and message of the tasks that no lane takes, before their 30 s are over."""
    link = grown.link
    await _surely(partial(link.messages.purge, lane_stream(MODEL), ">"))
    while ids := await _listed(grown.stack, "pending", PAGE):
        marked = (partial(link.messages.publish, bucket_subject(TASKS, each), b"", headers=REMOVED) for each in ids)
        await asyncio.gather(*(_surely(each) for each in marked))
        await _until(partial(_is_none_of, grown.stack, ids), "the gateway has not read what was removed")


async def _is_none_of(stack: Stack, ids: Sequence[str]) -> bool:
    return not set(ids) & set(await _listed(stack, "pending", PAGE))
