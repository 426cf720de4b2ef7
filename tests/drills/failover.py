"""`make failover`: lanes are lost under steady load, and come back. The server's records show what that cost.

A lane is lost in three ways. Its process is killed; its pipeline host is killed; or its process is killed while the
supervisor is stopped, so that no process reports the loss and only the silence shows it. The records keep the routing
decisions, which show when routing moved. The server's time of the lane's entry in KV `lanes` shows when the lane was
warm again.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from contracts.lanes import LaneHeartbeat
from contracts.tasks import GenerationTask, TaskStatus, decode_task
from contracts.topology import LANES, TASKS
from gateway.rules.routing import READY_STATES
from ops.commands.demo.tables import percentile
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.bench.arrivals import CLIENT_TIMEOUT_S, Answer, post
from tests.drills.failover_moves import (
    AFTER_MIN,
    HEARTBEAT_S,
    HOWS,
    MODELS,
    MOVE_WITHIN_S,
    SEEN_MOVE_S,
    SMALL,
    UNSEEN,
    WITHIN_S,
    Decided,
    Figure,
    How,
    Loss,
    Move,
    Seen,
    Word,
    judge,
    move_of,
)
from tests.kit.support import eventually, settings_file
from tests.kit.system import UpProcess


class Watcher:
    """Keeps every decision that a record shows, every task's last state, and every report of every lane."""

    def __init__(self) -> None:
        self.tasks: dict[str, GenerationTask] = {}
        self._decided: dict[tuple[str, datetime], Decided] = {}
        self._words: list[Word] = []

    async def start(self, link: NatsLink) -> None:
        """Begins to watch. From its return on, nothing is missed."""
        await (await link.watches.start(TASKS, self._on_record)).wait()
        await (await link.watches.start(LANES, self._on_lane)).wait()

    @property
    def decided(self) -> list[Decided]:
        return sorted(self._decided.values(), key=lambda each: each.decision.at)

    @property
    def words(self) -> list[Word]:
        return list(self._words)

    def move(self, loss: Loss) -> Move:
        """What became of *loss* so far."""
        return move_of(loss, self.decided, self._words)

    def runs(self, task_id: str) -> bool:
        """Whether a worker has claimed the task."""
        return task_id in self.tasks and self.tasks[task_id].status is not TaskStatus.PENDING

    def have_ended(self, answers: Iterable[Answer]) -> bool:
        """Whether every accepted task has ended."""
        ids = [answer.task_id for answer in answers if answer.status == httpx.codes.ACCEPTED]
        return all(each in self.tasks and self.tasks[each].status.is_terminal for each in ids)

    def _on_record(self, entry: Entry) -> None:
        if entry.value is None:
            return
        task = self.tasks[entry.key] = decode_task(entry.value)
        if task.decision is not None:
            self._decided.setdefault((task.id, task.decision.at), Decided(task.id, task.model, task.decision))

    def _on_lane(self, entry: Entry) -> None:
        state = None if entry.value is None else msgspec.json.decode(entry.value, type=LaneHeartbeat).state
        self._words.append(Word(entry.time, entry.key.partition(".")[2], state in READY_STATES))


class Load:
    """*rate* small requests a second for each model, every other one held. It does not wait for earlier answers."""

    def __init__(self, client: httpx.AsyncClient, rate: float) -> None:
        self._client = client
        self._every_s = 1 / rate / len(MODELS)
        self._posts: list[asyncio.Task[Answer]] = []
        self._sending = asyncio.create_task(self._send())

    async def one_more(self, model: str) -> Answer:
        """Sends a request of ordinary size, which the gateway answers at once."""
        answering = asyncio.create_task(post(self._client, model, 0, headers={"prefer": "respond-async"}))
        self._posts.append(answering)
        return await answering

    async def stop(self) -> list[Answer]:
        """Sends no more; returns every answer, the first one first."""
        self._sending.cancel()
        return await asyncio.gather(*self._posts)

    async def _send(self) -> None:
        begun_s = asyncio.get_running_loop().time()
        for number, model in enumerate(itertools.cycle(MODELS)):
            await asyncio.sleep(begun_s + number * self._every_s - asyncio.get_running_loop().time())
            held = number // len(MODELS) % 2 == 0
            self._posts.append(asyncio.create_task(self._post(model, number, held=held)))

    async def _post(self, model: str, number: int, *, held: bool) -> Answer:
        headers = {} if held else {"prefer": "respond-async"}
        try:
            return await post(self._client, model, number, headers=headers, **SMALL)
        except httpx.HTTPError as error:
            return Answer(sent_s=0.0, took_s=0.0, status=0, code=type(error).__name__)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT when the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def lose(up: UpProcess, watcher: Watcher, load: Load, how: How, model: str, *, limit_s: float) -> Loss:
    """Kills the lane of *model*, or its host, with a request in hand, and waits until routing has moved.

    Where no process is to report the loss, the supervisor is stopped until then. It would not do to kill an idle host:
    its lane would load again within the next request, and stay ready.
    """
    worker = f"{model}-0"
    find = partial(up.host_of, worker) if how == "host killed" else partial(up.find, f"--name {worker}")
    victim = await asyncio.to_thread(find)
    blind = stopped(await asyncio.to_thread(up.find, "warmlane supervisor")) if how == UNSEEN else None
    with blind or contextlib.nullcontext():
        in_hand = await load.one_more(model)
        await in_time(lambda: watcher.runs(in_hand.task_id))
        loss = Loss(how=how, model=model, worker=worker, at=datetime.now(UTC), limit_s=limit_s)
        os.kill(victim, signal.SIGKILL)
        await in_time(lambda: watcher.move(loss).moved_at is not None, within_s=limit_s + MOVE_WITHIN_S)
    return loss


