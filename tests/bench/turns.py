"""A task from submit to done, and the same video by a script that calls the pipeline itself."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec import Struct

from contracts.tasks import GenerationTask, TaskStatus, decode_task_of
from contracts.topology import TASKS
from tests.bench.jobs import Job, Made
from tests.bench.load import LoadFailed, connect, request
from tests.bench.procs import Script, Used, Watch
from tests.bench.rounds import Values, rotated
from tests.bench.stacks import Stack

ACCEPTED: Final = 202
# Between two videos: a service's work after its answer must not slow down the start of the next video.
REST_S: Final = 0.02

# A contender's name, and what makes one video.
Turn = tuple[str, Callable[[], Awaitable[None]]]


class Through(Struct, frozen=True):
    """A task that is done, and the seconds from just before its request to the answer that reports it done."""

    task: GenerationTask
    seconds: float


class Scripted(Struct, frozen=True):
    """What a script made, and the seconds from just before its request to its answer."""

    made: Made
    seconds: float


class _Seen(Struct, frozen=True):
    """The part that is read here of a gateway's answers about a task."""

    status: TaskStatus


async def through(stack: Stack, body: bytes) -> Through:
    """Submits *body* and waits by a long-poll, on an open connection. Raises LoadFailed for a task that does not end as
    done."""
    assert stack.link is not None
    line = await connect(stack.address)
    try:
        begun_s = time.perf_counter()
        answer = await line.ask(stack.post(body))
        if answer.status != ACCEPTED:
            raise LoadFailed(f"a task is not accepted: status {answer.status}, {answer.body.decode(errors='replace')}")
        task_id: str = msgspec.json.decode(answer.body)["id"]
        status = TaskStatus.PENDING
        while not status.is_terminal:  # on a busy machine, a wait of 60 s can end before the task
            ended = await line.ask(request("GET", f"/tasks/{task_id}?wait=60", stack.address))
            status = msgspec.json.decode(ended.body, type=_Seen).status
        seconds = time.perf_counter() - begun_s
    finally:
        line.close()
    entry = await stack.link.entries.get(TASKS, task_id)
    if status is not TaskStatus.DONE or entry is None or entry.value is None:
        raise LoadFailed(f"the task {task_id} is not done: {ended.body.decode(errors='replace')}")
    return Through(decode_task_of(task_id, entry.value), seconds)


async def scripted(script: Script, task: GenerationTask, *, since_s: float | None = None) -> Scripted:
    """The video of *task* by *script*, timed from *since_s* on (`time.perf_counter`), or from now.

    Raises NotStarted, and LoadFailed if the video is not the same, byte for byte.
    """
    begun_s = time.perf_counter() if since_s is None else since_s
    answer = await script.ask(msgspec.json.encode(Job(task.model, task.parameters)))
    seconds = time.perf_counter() - begun_s
    made = msgspec.json.decode(answer, type=Made)
    if task.video is None or made.sha256 != task.video.sha256:
        raise LoadFailed(f"{script.name} made another video than the task {task.id}: they cannot be compared")
    return Scripted(made, seconds)


def between_ms(tasks: Iterable[GenerationTask], first: str, last: str) -> list[float]:
    """The times from event *first* to event *last* of each of *tasks*, in milliseconds. Pure."""
    found = []
    for task in tasks:
        at: dict[str, datetime] = {entry.event: entry.at for entry in task.timeline}
        found.append((at[last] - at[first]).total_seconds() * 1e3)
    return found


class Found(Struct, frozen=True, kw_only=True):
    """What service and script, in this order, used during their turns."""

    names: tuple[str, str]
    used: tuple[Used, Used]
    others_percent: float

    def add_to(self, values: Values, ours: Sequence[Through], theirs: Sequence[Scripted]) -> None:
        """The figures of a round in which *ours* and *theirs* were made."""
        p50_ms = [statistics.median(each.seconds for each in made) * 1e3 for made in (ours, theirs)]
        for name, used, median_ms in zip(self.names, self.used, p50_ms, strict=True):
            figures = {"p50_ms": median_ms, "cpu_ms": used.served_s / len(ours) * 1e3}
            figures |= {"peak_mb": used.peak_bytes / 1e6, "others_percent": self.others_percent}
            values.add(name, figures)
        values.add(self.names[0], {"over_ms": p50_ms[0] - p50_ms[1]})


async def in_turns(ours: Turn, theirs: Turn, stack: Stack, script: Script, *, times: int) -> Found:
    """Runs both *times* times, one after the other; each goes first in every second turn."""
    every = Watch((*stack.served, script), stack.brokers)
    watches = Watch(stack.served, stack.brokers), Watch((script,), ())
    for number in range(times):
        for _, take in rotated((ours, theirs), number):
            await asyncio.sleep(REST_S)
            await take()
    used = watches[0].end(), watches[1].end()
    return Found(names=(ours[0], theirs[0]), used=used, others_percent=every.end().others_percent)
