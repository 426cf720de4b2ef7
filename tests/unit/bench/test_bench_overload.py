"""What the part `overload` of `make bench-all` makes of what it saw."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, VideoFile
from tests.bench.arrivals import Answer, moments
from tests.bench.load import LoadFailed
from tests.bench.overload_figures import Level, When, accepted_percent, figures_of, is_in_time
from tests.kit.records import NOW, pending_task

ACCEPTED = Answer(sent_s=0, took_s=3.0, status=202)
EXPIRED = Answer(sent_s=0, took_s=29.8, status=503, code="queue_overloaded", limit="wait")


def refused(took_s: float) -> Answer:
    return Answer(sent_s=0, took_s=took_s, status=503, code="queue_overloaded", limit="depth", retry_after_s=2.0)


def done(waited_s: float) -> GenerationTask:
    at = NOW + timedelta(seconds=waited_s)
    task = lifecycle.claim(replace(pending_task(), queued_at=NOW), owner="o", worker="w", lease_s=20, now=at)
    video = VideoFile(path=task.video_path, bytes=1, sha256="", width=96, height=64, frames=17, fps=16)
    return lifecycle.finish(task, video=video, memory=None, now=at)


FAILED = lifecycle.fail(pending_task(), code=FailureCode.QUEUE_OVERLOADED, message="", now=NOW)


def level(*answers: Answer, again: Sequence[tuple[When, Answer]] = (), ended: Sequence[GenerationTask] = ()) -> Level:
    return Level(seconds=4.0, answers=answers, again=again, ended=ended)


def test_a_level() -> None:
    again: list[tuple[When, Answer]] = [("full", ACCEPTED), ("full", refused(1)), ("half", EXPIRED)]
    found = figures_of(
        level(
            ACCEPTED, ACCEPTED, EXPIRED, refused(0.002), refused(0.004), again=again, ended=[done(1), done(30), FAILED]
        )
    )
    assert found == pytest.approx(
        {
            "goodput": 0.5,
            "refused_percent": 60,
            "refused_p50_ms": 4,  # the request that was held for 30 s was not refused at once
            "refused_p99_ms": 4,
            "again_percent": 50,
            "early_percent": 0,
        }
    )


def test_a_run_without_refusals_has_no_figures_of_them() -> None:
    assert figures_of(level(ACCEPTED)) == {"goodput": 0, "refused_percent": 0}
    assert figures_of(level()) == {"goodput": 0, "refused_percent": 0}
    assert accepted_percent([]) is None


@pytest.mark.parametrize(
    "other",
    [Answer(sent_s=0, took_s=0, status=429, code="rate_limited"), Answer(sent_s=0, took_s=0, status=503, code="other")],
)
def test_another_answer_is_no_refusal(other: Answer) -> None:
    with pytest.raises(LoadFailed, match=f"1 requests were answered otherwise, as with {other.status} {other.code}"):
        figures_of(level(ACCEPTED, other))
    with pytest.raises(LoadFailed, match="answered otherwise"):
        figures_of(level(ACCEPTED, again=[("full", other)]))


def test_only_a_video_of_a_task_that_was_taken_in_time_counts() -> None:
    assert [is_in_time(task) for task in (done(30), done(30.1), FAILED, pending_task())] == [True, False, False, False]


def test_moments_are_random_and_the_same_each_time() -> None:
    found = list(moments(100.0, 10.0))
    assert found == list(moments(100.0, 10.0)) == sorted(found)
    assert len(found) == pytest.approx(1_000, rel=0.1)
    assert 0 < found[0] < found[-1] <= 10
    assert found != list(moments(100.0, 10.0, seed=1))
