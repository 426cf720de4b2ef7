"""`make chaos`: a whole system under steady load, whose processes a printed seed has killed, stopped and restarted.

Everything that clients and a watcher saw goes into a history, which `tests.faults.checker` judges. Exits with 1 on any
violation.
"""

import asyncio
import contextlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import httpx
import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from contracts.topology import DEGRADED_MAX_MSGS
from ops.ending import end
from ops.nats.link import NatsLink
from tests.drills.chaos_summary import Summary, report, summarize
from tests.faults.clients import Clients, Wish, wishes
from tests.faults.deliveries import missing
from tests.faults.fleet import LANES, Fleet
from tests.faults.history import Artifact, Call, Delivered, FaultKind, History, HostWatcher, Limits, Watcher, read_store
from tests.faults.injector import ALL_KINDS, Injector, Planned, plan
from tests.faults.planted import PLANTED
from tests.faults.story import Violation
from tests.kit.receivers import Receiver, answering
from tests.kit.support import eventually

# The average time from one fault to the next.
FAULT_EVERY_S: Final = 6.5
SETTLE_S: Final = 90.0
# A task that a planted bug has lost never ends, so the wait for it may be short.
SETTLE_PLANTED_S: Final = 15.0
LATE_S: Final = 5.0


async def chaos(
    folder: Path,
    *,
    seed: int,
    seconds: float,
    rate: float,
    console: Console,
    kinds: Sequence[FaultKind] = ALL_KINDS,
    count: int | None = None,
    plant: str | None = None,
    lasts_s: float | None = None,
    lanes_off: bool = False,
    environment: Mapping[str, str] | None = None,
) -> tuple[History, Summary]:
    """One run, as `--help` describes it. Faults last *lasts_s*. *lanes_off*: an operator keeps requests off the lanes.

    *environment* is added to that of every process.
    """
    fleet = Fleet(folder, plant=plant, environment=environment)
    receiver = Receiver(answering(204))
    try:
        await fleet.start()
        link = await NatsLink.connect(fleet.nats_url, name="chaos-watcher")
        settle_s = SETTLE_S if plant is None else SETTLE_PLANTED_S
        run = Run(fleet, link, receiver, seed=seed, settle_s=settle_s, console=console)
        try:
            if lanes_off:
                await _switch_lanes_off(fleet)
            count = round(seconds / FAULT_EVERY_S) if count is None else count
            planned = plan(seed, seconds=seconds, count=count, kinds=kinds)
            if lasts_s is not None:
                planned = [replace(fault, for_s=lasts_s) for fault in planned]
            async with receiver.listening():
                await _register(fleet, receiver)
                await run.run(wishes(seed, seconds=seconds, rate=rate), planned)
        finally:
            await link.close()
        history = run.history()
        return history, summarize(history, run, seconds=seconds)
    finally:
        await fleet.close()


async def _register(fleet: Fleet, receiver: Receiver) -> None:
    """Registers *receiver* for the events of every task."""
    async with httpx.AsyncClient(timeout=10) as http:
        url = next(iter(fleet.urls.values()))
        (await http.post(f"{url}/webhooks", json={"url": receiver.url})).raise_for_status()


async def _switch_lanes_off(fleet: Fleet) -> None:
    async with httpx.AsyncClient(timeout=10) as http:
        for model in LANES:
            for url in fleet.urls.values():
                answer = await http.put(f"{url}/admin/lanes/{model}/mode", json={"mode": "degraded"})
                answer.raise_for_status()


class Run:
    """The load, the faults and the watching of one run."""

    def __init__(
        self, fleet: Fleet, link: NatsLink, receiver: Receiver, *, seed: int, settle_s: float, console: Console
    ) -> None:
        self._receiver = receiver
        self.fleet = fleet
        self.watcher = Watcher(link, fleet.streams)
        self.hosts = HostWatcher(fleet.data_dir)
        self.injector = Injector(fleet, link, self.watcher, self.hosts)
        self.clients = Clients(fleet.urls, self._on_call)
        self._seed = seed
        self._settle_s = settle_s
        self._console = console
        self._answers: Counter[str] = Counter()
        self._artifacts: tuple[Artifact, ...] = ()

    async def run(self, wanted: list[Wish], planned: list[Planned]) -> None:
        keeping = [
            asyncio.create_task(work)
            for work in (self.fleet.keep(), self.fleet.keep_store(), self.watcher.run(), self.hosts.run())
        ]
        try:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[now]}"),
                console=self._console,
                transient=True,
            ) as progress:
                bar = progress.add_task("chaos", total=len(wanted), now="")
                showing = asyncio.create_task(self._show(progress, bar))
                await asyncio.gather(self.clients.run(wanted), self.injector.run(planned))
                progress.update(bar, description="settling")
                await self._settle()
                await self._look()
                await end(showing)
        finally:
            await end(*keeping)
            await self.clients.close()
        # workers that drain now settle what was still open
        await self.fleet.stop()
        await self.watcher.catch_up()
        self._artifacts = read_store(self.fleet.store.folder)

    async def _settle(self) -> None:
        """Waits until every recorded task has ended, and the queues are empty; the checker judges what has not."""

        async def settled() -> bool:
            return self.watcher.all_ended() and self._queues_are_empty() and not self._untold()

        with contextlib.suppress(AssertionError):
            await eventually(settled, within_s=self._settle_s)

    def _untold(self) -> list[str]:
        """The tasks that ended, and whose end the receiver has not got. Tasks of which the server lost something are
        left out: their deliveries may never come."""
        lost = {revision.task.id for revision in self.watcher.lost}
        tasks = [task for task in self.watcher.latest.values() if task.id not in lost]
        return missing(tasks, self.delivered())

    def delivered(self) -> tuple[Delivered, ...]:
        """What the receiver has got so far."""
        return tuple(Delivered(each.id, each.task_id, each.type) for each in self._receiver.received)

    async def _look(self) -> None:
        # a gateway that was killed last may still be starting
        async def looked() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                await self.clients.look()
                return True
            return False

        await eventually(looked)

    def _queues_are_empty(self) -> bool:
        latest = {sample.stream: sample for sample in self.watcher.queues}
        return not any(latest[stream].messages for stream in self.fleet.streams if stream in latest)

    async def _show(self, progress: Progress, bar: TaskID) -> None:
        while True:
            ends = Counter(task.status.value for task in self.watcher.latest.values())
            now = f"{self._answers['202']} accepted, {ends['done']} done, {len(self.injector.faults)} faults"
            progress.update(bar, completed=sum(self._answers.values()), now=now)
            await asyncio.sleep(0.5)

    def _on_call(self, call: Call) -> None:
        if call.kind == "submit":
            self._answers[str(call.status)] += 1

    def history(self) -> History:
        catalog = self.fleet.catalog
        return History(
            seed=self._seed,
            limits=Limits(
                wait_limit_s=catalog.windows.wait_limit_s,
                attempts=catalog.attempts,
                depth=DEGRADED_MAX_MSGS,
                late_s=LATE_S,
            ),
            calls=tuple(self.clients.calls),
            revisions=tuple(self.watcher.revisions),
            lost=tuple(self.watcher.lost),
            queues=tuple(self.watcher.queues),
            hosts=tuple(self.hosts.samples),
            terms=tuple(self.watcher.terms),
            faults=tuple(self.injector.faults),
            artifacts=self._artifacts,
            gaps=tuple(self.watcher.gaps),
            missed=tuple(line["task_id"] for line in self.fleet.log_events("record_missed")),
            delivered=self.delivered(),
        )


