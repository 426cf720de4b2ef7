"""What a lost lane cost, as observed: moves to the degraded worker and back, against what is promised. Pure."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

import httpx
from msgspec import Struct

from contracts.tasks import GenerationTask, RoutingDecision, TaskStatus
from gateway.rules.routing import ToLane
from tests.bench.arrivals import Answer

How = Literal["lane killed", "host killed", "lane killed, unseen"]
HOWS: Final[tuple[How, ...]] = ("lane killed", "host killed", "lane killed, unseen")
UNSEEN: Final = "lane killed, unseen"
MODELS: Final = ("anisora", "phr00t")
SMALL: Final = {"num_frames": 9, "width": 32, "height": 32}
SEEN_MOVE_S: Final = 1.0
RETURN_S: Final = 1.0
WARM_SHARE: Final = 95.0
# A share of fewer requests says nothing.
AFTER_MIN: Final = 10
HEARTBEAT_S: Final = 1.0
# How long past its limit the drill waits for routing to move.
MOVE_WITHIN_S: Final = 30.0
# How long a lane may be away, and the last task may take. Two leases are well within it.
WITHIN_S: Final = 120.0


class Loss(Struct, frozen=True, kw_only=True):
    """A lane that was lost. After *limit_s* seconds no request may be sent to it any more."""

    how: How
    model: str
    worker: str
    at: datetime
    limit_s: float


class Word(Struct, frozen=True):
    """A report in KV `lanes` at the server's time *at*: whether the lane takes requests."""

    at: datetime
    worker: str
    ready: bool


