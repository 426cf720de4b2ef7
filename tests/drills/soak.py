"""`make soak`: 100,000 submissions to pipelines that do nothing, and what grew meanwhile.

The whole system runs as `warmlane up` starts it; only the pipelines are those of `tests/kit/noop.py`. The system keeps
finished tasks for 40 s instead of 7 days, so that what it keeps reaches a size from which it must not grow any more.
Every submission is accounted for.
"""

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import httpx
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from contracts.settings import load_settings
from contracts.topology import TASKS
from ops.ending import end
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted
from tests.bench.load import Answer, Connection, connect, request
from tests.drills.soak_report import Seen, judge, report, write
from tests.drills.soak_samples import Sampler
from tests.kit.noop import noop_command
from tests.kit.support import eventually_sync
from tests.kit.system import UpProcess

COUNT: Final = 100_000
KEEP_S: Final = 40.0
CLIENTS: Final = 16
SAMPLE_S: Final = 1.0
MODELS: Final = ("anisora", "phr00t")
# Clients do not only submit: for one in this many tasks they wait in a long poll, follow its events, or get its video.
POLLED_EVERY: Final = 10
FOLLOWED_EVERY: Final = 15
FETCHED_EVERY: Final = 50
ATTEMPTS: Final = 3
# A task that has not ended this long after it was accepted is lost.
LOST_S: Final = 120.0
ENDED: Final = frozenset({"done", "failed"})


class NoopSystem(UpProcess):
    """A `warmlane up` whose pipelines do nothing."""

    program = staticmethod(noop_command)


class Reason(Struct, frozen=True):
    code: str


class Ended(Struct, frozen=True):
    """The part of a record that the soak reads."""

    status: str
    error: Reason | None = None


class Line(Connection):
    """A connection that keeps the `Retry-After` of its last answer, in seconds; 0 where it had none."""

    def __init__(self) -> None:
        super().__init__()
        self.retry_after_s = 0.0

    def on_message_begin(self) -> None:
        self.retry_after_s = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after_s = float(value)


class Phone:
    """Asks over one connection. If the gateway has closed it, as it does with idle ones, a new one replaces it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.again = 0
        """How often an answer was lost with the connection, or the request could not even be sent."""
        self._line: Line | None = None

    @property
    def retry_after_s(self) -> float:
        return 0.0 if self._line is None else self._line.retry_after_s

    async def ask(self, data: bytes) -> Answer:
        """The answer to *data*, which must be safe to resend. Raises ConnectionError at the third failure, OSError."""
        for left in range(ATTEMPTS - 1, -1, -1):
            if self._line is None:
                _, self._line = await asyncio.get_running_loop().create_connection(Line, *self.address)
            try:
                return await self._line.ask(data)
            except ConnectionError:
                self.close()
                if not left:
                    raise
                self.again += 1
        raise AssertionError

    def close(self) -> None:
        """Closes the connection."""
        line, self._line = self._line, None
        if line is not None:
            line.close()


class Broken(Exception):
    """An answer that a valid request must not get."""


class Ledger:
    """Which tasks were accepted, and how each of them ended, by its record."""

    def __init__(self) -> None:
        self.accepted = 0
        self.lost: list[str] = []
        self.moved_after_end = 0
        self.ends: dict[str, str] = {}
        self.counted: Counter[str] = Counter()
        self._waiting: dict[str, asyncio.Event] = {}

    async def follow(self, task_id: str) -> None:
        """Follows an accepted task, until it has ended or is lost."""
        self.accepted += 1
        news = self._waiting[task_id] = asyncio.Event()
        try:
            async with asyncio.timeout(LOST_S):
                if task_id not in self.ends:
                    await news.wait()
            self.counted[self.ends[task_id]] += 1
        except TimeoutError:
            self.lost.append(task_id)
        finally:
            del self._waiting[task_id]

    def on_record(self, entry: Entry) -> None:
        """Notes that a record changed."""
        if entry.value is None:
            return
        now = msgspec.json.decode(entry.value, type=Ended)
        known = self.ends.get(entry.key)
        if now.status not in ENDED:
            self.moved_after_end += known is not None
            return
        end = now.status if now.error is None else f"failed: {now.error.code}"
        self.moved_after_end += known not in (None, end)
        self.ends[entry.key] = end
        if entry.key in self._waiting:
            self._waiting[entry.key].set()


class Clients:
    """Clients that each submit one task after the other, until *goes_on* returns False."""

    def __init__(self, address: tuple[str, int], ledger: Ledger, goes_on: Callable[[int], bool]) -> None:
        self._address, self._ledger, self._goes_on = address, ledger, goes_on
        self._numbers = itertools.count()
        self.refused: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.again = 0

    async def run(self, count: int) -> None:
        """Runs *count* clients. Raises Broken, ConnectionError."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._one())
        except ExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None

    async def _one(self) -> None:
        line = Phone(self._address)
        try:
            while self._goes_on(number := next(self._numbers)):
                task_id = await self._submit(line, number)
                following = asyncio.ensure_future(self._ledger.follow(task_id))
                try:
                    await self._look(line, number, task_id)
                    await following
                finally:
                    await end(following)
                if number % FETCHED_EVERY == 0 and self._ledger.ends.get(task_id) == "done":
                    await self._get(line, f"/tasks/{task_id}/video", "videos")
        finally:
            self.again += line.again
            line.close()

    async def _submit(self, line: Phone, number: int) -> str:
        fields = {"model": MODELS[number % len(MODELS)], "prompt": f"soak {number}", "seed": number}
        body = msgspec.json.encode(fields)
        headers = {"content_type": "application/json", "prefer": "respond-async", "idempotency_key": f"soak-{number}"}
        data = request("POST", "/generate", self._address, body, **headers)
        while True:
            answer = await line.ask(data)
            if answer.status == httpx.codes.ACCEPTED:
                task_id: str = msgspec.json.decode(answer.body)["id"]
                return task_id
            code = msgspec.json.decode(answer.body).get("code", "")
            if answer.status != httpx.codes.SERVICE_UNAVAILABLE or line.retry_after_s <= 0:
                raise Broken(f"a valid request was answered {answer.status} {code}")
            self.refused[code] += 1
            await asyncio.sleep(line.retry_after_s)

    async def _look(self, line: Phone, number: int, task_id: str) -> None:
        if number % POLLED_EVERY == 0:
            await self._get(line, f"/tasks/{task_id}?wait=30", "long polls")
        if number % FOLLOWED_EVERY == 0:
            events = await connect(self._address, lambda _: None)
            try:
                await self._get(events, f"/tasks/{task_id}/events", "event streams")
            finally:
                events.close()

    async def _get(self, line: Connection | Phone, path: str, what: str) -> None:
        answer = await line.ask(request("GET", path, self._address))
        if answer.status != httpx.codes.OK:
            raise Broken(f"GET {path} was answered {answer.status}")
        self.asked[what] += 1


