"""overload: more than the degraded worker can serve. It shows what still gets done, how fast the gateway refuses the
rest, and whether the `Retry-After` of a refusal is true."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import httpx
from msgspec import Struct
from msgspec.structs import replace

from contracts.tasks import GenerationTask, TaskStatus, decode_task
from contracts.topology import DEGRADED_MAX_MSGS, TASKS
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.bench.accept import submitted
from tests.bench.arrivals import Answer, client_of, moments, post, send
from tests.bench.load import LoadFailed, connect, request
from tests.bench.names import BARE, CAPACITY, IN_TIME, NO_OP, REFUSAL, TOO_EARLY, at_times
from tests.bench.overload_figures import Level, When, accepted_percent, figures_of
from tests.bench.procs import Cores, Watch
from tests.bench.results import Part
from tests.bench.rounds import Values, empty_folder, one_round, rotated
from tests.bench.stacks import BODY, MODEL, Contender, Given, Stack, degraded

TIMES: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
# A task takes some 0.4 s: the worker serves a full queue within a quarter of the time for which it holds a task.
STEP_S: Final = 0.05
# A task takes some 1.6 s: a full queue is 10 s more work than fits into that time, which `Retry-After` has to cover.
SLOW_STEP_S: Final = 0.35
CALIBRATION: Final = 15
# How long each level is watched, in multiples of `--seconds`.
LEVEL: Final = 2.0
ENDED_S: Final = 60.0
# How often a refused request is sent again while the load goes on: rarely, beside the load.
AGAIN_EVERY_S: Final = 0.4
SMALL: Final = {"seed": 7, "width": 32, "height": 32, "num_frames": 5}
Start = Callable[[float], contextlib.AbstractAsyncContextManager[Stack]]


class Records:
    """Every task that comes after `watch`, with its current record."""

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self._before: set[str] = set()
        self.tasks: dict[str, GenerationTask] = {}

    async def watch(self) -> None:
        await (await self._link.watches.start(TASKS, self._on_record)).wait()
        self._before = set(self.tasks)
        self.tasks.clear()

    def ended_within(self, since: datetime, seconds: float) -> list[GenerationTask]:
        """The tasks that ended within *seconds* after *since*."""
        until = since + timedelta(seconds=seconds)
        ends = [(task, task.finished_at) for task in self.tasks.values()]
        return [task for task, at in ends if at is not None and since <= at < until]

    async def until_all_ended(self) -> None:
        """Returns when every task has ended. Raises LoadFailed when one still lives after a minute."""
        until_s = time.monotonic() + ENDED_S
        while live := [task for task in self.tasks.values() if not task.status.is_terminal]:
            if time.monotonic() > until_s:
                raise LoadFailed(f"{len(live)} tasks live on, as {live[0].id}, which is {live[0].status}")
            await asyncio.sleep(0.02)

    def _on_record(self, entry: Entry) -> None:
        if entry.value is not None and entry.key not in self._before:
            self.tasks[entry.key] = decode_task(entry.value)


class Offered(Struct, frozen=True):
    """A stack that is overloaded, its records, and a client of it."""

    stack: Stack
    records: Records
    client: httpx.AsyncClient

    async def post(self, number: int, due_s: float | None = None, **headers: str) -> Answer:
        return await post(self.client, MODEL, number, due_s=due_s, headers=headers, **SMALL)


@contextlib.asynccontextmanager
async def offered_by(start: Start, step_s: float) -> Any:
    async with start(step_s) as stack:
        assert stack.link is not None
        records = Records(stack.link)
        await records.watch()
        host, port = stack.address
        async with client_of(f"http://{host}:{port}") as client:
            yield Offered(stack, records, client)


async def capacity_per_s(offered: Offered, tasks: int) -> float:
    """How many tasks the worker ends a second while it is never idle, from *tasks* of one model, at most 25."""
    answers = [await offered.post(number, prefer="respond-async") for number in range(tasks)]
    if any(answer.status != 202 for answer in answers):
        raise LoadFailed(f"an idle worker's queue refuses a task: {answers[-1]}")
    await offered.records.until_all_ended()
    ended = [offered.records.tasks[answer.task_id] for answer in answers]
    moments = sorted(task.finished_at for task in ended if task.status is TaskStatus.DONE and task.finished_at)
    if len(moments) < tasks:
        raise LoadFailed(f"of {tasks} tasks {tasks - len(moments)} failed")
    return (tasks - 1) / (moments[-1] - moments[0]).total_seconds()


async def one_level(offered: Offered, *, rate_per_s: float, seconds: float, is_full: bool, seed: int = 0) -> Level:
    """Sends *rate_per_s* requests a second at random moments, to an empty queue or, with *is_full*, to a full one.

    Returns when all tasks have ended, so that the next level finds an idle worker.
    """
    again: list[asyncio.Task[tuple[When, Answer]]] = []
    next_again_s = 0.0

    async def arrive(number: int, due_s: float) -> Answer:
        nonlocal next_again_s
        answer = await offered.post(number, due_s)
        now_s = time.perf_counter()
        when: When = "half" if len(again) % 2 else "full"
        wait_s = answer.retry_after_s / (2 if when == "half" else 1)
        if answer.limit == "depth" and now_s >= next_again_s and now_s + wait_s < until_s:
            next_again_s = now_s + AGAIN_EVERY_S
            again.append(asyncio.create_task(_again(offered, number, when, now_s + wait_s)))
        return answer

    waiting = [asyncio.create_task(offered.post(-number)) for number in range(DEGRADED_MAX_MSGS + 1 if is_full else 0)]
    if waiting:
        await _until_full(offered)
    begun, until_s = datetime.now(UTC), time.perf_counter() + seconds
    answers = await send(moments(rate_per_s, seconds, seed=seed), arrive)
    sent_again = await asyncio.gather(*again)
    await asyncio.gather(*waiting)
    await offered.records.until_all_ended()
    if is_full:
        ended = offered.records.ended_within(begun, seconds)
    else:  # no backlog grows, so the tasks of the accepted requests count
        ended = [offered.records.tasks[each.task_id] for each in answers if each.status == 202]
    return Level(seconds=seconds, answers=answers, again=sent_again, ended=ended)


async def _again(offered: Offered, number: int, when: When, at_s: float) -> tuple[When, Answer]:
    await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
    return when, await offered.post(number, at_s)


async def _until_full(offered: Offered) -> None:
    until_s = time.monotonic() + ENDED_S
    while sum(task.status is TaskStatus.PENDING for task in offered.records.tasks.values()) < DEGRADED_MAX_MSGS - 1:
        if time.monotonic() > until_s:
            raise LoadFailed(f"the queue is not full within {ENDED_S:g} s")
        await asyncio.sleep(0.02)


async def refused_once(
    offered: Offered, when: When, *, until: Callable[[], Awaitable[object]] | None = None
) -> tuple[Answer, Answer]:
    """The refusal of a request by a full queue, and the answer to the same request when it is sent again and no other
    request comes. That is when the refusal said, and not before *until* returns."""
    held: list[asyncio.Task[Answer]] = []
    while True:
        held.append(asyncio.create_task(offered.post(len(held))))
        await asyncio.wait({held[-1]}, timeout=0.05)
        if held[-1].done() and held[-1].result().status != 202:
            break
        if len(held) > 4 * DEGRADED_MAX_MSGS:
            raise LoadFailed(f"of {len(held)} requests at once the queue refuses none")
    first = held[-1].result()
    wait_s = first.retry_after_s / (2 if when == "half" else 1)
    if until is not None:
        await until()
    _, second = await _again(offered, -1, when, max(time.perf_counter(), first.sent_s + first.took_s + wait_s))
    await asyncio.gather(*held)
    await offered.records.until_all_ended()
    return first, second


async def measure(
    every: Sequence[Contender],
    cores: Cores,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    start: Start | None = None,
    calibration: int = CALIBRATION,
) -> tuple[Part, ...]:
    """Measures each level in every round, then refusals beside a handler that does nothing, then the worth of
    `Retry-After`.

    *start* starts a gateway and a degraded worker whose steps take the given number of seconds longer. Raises
    LoadFailed, NotStarted.
    """
    start = start or partial(_fresh, cores)
    async with offered_by(start, STEP_S) as offered:
        levels = await _levels(offered, rounds=rounds, seconds=seconds, calibration=calibration, say=say)
        refusals = await refusals_of(every, cores, offered, rounds=rounds, seconds=seconds, say=say)
    alone = await _alone(start, rounds=rounds, say=say)
    return levels, refusals, alone


@contextlib.asynccontextmanager
async def _fresh(cores: Cores, step_seconds: float) -> Any:
    with empty_folder() as folder:
        async with degraded(folder, cores, step_seconds=step_seconds) as stack:
            yield stack


async def _levels(
    offered: Offered, *, rounds: int, seconds: float, calibration: int, say: Callable[[str], None]
) -> Part:
    values = Values()
    gateway = offered.stack.served[0]
    watched_s = LEVEL * seconds
    await capacity_per_s(offered, 2)  # loads the pipeline
    for number in range(rounds):
        say(f"overload, round {number + 1} of {rounds}: {CAPACITY}")
        capacity = await capacity_per_s(offered, calibration)
        values.add(CAPACITY, {"goodput": capacity})
        for times in rotated(TIMES, number):
            say(f"overload, round {number + 1} of {rounds}: {times:g} times {capacity:.2f} a second")
            watch = Watch((gateway,), offered.stack.brokers)
            whole = Watch(offered.stack.served, offered.stack.brokers)
            level = await one_level(
                offered, rate_per_s=times * capacity, seconds=watched_s, is_full=times > 1, seed=number
            )
            used, others_percent = watch.end(), whole.end().others_percent
            thousands = (len(level.answers) + len(level.again)) / 1_000
            found = figures_of(level) | {"peak_mb": used.peak_bytes / 1e6}
            values.add(
                at_times(times),
                found | {"cpu_s": used.served_s / max(thousands, 0.001), "others_percent": others_percent},
            )
            offered.stack.require_running()
    return Part(
        name="overload",
        title="Overload",
        series=values.series(),
        notes=(
            "A gateway and a degraded worker with a tiny pipeline and no lane; every request is for the same model, "
            f"each step takes {STEP_S:g} s longer than it must. The capacity is what the worker did in the same round "
            f"when {calibration} tasks waited for it, and what the multiples are of.",
            f"Requests come at random moments for {watched_s:g} s, each as a client that holds the line. Above the "
            f"capacity the queue is filled with {DEGRADED_MAX_MSGS} requests before that: it would take seconds to "
            "get there by itself, and nobody is refused before. Done in time are tasks that ended with a video and "
            "were taken within 30 s: of a full queue those that ended in this time, otherwise those that came in it. "
            f"A full queue was {DEGRADED_MAX_MSGS / capacity_of(values):.0f} s of work. Up to 30 s of that, nearly all "
            "refusals are for its length; beyond, requests are also refused when they have waited for 30 s (make "
            "overload).",
            "Refusals are timed from the moment at which their request was due, by a client in Python that shares its "
            "core with the nats-server. CPU time is the gateway's, for each 1,000 requests, the held ones included.",
            f"About every {AGAIN_EVERY_S:g} s one that was refused is sent again, in turn after the seconds that it "
            "was told (`Retry-After` is in whole seconds, at least 1) and after half of that. The load goes on: a "
            "place that becomes free goes to whoever comes first, and `Retry-After` cannot know of those.",
        ),
    )


def capacity_of(values: Values) -> float:
    """The median of the worker's capacity, in tasks a second."""
    return next(each.median for each in values.series() if each.contender == CAPACITY)


