"""`make overload`: ten times what the degraded worker can serve, and what the limits of its queue are worth then.

Every figure comes from outside: answers from a client, depth and timestamps from the nats-server itself.
"""

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import httpx
from msgspec import Struct
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from contracts.memory import SwapReceipt
from contracts.order import ORDER_NAMES
from contracts.tasks import GenerationTask, TaskStatus, decode_task
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, TASKS, work_subject
from ops.commands.demo.tables import percentile
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.bench.arrivals import Answer, client_of, moments, post, send
from tests.kit.behind import js_of
from tests.kit.support import eventually
from tests.kit.system import UpProcess

SAMPLE_S: Final = 0.05
WAIT_LIMIT_S: Final = 30.0
REFUSED_P99_MS: Final = 50.0
HELD_MAX_S: Final = 30.5
CALIBRATION: Final = 6


class Life(Struct, kw_only=True):
    """A task with the server's times of its queue message, and of the record that left `pending`."""

    task: GenerationTask
    queued_at: datetime
    left_at: datetime | None = None

    @property
    def waited_s(self) -> float | None:
        return None if self.left_at is None else (self.left_at - self.queued_at).total_seconds()

    @property
    def was_refused(self) -> bool:
        return self.task.error is not None and self.task.error.code == "queue_overloaded"


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed in one run."""

    seconds: float
    service_s: float
    answers: Sequence[Answer]
    depths: Sequence[int]
    lives: Sequence[Life]


class Verdict(Struct, frozen=True):
    """One line of the table."""

    criterion: str
    what: str
    measured: str
    asked: str
    passed: bool


def is_proven(swap: SwapReceipt) -> bool:
    """Whether the figures of *swap* satisfy the rule of a release."""
    if swap.free_bytes is None or swap.free_bytes < swap.needed_bytes or swap.samples < 2:
        return False
    if swap.proof == "no_pipeline":
        return swap.how in {"killed", "nothing_resident"}
    own = (swap.own_base_bytes, swap.own_bytes)
    base_bytes, after_bytes = own if swap.proof == "own_figure" else (swap.base_bytes, swap.after_bytes)
    if base_bytes is None or after_bytes is None or swap.tolerance_bytes is None:
        return False
    return after_bytes <= base_bytes + swap.tolerance_bytes


def judge(seen: Seen, *, wait_limit_s: float = WAIT_LIMIT_S) -> list[Verdict]:
    """The verdicts of the run on SC-007, SC-008 and SC-009."""
    depth_refusals = [answer for answer in seen.answers if answer.limit == "depth"]
    wait_refusals = [answer for answer in seen.answers if answer.limit == "wait"]
    accepted = [answer for answer in seen.answers if answer.status == 202]
    others = Counter(
        f"{answer.status} {answer.code}" for answer in seen.answers if answer.status != 202 and not answer.limit
    )
    left = [(life.was_refused, life.waited_s) for life in seen.lives if life.waited_s is not None]
    waits_s = {
        "claim": [wait_s for was_refused, wait_s in left if not was_refused],
        "refusal": [wait_s for was_refused, wait_s in left if was_refused],
    }
    pending = sum(life.waited_s is None for life in seen.lives)
    failures = Counter(
        life.task.error.code.value for life in seen.lives if life.task.error is not None and not life.was_refused
    )
    swaps = [life.task.swap for life in seen.lives if life.task.swap is not None]
    proven = sum(is_proven(swap) for swap in swaps)
    refused_ms = percentile([answer.took_s * 1e3 for answer in depth_refusals], 99) if depth_refusals else 0.0
    held_s = max((answer.took_s for answer in [*accepted, *wait_refusals]), default=0.0)
    held_limit_s = wait_limit_s + HELD_MAX_S - WAIT_LIMIT_S
    return [
        Verdict(
            "SC-007",
            "answers that are neither 202 nor 503 queue_overloaded",
            ", ".join(f"{count} x {what}" for what, count in others.items()) or "0",
            "0",
            not others,
        ),
        Verdict(
            "SC-007",
            "refused by depth: p99 of the answer",
            f"{refused_ms:.1f} ms of {len(depth_refusals)}",
            f"< {REFUSED_P99_MS:g} ms",
            bool(depth_refusals) and refused_ms < REFUSED_P99_MS,
        ),
        Verdict(
            "SC-007",
            "failures other than queue_overloaded",
            ", ".join(f"{count} x {code}" for code, count in failures.items()) or "0",
            "0",
            not failures,
        ),
        Verdict(
            "SC-007", "swaps with a verified release", f"{proven} of {len(swaps)}", "all", proven == len(swaps) > 0
        ),
        *(
            Verdict(
                "SC-008",
                f"longest wait from the queue message to {end}",
                f"{max(found_s, default=0.0):.2f} s of {len(found_s)}",
                f"≤ {wait_limit_s:g} s",
                max(found_s, default=0.0) <= wait_limit_s and bool(found_s or end == "refusal"),
            )
            for end, found_s in waits_s.items()
        ),
        Verdict("SC-008", "still pending at the end", f"{pending}", "0", pending == 0),
        Verdict(
            "SC-008",
            "longest held answer",
            f"{held_s:.2f} s of {len(accepted)} accepted, {len(wait_refusals)} refused by wait",
            f"≤ {held_limit_s:g} s",
            held_s <= held_limit_s,
        ),
        Verdict(
            "SC-009",
            f"deepest queue, {len(seen.depths)} samples",
            f"{max(seen.depths, default=0)}",
            f"≤ {DEGRADED_MAX_MSGS}, reached",
            max(seen.depths, default=0) == DEGRADED_MAX_MSGS,
        ),
    ]


class Observer:
    """Watches the server: the depth of the queue every 50 ms, and every revision of every record."""

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self._lives: dict[str, Life] = {}
        self._looks: set[asyncio.Task[None]] = set()
        self.depths: list[int] = []

    async def watch(self) -> None:
        """Begins to watch the records."""
        await (await self._link.watches.start(TASKS, self._on_record)).wait()

    async def sample(self) -> None:
        """Samples the depth until cancelled."""
        while True:
            begun_s = time.monotonic()
            self.depths.append((await js_of(self._link).stream_info(DEGRADED)).state.messages)
            await asyncio.sleep(max(0.0, begun_s + SAMPLE_S - time.monotonic()))

    def lives(self) -> list[Life]:
        """The tasks that were seen, oldest first."""
        return sorted(self._lives.values(), key=lambda life: life.queued_at)

    def all_ended(self) -> bool:
        return all(life.task.status.is_terminal for life in self._lives.values())

    def _on_record(self, entry: Entry) -> None:
        if entry.value is None:
            return
        task = decode_task(entry.value)
        life = self._lives.get(task.id)
        if life is None:
            # the gateway takes this time just before it publishes, so it is never later than the server's own
            life = self._lives[task.id] = Life(task=task, queued_at=task.queued_at)
            if task.status is TaskStatus.PENDING:
                look = asyncio.create_task(self._look_at_message(life))
                self._looks.add(look)
                look.add_done_callback(self._looks.discard)
        life.task = task
        if life.left_at is None and task.status is not TaskStatus.PENDING:
            life.left_at = entry.time

    async def _look_at_message(self, life: Life) -> None:
        with contextlib.suppress(Exception):  # a worker has already claimed the task: the gateway's time stays
            stored = await js_of(self._link).get_last_msg(
                DEGRADED, work_subject("degraded", life.task.model, life.task.id)
            )
            if stored.time is not None:
                life.queued_at = stored.time


async def overload(
    up: UpProcess, *, times: float, seconds: float, console: Console, at_least_per_s: float = 0.0
) -> Seen:
    """Measures what the worker can do, then sends *times* as much for *seconds*, and waits until all has ended.

    *at_least_per_s* is the least rate, which fills the queue even where the worker is slow.
    """
    link = await NatsLink.connect(up.nats_url, name="observer")
    try:
        async with client_of(up.url) as client:
            models = sorted(model["name"] for model in (await client.get("/settings")).json()["models"])
            service_s = await calibrate(client, models)
            observer = Observer(link)
            await observer.watch()
            known = len(observer.lives())
            sampling = asyncio.create_task(observer.sample())
            rate = max(times / service_s, at_least_per_s)
            console.print(
                f"a task takes {service_s:.2f} s, so {1 / service_s:.2f} a second fit; sending {rate:.2f} a second",
                highlight=False,
            )
            answers = await send_in_turn(client, models, rate=rate, seconds=seconds, console=console)

            async def ended() -> bool:
                return observer.all_ended()

            await eventually(ended, within_s=120)
            sampling.cancel()
            return Seen(
                seconds=seconds,
                service_s=service_s,
                answers=answers,
                depths=observer.depths,
                lives=observer.lives()[known:],
            )
    finally:
        await link.close()


async def calibrate(client: httpx.AsyncClient, models: Sequence[str]) -> float:
    """How long one task takes from claim to end, in seconds; models take turns."""
    took_s = []
    for number, model in zip(range(CALIBRATION), itertools.cycle(models), strict=False):
        answer = await post(client, model, number)
        assert answer.status == 202, answer
        task = {"status": "pending"}
        while task["status"] not in ("done", "failed"):
            task = (await client.get(f"/tasks/{answer.task_id}?wait=30")).json()
        assert task["status"] == "done", task
        if number >= len(models):  # the first task of each model loads it for the first time
            span = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["claimed_at"])
            took_s.append(span.total_seconds())
    return sum(took_s) / len(took_s)


async def send_in_turn(
    client: httpx.AsyncClient, models: Sequence[str], *, rate: float, seconds: float, console: Console
) -> list[Answer]:
    """Sends requests at random moments, *rate* a second on average, models in turn. It does not wait for earlier
    answers."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("sending", total=seconds)
        return await send(
            moments(rate, seconds),
            lambda number, due_s: post(client, models[number % len(models)], number, due_s=due_s),
            on_sent=lambda at_s: progress.update(bar, completed=at_s),
        )


