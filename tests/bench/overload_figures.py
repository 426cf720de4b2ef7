"""The figures of one level of overload. Pure."""

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from contracts.tasks import GenerationTask, TaskStatus
from tests.bench.arrivals import OVERLOADED, Answer
from tests.bench.load import LoadFailed, percentile

WAIT_LIMIT_S: Final = 30.0
When = Literal["full", "half"]


class Level(Struct, frozen=True, kw_only=True):
    """What became of the requests of *seconds*. *answers* are those to new requests. *again* are those to requests that
    were refused before and sent again, after the full `Retry-After` or after half of it. *ended* are the tasks that
    count: with a full queue those that ended meanwhile, otherwise those of *answers*."""

    seconds: float
    answers: Sequence[Answer]
    again: Sequence[tuple[When, Answer]]
    ended: Sequence[GenerationTask]


def figures_of(level: Level) -> dict[str, float]:
    """Figures of `tests.bench.results.FIGURES`. Those without a measurement are left out. Pure.

    Raises LoadFailed for an answer that is neither an acceptance nor a refusal by the queue.
    """
    other = [each for each in (*level.answers, *(answer for _, answer in level.again)) if not _is_expected(each)]
    if other:
        raise LoadFailed(f"{len(other)} requests were answered otherwise, as with {other[0].status} {other[0].code}")
    refused = [each for each in level.answers if each.status != 202]
    at_once_ms = [each.took_s * 1e3 for each in refused if each.limit == "depth"]
    found = {
        "goodput": sum(is_in_time(task) for task in level.ended) / level.seconds,
        "refused_percent": 100 * len(refused) / max(1, len(level.answers)),
    }
    if at_once_ms:
        found |= {"refused_p50_ms": percentile(at_once_ms, 50), "refused_p99_ms": percentile(at_once_ms, 99)}
    for when, figure in (("full", "again_percent"), ("half", "early_percent")):
        share = accepted_percent([answer for moment, answer in level.again if moment == when])
        if share is not None:
            found[figure] = share
    return found


def is_in_time(task: GenerationTask) -> bool:
    """Whether *task* ended with a video, and a worker took it within the time for which a request may wait. Pure."""
    if task.status is not TaskStatus.DONE or task.claimed_at is None:
        return False
    return (task.claimed_at - task.queued_at).total_seconds() <= WAIT_LIMIT_S


def accepted_percent(answers: Sequence[Answer]) -> float | None:
    """The percentage of *answers* that accept; None where there are no answers. Pure."""
    return 100 * sum(each.status == 202 for each in answers) / len(answers) if answers else None


def _is_expected(answer: Answer) -> bool:
    return answer.status == 202 or (answer.status, answer.code) == (503, OVERLOADED)