async def refusals_of(
    every: Sequence[Contender],
    cores: Cores,
    offered: Offered,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Part:
    """Measures refusals at the full queue of the same gateway. Its worker has left, so it stays full for 30 s."""
    stack = offered.stack
    sample = await submitted(stack)
    await offered.records.until_all_ended()
    gateway, worker = stack.served[0], stack.served[-1]
    worker.stop()
    full = replace(stack, served=(gateway,))
    start = next(each.start for each in every if each.name == BARE)
    values = Values()
    with empty_folder() as folder:
        async with start(Given(folder=folder, cores=cores, record=sample.record)) as limit:
            no_op = request("POST", "/refuse", limit.address, BODY, content_type="application/json")
            for number in range(rounds):
                for name in rotated((REFUSAL, NO_OP), number):
                    say(f"refusals, round {number + 1} of {rounds}: {name}")
                    served, data = (limit, no_op) if name == NO_OP else (full, full.post())
                    if name == REFUSAL:
                        await _fill(offered)
                    found = await one_round(served, data, what=name, expected=503, seconds=seconds)
                    if name == REFUSAL:
                        await _empty(offered)
                    values.add(name, found)
    return Part(
        name="refusals",
        title="Refusals of a full queue",
        series=values.series(),
        notes=(
            "The same gateway without its worker, with 25 requests in the queue; the no-op handler is a Litestar route "
            "that answers `503` with a constant JSON body. Both get the same body. The gateway checks and routes it. "
            "Ten times a second it asks the nats-server, and works `Retry-After` out from the 25.",
        ),
    )


async def _fill(offered: Offered) -> None:
    for number in range(DEGRADED_MAX_MSGS):
        answer = await offered.post(number, prefer="respond-async")
        if answer.status != 202:
            raise LoadFailed(f"an empty queue refuses the {number + 1}th request: {answer}")


async def _empty(offered: Offered) -> None:
    line = await connect(offered.stack.address)
    for task in list(offered.records.tasks.values()):
        if not task.status.is_terminal:
            answer = await line.ask(request("DELETE", f"/tasks/{task.id}", offered.stack.address))
            if answer.status != 200:
                raise LoadFailed(f"a task is not cancelled: {answer.body.decode(errors='replace')}")
    line.close()
    await offered.records.until_all_ended()


async def _alone(start: Start, *, rounds: int, say: Callable[[str], None]) -> Part:
    """Measures requests that are refused, and sent again while no other request comes. Each way has a stack of its own,
    because an accepted request delays others."""
    ways: tuple[tuple[str, When], ...] = ((IN_TIME, "full"), (TOO_EARLY, "half"))
    values = Values()
    async with contextlib.AsyncExitStack() as leave:
        every = [(name, when, await leave.enter_async_context(offered_by(start, SLOW_STEP_S))) for name, when in ways]
        say(f"Retry-After: what the workers can do, then {rounds} times refused and sent again")
        services = await asyncio.gather(*(capacity_per_s(offered, 6) for _, _, offered in every))
        for number in range(rounds):
            say(f"Retry-After, round {number + 1} of {rounds}")
            found = await asyncio.gather(*(refused_once(offered, when) for _, when, offered in every))
            for (name, _, _), (first, second) in zip(every, found, strict=True):
                figures_of(Level(seconds=1, answers=(first, second), again=(), ended=()))  # raises for other answers
                waited = {"retry_after_s": first.retry_after_s, "again_percent": accepted_percent([second]) or 0.0}
                values.add(name, waited | {"again_s": second.took_s})
    shown = ", ".join(f"{1 / each:.2f}" for each in services)
    return Part(
        name="again",
        title="Refused, and sent again",
        series=values.series(),
        notes=(
            f"Two systems at once whose workers need {shown} s for a task, so that a full queue is more work than "
            "fits into the 30 s for which a request may wait. 25 requests fill the queue, one more is refused. It is "
            "sent again once, and nobody else comes: accepted is `202`, when a worker has taken it; otherwise it is "
            "refused at once, or after 30 s. `Retry-After` is true when what is sent again then is accepted, and no "
            "longer than it must be when what is sent after half of it is not. It is worked out as if none of those "
            "that wait gave up, for under overload others come in their place; here nobody does. The percentages are "
            "of one request in each round.",
        ),
    )