async def soak(
    up: UpProcess, *, count: int | None, seconds: float | None, clients: int, keep_s: float, console: Console
) -> Seen:
    """Submits *count* times, or for *seconds*, and samples meanwhile. Raises Broken, ConnectionError, OSError."""
    link = await NatsLink.connect(up.nats_url, name="soak")
    topology = wanted(load_settings().catalog("tiny"), keep_s=keep_s)
    ledger, sampler = Ledger(), Sampler(up.pid, link, topology, up.data_dir)
    begun_s = time.monotonic()

    def goes_on(number: int) -> bool:
        return (count is None or number < count) and (seconds is None or time.monotonic() - begun_s < seconds)

    people = Clients(("127.0.0.1", up.port), ledger, goes_on)
    try:
        await (await link.watches.start(TASKS, ledger.on_record)).wait()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("soaking", total=count if count is not None else seconds)

            async def sample() -> None:
                while True:
                    await sampler.take(ledger.accepted)
                    done_s = time.monotonic() - begun_s
                    rate = f"{ledger.accepted:,} accepted, {ledger.accepted / done_s:.0f} a second"
                    done = ledger.accepted if count is not None else done_s
                    progress.update(bar, completed=done, description=rate)
                    await asyncio.sleep(SAMPLE_S)

            sampling = asyncio.create_task(sample())
            try:
                await people.run(clients)
                lasted_s = time.monotonic() - begun_s
            finally:
                await end(sampling)
        await sampler.take(ledger.accepted, last=True)
    finally:
        with contextlib.suppress(Exception):
            await link.close()
    return Seen(
        samples=tuple(sampler.samples),
        accepted=ledger.accepted,
        ends=dict(ledger.counted),
        lost=len(ledger.lost),
        moved_after_end=ledger.moved_after_end,
        refused=dict(people.refused),
        asked=dict(people.asked),
        asked_again=people.again,
        seconds=lasted_s,
        keep_s=keep_s,
        processes=sampler.processes(),
    )


@click.command(
    epilog="Examples:\n\n  make soak\n\n  make soak SOAK_ARGS='--hours 1'\n\n"
    "  python -m tests.drills.soak --count 5000 --out docs/benchmarks"
)
@click.option("--count", type=click.IntRange(1), help=f"How many submissions. [default: {COUNT:,} without --hours]")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="Run for this long instead of a count.")
@click.option("--clients", type=click.IntRange(1), default=CLIENTS, show_default=True, help="Who submit at once.")
@click.option(
    "--keep", type=click.FloatRange(KEEP_S), default=KEEP_S, show_default=True, help="Seconds for which a task is kept."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write soak.md, .json and .svg there.")
def command(count: int | None, hours: float | None, clients: int, keep: float, out: Path | None) -> None:
    """Submit 100,000 times to a whole system with no-op pipelines; judge what grew. Exit status 1 on a miss."""
    console = Console()
    if count is None and hours is None:
        count = COUNT
    seconds = None if hours is None else hours * 3_600
    with tempfile.TemporaryDirectory() as folder:
        up = NoopSystem(Path(folder), "--keep", f"{keep:g}s")
        try:
            up.start()
            eventually_sync(lambda: up.http.get("/readyz").json()["degraded_worker"], within_s=60)
            seen = asyncio.run(soak(up, count=count, seconds=seconds, clients=clients, keep_s=keep, console=console))
        except (Broken, OSError) as error:
            raise click.ClickException(str(error)) from error
        finally:
            up.stop()
    lines = judge(seen)
    report(console, seen, lines)
    if out is not None:
        write(out, seen, lines)
        console.print(f"the report is {out / 'soak.md'}", highlight=False)
    raise SystemExit(0 if all(line.is_met for line in lines) else 1)


if __name__ == "__main__":
    command()
