"""A task as a video, when to ask for it again, and a problem as an error."""

from typing import Any

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.generation.errors import FieldError
from contracts.progress import StepsDone
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, VideoFile
from gateway.http.problem_kinds import PROBLEMS
from gateway.http.problems import ProblemError
from gateway.videos.errors import error_body, error_type, is_below, retry_headers
from gateway.videos.objects import poll_after_ms, progress_of, seconds_of, video_of
from tests.kit.records import NOW, TASK_ID, after, pending_task

PENDING = pending_task()
CLAIMED = lifecycle.claim(PENDING, owner="o", worker="w", lease_s=60, now=after(1))
FILE = VideoFile(path=CLAIMED.video_path, bytes=9, sha256="ab" * 32, width=96, height=64, frames=17, fps=16)
DONE = lifecycle.finish(CLAIMED, video=FILE, memory=None, now=after(5))
FAILED = lifecycle.fail(CLAIMED, code=FailureCode.OUT_OF_MEMORY, message="no memory", now=after(5))
BEGAN = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        pytest.param(
            PENDING, {"status": "queued", "progress": 0, "completed_at": None, "expires_at": None}, id="queued"
        ),
        pytest.param(CLAIMED, {"status": "in_progress", "progress": 0, "error": None}, id="in-progress"),
        pytest.param(
            DONE,
            {"status": "completed", "progress": 100, "completed_at": BEGAN + 5, "expires_at": BEGAN + 65},
            id="completed",
        ),
        pytest.param(
            FAILED, {"status": "failed", "progress": 0, "completed_at": None, "expires_at": BEGAN + 65}, id="failed"
        ),
    ],
)
def test_a_task_as_a_video(task: GenerationTask, shown: dict[str, Any]) -> None:
    video = video_of(task, keep_s=60)
    assert {name: getattr(video, name) for name in shown} == shown
    assert (video.id, video.object, video.created_at) == (TASK_ID, "video", BEGAN)
    assert (video.model, video.prompt, video.size, video.seconds) == ("anisora", "a red fox", "96x64", "1")


@pytest.mark.parametrize(("own_s", "kept_s"), [(None, 90), (60, 60), (120, 90)])
def test_it_expires_by_its_own_time_or_by_the_operators_which_is_shorter(own_s: int | None, kept_s: int) -> None:
    assert video_of(replace(DONE, keep_s=own_s), keep_s=90.5).expires_at == BEGAN + 5 + kept_s


def test_a_failure_says_why() -> None:
    error = video_of(FAILED, keep_s=60).error
    assert error is not None
    assert (error.code, error.message) == ("out_of_memory", "no memory")


@pytest.mark.parametrize(("step", "percent"), [(0, 0), (1, 12), (4, 50), (7, 87), (8, 99)])
def test_no_video_is_complete_before_it_is_there(step: int, percent: int) -> None:
    assert progress_of(replace(CLAIMED, progress=StepsDone(step=step, steps=8))) == percent
    assert TaskStatus.PROCESSING is CLAIMED.status


@pytest.mark.parametrize(
    ("frames", "fps", "text"),
    [(65, 16, "4"), (17, 16, "1"), (97, 24, "4"), (121, 16, "7.5"), (5, 16, "0.25"), (1, 16, "0")],
)
def test_seconds(frames: int, fps: int, text: str) -> None:
    assert seconds_of(frames, fps) == text


@pytest.mark.parametrize(
    ("wait_s", "run_s", "after_ms"),
    [(0, 40, 4_000), (20, 40, 6_000), (0, 0.4, 250), (600, 900, 10_000), (None, 40, 1_000), (0, None, 1_000)],
)
def test_when_to_ask_again(wait_s: float | None, run_s: float | None, after_ms: int) -> None:
    assert poll_after_ms(wait_s=wait_s, run_s=run_s) == after_ms


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_problem_as_an_error(code: str) -> None:
    problem = ProblemError(code, "why").problem
    error = error_body(problem).error
    assert (error.message, error.code, error.param, error.errors) == ("why", code, None, None)
    assert retry_headers(problem) == (
        {"x-should-retry": "false"} if code in ("queue_overloaded", "generation_failed") else {}
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_class_of_an_error(status: int, kind: str) -> None:
    assert error_type(status) == kind


def test_wrong_fields_are_in_the_message_and_the_first_is_the_parameter() -> None:
    wrong = [
        FieldError(pointer="/webhook/url", code="bad_url", message="webhook/url: no"),
        FieldError(pointer="/size", code="x", message="size: no"),
    ]
    error = error_body(ProblemError("validation_failed", "2 fields are wrong", errors=wrong).problem).error
    assert (error.message, error.param, error.errors) == ("webhook/url: no; size: no", "webhook", wrong)


@pytest.mark.parametrize(
    ("path", "below"),
    [("/v1/videos", True), ("/v1/nothing", True), ("/v1", False), ("/tasks", False), ("/v10/x", False)],
)
def test_which_paths_speak_so(path: str, below: bool) -> None:
    assert is_below(path) is below