async def in_time(look: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
    """Waits until *look* is true; if it never is, the verdict says so."""

    async def looked() -> bool:
        return look()

    with contextlib.suppress(AssertionError):
        await eventually(looked, within_s=within_s)


async def fail_over(
    up: UpProcess,
    hows: Sequence[How],
    *,
    rate: float,
    window_s: float,
    after: int,
    on_loss: Callable[[Loss], None] = lambda _: None,
) -> Seen:
    """Loses a lane in each of these ways, each time once the last lane is back and was sent *after* requests.

    *window_s* is the settings' `health_timeout_s`: after this time routing gives up a lane whose death no process
    reported. That shows at the next request, so the limit then allows one more interval between two requests.
    """
    link = await NatsLink.connect(up.nats_url, name="failover")
    watcher, losses = Watcher(), list[Loss]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        await watcher.start(link)
        async with httpx.AsyncClient(base_url=up.url, timeout=CLIENT_TIMEOUT_S, limits=limits) as client:
            load = Load(client, rate)
            for how, model in zip(hows, itertools.cycle(MODELS), strict=False):
                await in_time(partial(is_steady, watcher, model, len(watcher.tasks)))
                limit_s = window_s + 1 / rate if how == UNSEEN else SEEN_MOVE_S
                losses.append(await lose(up, watcher, load, how, model, limit_s=limit_s))
                on_loss(losses[-1])
                await in_time(partial(has_returned, watcher, losses[-1], after))
            answers = await load.stop()
        await in_time(lambda: watcher.have_ended(answers))
    finally:
        await link.close()
    return Seen(losses=losses, answers=answers, tasks=watcher.tasks, decided=watcher.decided, words=watcher.words)


def is_steady(watcher: Watcher, model: str, known: int) -> bool:
    """Whether the lane of *model* has done some of the tasks that came after the *known* ones."""
    new = list(watcher.tasks.values())[known:]
    return sum((task.model, task.route, task.status) == (model, "lane", TaskStatus.DONE) for task in new) >= 3


def has_returned(watcher: Watcher, loss: Loss, after: int) -> bool:
    """Whether the lane is back and was sent *after* requests."""
    return len(watcher.move(loss).after) >= after


def pace(seen: Seen) -> str:
    """How long a task took. It shows a reader whether the machine was too busy for the load. Pure."""
    took_s = sorted(
        (task.finished_at - task.claimed_at).total_seconds()
        for task in seen.tasks.values()
        if task.finished_at is not None and task.claimed_at is not None
    )
    if not took_s:
        return "no task ran"
    return f"a task took {statistics.median(took_s):.2f} s (p50), {percentile(took_s, 99):.2f} s (p99)"


def report(console: Console, figures: Sequence[Figure]) -> None:
    """Prints the table."""
    table = Table("loss", "what", "measured", "asked", "", "", title="Failover")
    for figure in figures:
        measured = "-" if figure.measured is None else f"{figure.measured:.3g} {figure.unit}".rstrip()
        asked = f"{'≥' if figure.at_least else '≤'} {figure.asked:.3g} {figure.unit}".rstrip()
        colour = "green" if figure.is_met else "red"
        table.add_row(figure.loss, figure.what, measured, asked, f"[{colour}]{figure.verdict}[/]", figure.note)
    console.print(table)


def as_json(figures: Sequence[Figure]) -> str:
    """The table for a program."""
    rows = [msgspec.structs.asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()


def settings_for(folder: Path, window_s: float, **windows_s: float) -> Path:
    """The packaged settings with other windows: a silent lane is lost after *window_s*."""
    return settings_file(folder, heartbeat_s=min(HEARTBEAT_S, window_s / 8), health_timeout_s=window_s, **windows_s)


@click.command(epilog="Example:\n\n  python -m tests.drills.failover --how 'host killed' --after 20")
@click.option("--how", "hows", type=click.Choice(HOWS), multiple=True, help="How to lose a lane; all ways otherwise.")
@click.option(
    "--rate", type=click.FloatRange(0.5), default=1.5, show_default=True, help="Requests a second of a model."
)
@click.option(
    "--window", type=click.FloatRange(4), default=10, show_default=True, help="`health_timeout_s` in seconds."
)
@click.option(
    "--after", type=click.IntRange(AFTER_MIN), default=60, show_default=True, help="Requests when it is back."
)
@click.option("--json", "is_json", is_flag=True, help="Print the figures as JSON.")
def command(hows: tuple[How, ...], rate: float, window: float, after: int, is_json: bool) -> None:
    """Lose lanes under steady load, and judge what that cost. Exit status 1 on a miss."""
    console = Console(stderr=is_json)

    def show(loss: Loss) -> None:
        console.print(f"{loss.how}: {loss.worker}, and routing has moved", highlight=False)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        up = UpProcess(folder, "--settings", str(settings_for(folder, window)))
        try:
            up.start()
            seen = asyncio.run(fail_over(up, hows or HOWS, rate=rate, window_s=window, after=after, on_loss=show))
        finally:
            up.stop()
    figures = judge(seen)
    console.print(pace(seen), highlight=False)
    if is_json:
        click.echo(as_json(figures))
    else:
        report(console, figures)
    raise SystemExit(0 if all(figure.is_met for figure in figures) else 1)


if __name__ == "__main__":
    command()