class Decided(Struct, frozen=True):
    """A routing decision for a task of *model*, as its record keeps it."""

    task_id: str
    model: str
    decision: RoutingDecision

    @property
    def to_lane(self) -> bool:
        return self.decision.outcome == str(ToLane())


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed in one run. *decided* and *words* are in the order of their times."""

    losses: Sequence[Loss]
    answers: Sequence[Answer]
    tasks: Mapping[str, GenerationTask]
    decided: Sequence[Decided]
    words: Sequence[Word]


class Move(Struct, frozen=True, kw_only=True):
    """What became of the requests of a lost lane's model; a time is None where that was never seen.

    *seen_at*: the first report that the lane was gone. *moved_at*: the first decision for the degraded worker.
    *strays*: decisions for the dead lane after *moved_at*. *warm_at*: the lane was ready again. *back_at*: the first
    decision for the lane after *warm_at*. *after*: the tasks from *back_at* on.
    """

    seen_at: datetime | None
    moved_at: datetime | None
    strays: int
    warm_at: datetime | None
    back_at: datetime | None
    after: Sequence[str]


class Figure(Struct, frozen=True, kw_only=True):
    """A line of the table: what was measured (None: it never happened), and what was asked."""

    loss: str = ""
    what: str
    measured: float | None
    asked: float
    unit: str
    at_least: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.asked if self.at_least else self.measured <= self.asked

    @property
    def verdict(self) -> str:
        """`met`, or by how much the figure missed its aim."""
        if self.measured is None:
            return "missed: never seen"
        return "met" if self.is_met else f"missed by {abs(self.measured - self.asked):.2f} {self.unit}".rstrip()


def move_of(loss: Loss, decided: Sequence[Decided], words: Sequence[Word], *, until: datetime | None = None) -> Move:
    """What became of *loss*, as far as it shows before *until*. Pure."""

    def counts(at: datetime) -> bool:
        return at > loss.at and (until is None or at < until)

    reports = [word for word in words if word.worker == loss.worker and counts(word.at)]
    # a report of the dead process may still have been on its way
    gone = list(itertools.dropwhile(lambda word: word.ready, reports))
    seen_at = gone[0].at if gone else None
    warm_at = next((word.at for word in gone if word.ready), None)
    # a decision with `lanes_passed` does not show whether the lane is there
    plain = [
        each
        for each in decided
        if each.model == loss.model and counts(each.decision.at) and not each.decision.lanes_passed
    ]
    moved_at = next((each.decision.at for each in plain if not each.to_lane), None)
    back = [each for each in plain if each.to_lane and warm_at is not None and each.decision.at >= warm_at]
    back_at = back[0].decision.at if back else None
    strays = sum(
        moved_at is not None and each.to_lane and each.decision.at > moved_at and each not in back for each in plain
    )
    firsts = first_decisions(decided)
    after = [each.task_id for each in plain if back_at and each.decision.at >= back_at and each is firsts[each.task_id]]
    return Move(seen_at=seen_at, moved_at=moved_at, strays=strays, warm_at=warm_at, back_at=back_at, after=after)


def first_decisions(decided: Iterable[Decided]) -> dict[str, Decided]:
    """The decision with which each task was accepted. Pure."""
    firsts: dict[str, Decided] = {}
    for each in decided:
        firsts.setdefault(each.task_id, each)
    return firsts


def is_served_warm(task: GenerationTask, decided: Iterable[Decided]) -> bool:
    """Whether a lane ran *task* to its end, and no decision ever sent it elsewhere. Pure."""
    return (task.status, task.route) == (TaskStatus.DONE, "lane") and all(each.to_lane for each in decided)


def failures(seen: Seen) -> Counter[str]:
    """Every request that did not end as a video, by what became of it. Pure."""

    def why(answer: Answer) -> str:
        if answer.status != httpx.codes.ACCEPTED:
            return f"{answer.status} {answer.code}".strip()
        task = seen.tasks.get(answer.task_id)
        if task is None:
            return "accepted, and no record"
        return task.error.code.value if task.error is not None else task.status.value

    return Counter(reason for reason in map(why, seen.answers) if reason != TaskStatus.DONE.value)


def judge(seen: Seen) -> list[Figure]:
    """The figures of a run, for lanes that come and go. Pure."""
    failed = failures(seen)
    figures = [
        Figure(
            what=f"failed, of {len(seen.answers)} requests",
            measured=failed.total() if seen.answers else None,
            asked=0,
            unit="",
            note=", ".join(f"{count} x {why}" for why, count in failed.items()),
        )
    ]
    of_task: dict[str, list[Decided]] = {}
    for each in seen.decided:
        of_task.setdefault(each.task_id, []).append(each)
    for loss in seen.losses:
        until = next((each.at for each in seen.losses if each.model == loss.model and each.at > loss.at), None)
        move = move_of(loss, seen.decided, seen.words, until=until)
        warm = sum(task in seen.tasks and is_served_warm(seen.tasks[task], of_task[task]) for task in move.after)
        moved_at = move.moved_at
        if loss.how == UNSEEN and moved_at is not None and move.seen_at is not None and moved_at >= move.seen_at:
            moved_at = None  # routing moved only after a report: the silence alone did not move it
        name = f"{loss.how}: {loss.worker}"
        figures += [
            Figure(
                loss=name,
                what="until routing moves",
                measured=seconds(loss.at, moved_at),
                asked=loss.limit_s,
                unit="s",
            ),
            Figure(
                loss=name,
                what="decisions for the dead lane after that",
                measured=None if moved_at is None else move.strays,
                asked=0,
                unit="",
            ),
            Figure(
                loss=name,
                what="from warm until routing is back",
                measured=seconds(move.warm_at, move.back_at),
                asked=RETURN_S,
                unit="s",
                note="" if move.warm_at is None else f"warm {seconds(loss.at, move.warm_at):.1f} s after the loss",
            ),
            Figure(
                loss=name,
                what="served warm from then on",
                measured=100 * warm / len(move.after) if len(move.after) >= AFTER_MIN else None,
                asked=WARM_SHARE,
                unit="%",
                at_least=True,
                note=f"{warm} of {len(move.after)}",
            ),
        ]
    return figures


def seconds(since: datetime | None, at: datetime | None) -> float | None:
    """Seconds from *since* to *at*; None where one of them is missing."""
    return None if since is None or at is None else (at - since).total_seconds()
