"""poll: `GET /tasks/{id}`, and clients that wait: 1,000 long-polls and 1,000 event streams open at once."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import GenerationTask, VideoFile, decode_task, encode_task
from contracts.topology import TASKS
from ops.nats.api_keys import add
from ops.nats.link import NatsLink
from tests.bench.accept import Sample, submitted
from tests.bench.load import Address, Answer, Connection, LoadFailed, connect, percentile, request
from tests.bench.names import BARE, BARE_JSON, FINISHED, LIVE, LONG_POLLS, STREAMS, WARMLANE
from tests.bench.procs import Cores
from tests.bench.results import Part
from tests.bench.rounds import Values, empty_folder, one_round, rotated
from tests.bench.stacks import Contender, Given, Stack

# A caller may have 500 streams open at a gateway.
CALLERS: Final = 4
END_PER_S: Final = 200.0
ANSWER_S: Final = 60.0
LEASE_S: Final = 3_600.0


async def measure(
    every: Sequence[Contender],
    cores: Cores,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    waiters: int = 1_000,
) -> tuple[Part, ...]:
    """Measures polling, of the gateway and the limit in *every*, and then *waiters* long-polls and as many streams.

    Raises LoadFailed, NotStarted.
    """
    start = {each.name: each.start for each in every}
    with empty_folder() as folder, empty_folder() as bare_folder:
        async with start[WARMLANE](Given(folder=folder, cores=cores)) as stack:
            assert stack.link is not None
            live, finished = await submitted(stack), await submitted(stack)
            await end(stack.link, await take(stack.link, finished))
            await take(stack.link, live)
            await until_shown(stack.address, {live.id: "processing", finished.id: "done"})
            async with start[BARE](Given(folder=bare_folder, cores=cores, record=live.record)) as limit:
                polled = await _poll(stack, limit, live, finished, rounds=rounds, seconds=seconds, say=say)
            if not waiters:
                return (polled,)
            say(f"poll: {waiters:,} long-polls and {waiters:,} event streams")
            return polled, await _wait(stack, live, waiters)


async def _poll(
    stack: Stack,
    limit: Stack,
    live: Sample,
    finished: Sample,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Part:
    line = await connect(limit.address)
    shown = await view_of(stack.address, live.id)
    await line.ask(request("PUT", f"/tasks/{live.id}", limit.address, shown, content_type="application/json"))
    line.close()
    if await view_of(limit.address, live.id) != shown:
        raise LoadFailed("the bare handler does not answer the bytes that the gateway answers")
    polled = ((LIVE, stack, live.id), (FINISHED, stack, finished.id), (BARE_JSON, limit, live.id))
    values = Values()
    for number in range(rounds):
        for name, served, task_id in rotated(polled, number):
            say(f"poll, round {number + 1} of {rounds}: {name}")
            data = request("GET", f"/tasks/{task_id}", served.address)
            figures = await one_round(served, data, what=name, expected=200, seconds=seconds)
            del figures["broker_cpu_s"]  # a poll does not ask the broker
            values.add(name, figures)
    return Part(
        name="poll",
        title="Poll",
        series=values.series(),
        notes=(
            f"`GET /tasks/{{id}}`, {len(shown)} bytes of JSON. The bare handler looks the same bytes up in a dict, as "
            "decoded JSON, and Litestar encodes them again.",
        ),
    )


class _Waiter(Struct):
    """A client that waits. *answered_s* is when it learned of the end, None before. *is_open* is only set for streams,
    by their first event."""

    answered_s: float | None = None
    is_open: bool = False


async def _wait(stack: Stack, live: Sample, waiters: int) -> Part:
    link = stack.link
    assert link is not None
    keys = [
        (await add(link, f"bench-{number}", ("admin",), rate_per_s=None, now=datetime.now(UTC))).text
        for number in range(CALLERS)
    ]
    tasks = await _many(link, live, waiters)
    address, (gateway,) = stack.address, stack.served
    await _until_let_in(address, keys[-1], tasks[-1][0].id)
    before_bytes = gateway.usage().peak_bytes
    polls = [_Waiter() for _ in tasks]
    streams = [_Waiter() for _ in tasks]
    lines: list[Connection] = []
    try:
        for number, (task, _) in enumerate(tasks):
            get = partial(request, "GET", address=address, authorization=f"Bearer {keys[number % CALLERS]}")
            poll, stream = polls[number], streams[number]
            lines.append(line := await connect(address))
            line.start(get(f"/tasks/{task.id}?wait=60"), partial(_on_answer, poll))
            lines.append(line := await connect(address, partial(_on_event, stream)))
            line.start(get(f"/tasks/{task.id}/events"), lambda _: None)
        await _until(lambda: all(stream.is_open for stream in streams), "event streams are not open")
        await _until_let_in(address, keys[0], live.id)  # once this is answered, all earlier ones are read
        early = sum(poll.answered_s is not None for poll in polls)
        if early:
            raise LoadFailed(f"{early} long-polls were answered before their task ended")
        begun_cpu_s, ended = gateway.usage().cpu_s, []
        for number, (task, revision) in enumerate(tasks):
            ended.append(time.perf_counter())
            await end(link, (task, revision))
            await asyncio.sleep(max(0.0, ended[0] + (number + 1) / END_PER_S - time.perf_counter()))
        every = [*polls, *streams]
        await _until(lambda: all(waiter.answered_s is not None for waiter in every), "waiters did not hear of the end")
        used = gateway.usage()
    finally:
        for line in lines:
            line.close()
    values = Values()
    for name, group in ((LONG_POLLS, polls), (STREAMS, streams)):
        late_s = [(waiter.answered_s or 0.0) - since_s for waiter, since_s in zip(group, ended, strict=True)]
        figures = {"open": len(group), "p50_ms": percentile(late_s, 50) * 1e3, "p99_ms": percentile(late_s, 99) * 1e3}
        values.add(name, figures)
    return Part(
        name="waiters",
        title="Waiters",
        series=values.series(),
        notes=(
            f"{2 * waiters:,} connections to one gateway, a long-poll and an event stream for each of {waiters:,} "
            f"tasks, which end {END_PER_S:g} a second; the time from just before the record is written to the client's "
            "news. Nobody missed an end.",
            f"The most memory that the gateway had was {before_bytes / 1e6:.0f} MB before and "
            f"{used.peak_bytes / 1e6:.0f} MB after; the ends took "
            f"{(used.cpu_s - begun_cpu_s) / (2 * waiters) * 1e3:.2f} CPU seconds for 1,000 waiters.",
        ),
    )


def _on_answer(waiter: _Waiter, outcome: Answer | ConnectionError) -> None:
    if isinstance(outcome, Answer) and outcome.status == 200 and b'"status":"done"' in outcome.body:
        waiter.answered_s = time.perf_counter()


def _on_event(waiter: _Waiter, part: bytes) -> None:
    waiter.is_open = waiter.is_open or b"event: task" in part
    if b'"status":"done"' in part:
        waiter.answered_s = time.perf_counter()


async def _until(holds: Callable[[], bool], otherwise: str) -> None:
    until_s = time.perf_counter() + ANSWER_S
    while not holds():
        if time.perf_counter() > until_s:
            raise LoadFailed(f"{otherwise} within {ANSWER_S:g} s")
        await asyncio.sleep(0.01)


async def _until_let_in(address: Address, key: str, task_id: str) -> None:
    line = await connect(address)
    until_s = time.perf_counter() + ANSWER_S
    while (await line.ask(request("GET", f"/tasks/{task_id}", address, authorization=f"Bearer {key}"))).status != 200:
        if time.perf_counter() > until_s:
            raise LoadFailed(f"the gateway does not know a new key or task within {ANSWER_S:g} s")
        await asyncio.sleep(0.01)
    line.close()


async def until_shown(address: Address, statuses: dict[str, str]) -> None:
    """Returns when the gateway has read what was written: it shows each task with its status."""
    until_s = time.perf_counter() + ANSWER_S
    for task_id, status in statuses.items():
        while f'"status":"{status}"'.encode() not in (view := await view_of(address, task_id)):
            if time.perf_counter() > until_s:
                raise LoadFailed(f"no task is shown as {status} within {ANSWER_S:g} s: {view.decode(errors='replace')}")
            await asyncio.sleep(0.01)


async def view_of(address: Address, task_id: str) -> bytes:
    line = await connect(address)
    answer = await line.ask(request("GET", f"/tasks/{task_id}", address))
    line.close()
    return answer.body


async def _many(link: NatsLink, sample: Sample, count: int) -> list[tuple[GenerationTask, int]]:
    """*count* live tasks and their revisions, written as a worker would have left them."""
    task = await task_of(link, sample.id)
    tasks = [replace(task[0], id=f"{sample.id[:-12]}{number:012x}") for number in range(count)]
    return [(each, await link.entries.create(TASKS, each.id, encode_task(each))) for each in tasks]


async def task_of(link: NatsLink, task_id: str) -> tuple[GenerationTask, int]:
    entry = await link.entries.get(TASKS, task_id)
    if entry is None or entry.value is None:
        raise LoadFailed(f"the task {task_id} has no record")
    return decode_task(entry.value), entry.revision


async def take(link: NatsLink, sample: Sample) -> tuple[GenerationTask, int]:
    """Claims the task as a worker does, for an hour."""
    task, revision = await task_of(link, sample.id)
    taken = lifecycle.claim(task, owner="bench", worker="bench-0", lease_s=LEASE_S, now=datetime.now(UTC))
    return taken, await link.entries.update(TASKS, task.id, encode_task(taken), revision=revision)


async def end(link: NatsLink, taken: tuple[GenerationTask, int]) -> None:
    task, revision = taken
    video = VideoFile(path=task.video_path, sha256="0" * 64, bytes=1, width=96, height=64, frames=17, fps=16)
    done = lifecycle.finish(task, video=video, memory=None, now=datetime.now(UTC))
    await link.entries.update(TASKS, task.id, encode_task(done), revision=revision)
