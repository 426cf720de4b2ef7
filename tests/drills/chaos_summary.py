"""What a run of chaos was: faults, recoveries and violations, and how they are printed."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, get_args

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.tasks import FailureCode, TaskStatus
from contracts.topology import DEGRADED
from tests.faults.checker import check
from tests.faults.deliveries import delivered_what_ended
from tests.faults.fleet import LANES, Fleet
from tests.faults.history import FaultKind, History
from tests.faults.story import Story, Violation

if TYPE_CHECKING:
    from tests.drills.chaos import Run


SHOWN: Final = 20


class Recovery(Struct, frozen=True, kw_only=True):
    """The worst time from a fault of *kind* to the end of the first task that was accepted after it and got its video.

    Only tasks on the route that the fault hit count; if it hit several, the slowest route does. None where no task came
    after it.
    """

    kind: str
    count: int
    worst_s: float | None


class Summary(Struct, frozen=True, kw_only=True):
    """What `make chaos` prints, and writes with `--json`."""

    seed: int
    seconds: float
    requests: int
    accepted: int
    refused: int
    tasks: int
    ends: dict[str, int]
    attempts: int
    requeued: int
    fenced: int
    faults: int
    skipped: int
    recoveries: list[Recovery]
    deepest_queue: int
    displaced: int
    left_to_the_janitor: int
    ended_by_themselves: dict[str, int]
    lost: int
    doubled: int
    violations: list[Violation]


def summarize(history: History, run: "Run", *, seconds: float) -> Summary:
    """The figures of *history*, and the verdict."""
    story = Story(history)
    violations = [*check(history), *sorted(delivered_what_ended(story))]
    last = [life[-1].task for life in story.lives.values()]
    submits = [call for call in history.calls if call.kind == "submit"]
    named = {task.video.path for task in last if task.video is not None}
    return Summary(
        seed=history.seed,
        seconds=seconds,
        requests=len({call.request for call in submits}),
        accepted=len({call.task_id for call in submits if call.status == 202}),
        refused=sum(call.code == "queue_overloaded" for call in submits),
        tasks=len(last),
        ends=dict(Counter(task.error.code.value if task.error else task.status.value for task in last).most_common()),
        attempts=sum(task.attempt for task in last),
        requeued=sum(task.attempt > 1 for task in last),
        fenced=_fenced(run.fleet, story),
        faults=len(history.faults),
        skipped=len(run.injector.skipped),
        recoveries=recoveries(story),
        deepest_queue=max((sample.messages for sample in history.queues if sample.stream == DEGRADED), default=0),
        displaced=sum(life[-1].task.displaced_by is not None for life in story.lives.values()),
        left_to_the_janitor=sum(item.path not in named for videos in story.videos.values() for item in videos),
        ended_by_themselves={
            name: member.ended_by_itself for name, member in run.fleet.members.items() if member.ended_by_itself
        },
        lost=sum(violation.text.startswith("lost:") for violation in violations),
        doubled=sum(violation.text.startswith("doubled:") for violation in violations),
        violations=violations,
    )


def _fenced(fleet: Fleet, story: Story) -> int:
    """How often a worker learned that it no longer owned its task, and discarded its result."""
    count = 0
    for line in fleet.log_events("ownership_lost"):
        last = story.last(line["task_id"])
        was_cancelled = last is not None and last.error is not None and last.error.code is FailureCode.CANCELLED
        count += last is None or last.epoch > line["epoch"] or not was_cancelled
    return count


def recoveries(story: Story) -> list[Recovery]:
    """One for each kind of fault, in the order of their names."""
    ends = sorted(
        (life[-1].at, life[0].task.created_at, life[-1].task.route, life[-1].task.model)
        for life in story.lives.values()
        if life[-1].task.status is TaskStatus.DONE
    )
    found = []
    for kind in sorted(get_args(FaultKind)):
        faults = [fault for fault in story.history.faults if fault.kind == kind]
        took_s = []
        for fault in faults:
            routes = _routes_of(kind, fault.target)
            back = [_first_done(ends, fault.at, route, model) for route, model in routes]
            took_s += [max((at - fault.at).total_seconds() for at in back if at is not None)] if any(back) else []
        if faults:
            found.append(Recovery(kind=kind, count=len(faults), worst_s=max(took_s, default=None)))
    return found


def _routes_of(kind: str, target: str) -> list[tuple[str, str | None]]:
    lanes: list[tuple[str, str | None]] = [("lane", model) for model in LANES]
    degraded: tuple[str, str | None] = ("degraded", None)
    if kind.endswith("-lane"):
        return [("lane", target.rpartition("-")[0])]
    if kind.endswith("-leader"):
        return [degraded]
    if kind.endswith("-supervisor"):
        return lanes
    if kind.endswith("-host"):
        number = int(target.rpartition("-")[2])
        return [lanes[number]] if number < len(lanes) else [degraded]
    return [*lanes, degraded]


def _first_done(
    ends: Sequence[tuple[datetime, datetime, str, str]], since: datetime, route: str, model: str | None
) -> datetime | None:
    for ended_at, created_at, its_route, its_model in ends:
        if created_at >= since and its_route == route and model in (None, its_model):
            return ended_at
    return None


def report(console: Console, summary: Summary) -> None:
    """Prints *summary*."""
    table = Table("fault", "times", "worst recovery", title=f"Chaos, seed {summary.seed}")
    for recovery in summary.recoveries:
        worst = "-" if recovery.worst_s is None else f"{recovery.worst_s:.1f} s"
        table.add_row(recovery.kind, str(recovery.count), worst)
    console.print(table)
    ends = ", ".join(f"{count} {end}" for end, count in summary.ends.items())
    lines = [
        f"{summary.requests} requests in {summary.seconds:g} s: {summary.accepted} accepted, {summary.refused} refused",
        f"{summary.tasks} tasks: {ends}",
        f"{summary.faults} faults; {summary.attempts} attempts, {summary.requeued} tasks needed a second one, "
        f"{summary.fenced} results fenced off, {summary.left_to_the_janitor} videos left to the janitor; "
        f"deepest degraded queue {summary.deepest_queue}; {summary.displaced} displaced by a higher class",
    ]
    if summary.ended_by_themselves:
        lines.append(f"ended by themselves: {summary.ended_by_themselves}")
    for line in lines:
        console.print(line, highlight=False)
    colour = "red" if summary.violations else "green"
    console.print(
        f"[{colour}]lost = {summary.lost}, doubled = {summary.doubled}, violations = {len(summary.violations)}[/]",
        highlight=False,
    )
    for violation in summary.violations[:SHOWN]:
        console.print(
            f"  invariant {violation.rule}: {violation.subject}: {violation.text}", highlight=False, markup=False
        )