def report(console: Console, seen: Seen, verdicts: Sequence[Verdict]) -> None:
    """Prints the requests, the answers and the verdicts."""
    kinds = Counter(answer.limit or str(answer.status) for answer in seen.answers)
    done = [life for life in seen.lives if life.task.status is TaskStatus.DONE]
    table = Table("criterion", "what", "measured", "asked", "", title="Overload")
    for verdict in verdicts:
        mark = "[green]pass[/]" if verdict.passed else "[red]FAIL[/]"
        table.add_row(verdict.criterion, verdict.what, verdict.measured, verdict.asked, mark)
    console.print(table)
    console.print(
        f"{len(seen.answers)} requests in {seen.seconds:g} s: {kinds['202']} accepted, {kinds['depth']} refused by "
        f"depth, {kinds['wait']} refused by wait; {len(done)} videos, "
        f"{len(done) / seen.seconds * seen.service_s:.0%} of what the worker does when models alternate",
        highlight=False,
    )


@click.command(epilog="Example:\n\n  python -m tests.drills.overload --seconds 30")
@click.option("--seconds", type=click.FloatRange(5), default=180, show_default=True, help="How long to send.")
@click.option("--times", type=click.FloatRange(0.1), default=10, show_default=True, help="Multiple of the capacity.")
@click.option("--step-seconds", type=float, default=0.25, show_default=True, help="How slow an inference step is.")
@click.option("--degraded-order", type=click.Choice(ORDER_NAMES), default="swap-aware", show_default=True)
def command(seconds: float, times: float, step_seconds: float, degraded_order: str) -> None:
    """Start a system without lanes, overload it, and judge what the limits are worth. Exit status 1 on a miss."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        slowed = ("--step-seconds", str(step_seconds), "--degraded-order", degraded_order)
        up = UpProcess(Path(folder), "--lanes", "anisora=0,phr00t=0", *slowed)
        try:
            up.start()
            seen = asyncio.run(overload(up, times=times, seconds=seconds, console=console))
        finally:
            up.stop()
    verdicts = judge(seen)
    report(console, seen, verdicts)
    raise SystemExit(0 if all(verdict.passed for verdict in verdicts) else 1)


if __name__ == "__main__":
    command()