class Caught(Struct, frozen=True, kw_only=True):
    """What the checker said about a planted bug."""

    rules: tuple[int | None, ...]
    violations: list[Violation]

    @property
    def said(self) -> str | None:
        """What the checker said of an invariant that the bug breaks; None where it missed that."""
        return next((found.text for found in self.violations if found.rule in self.rules), None)


async def catch(name: str, folder: Path, console: Console) -> Caught:
    """Runs a system with the planted bug *name*, as its row of `PLANTED` says, and has the checker judge it."""
    bug = PLANTED[name]
    _, summary = await chaos(
        folder,
        seed=bug.seed,
        seconds=bug.seconds,
        rate=bug.tasks_per_s,
        console=console,
        kinds=bug.faults,
        count=len(bug.faults),
        plant=name,
        lasts_s=bug.lasts_s,
        lanes_off=bug.lanes_off,
    )
    return Caught(rules=(bug.rule, bug.or_rule), violations=summary.violations)


def catch_all(console: Console, only: Sequence[str] = ()) -> bool:
    """Whether the checker finds every planted bug, or those of *only*; prints the table."""
    table = Table("planted", "what is wrong", "seed", "breaks", "the checker says", "", title="Planted bugs")
    missed = 0
    for name, bug in PLANTED.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="warmlane-planted-") as folder:
            said = asyncio.run(catch(name, Path(folder), console)).said
        missed += said is None
        mark = "[red]MISSED[/]" if said is None else "[green]caught[/]"
        table.add_row(name, bug.bug, str(bug.seed), f"invariant {bug.rule}", said or "nothing of that", mark)
        console.print(f"{name}: {mark}")
    console.print(table)
    return not missed


@click.command(
    epilog="Examples:\n\n  python -m tests.drills.chaos --seconds 60\n\n  python -m tests.drills.chaos --plants"
)
@click.option("--seconds", type=click.FloatRange(5), default=300, show_default=True, help="How long to send.")
@click.option("--seed", type=int, help="What decides about load and faults.  [default: a new one]")
@click.option("--tasks-per-s", type=click.FloatRange(0.1), default=9, show_default=True, help="Requests a second.")
@click.option("--faults", type=click.IntRange(0), help=f"How many.  [default: one every {FAULT_EVERY_S:g} s]")
@click.option("--only", multiple=True, type=click.Choice(ALL_KINDS), help="Only this kind of fault; may be repeated.")
@click.option("--plants", is_flag=True, help="Instead: plant one bug after the other; the checker must find each.")
@click.option("--plant", multiple=True, type=click.Choice(sorted(PLANTED)), help="Instead: only this bug.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--history", "history_file", type=click.Path(path_type=Path), help="Write all that was observed there.")
@click.option("--keep", "kept", type=click.Path(path_type=Path), help="Work in this folder, and leave it there.")
def command(
    seconds: float,
    seed: int | None,
    tasks_per_s: float,
    faults: int | None,
    only: tuple[FaultKind, ...],
    plants: bool,
    plant: tuple[str, ...],
    json_file: Path | None,
    history_file: Path | None,
    kept: Path | None,
) -> None:
    """Kill, stop and restart every process of a system under load, and prove that nothing was lost or doubled.

    Exit status 1 on any violation.
    """
    console = Console()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if plants or plant:
        raise SystemExit(0 if catch_all(console, plant) else 1)
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    console.print(f"seed {seed}", highlight=False)
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warmlane-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        history, summary = asyncio.run(
            chaos(
                folder,
                seed=seed,
                seconds=seconds,
                rate=tasks_per_s,
                console=console,
                kinds=only or ALL_KINDS,
                count=faults,
            )
        )
    if history_file is not None:
        history_file.write_bytes(msgspec.json.encode(history))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    report(console, summary)
    raise SystemExit(1 if summary.violations else 0)


if __name__ == "__main__":
    command()
