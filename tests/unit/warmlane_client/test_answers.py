"""What an answer says, and which error it is."""

import msgspec
import pytest

from contracts.api.problems import Problem
from contracts.api.tasks import Progress, QueuePlace, TaskPage, TaskView, VideoView
from contracts.generation.errors import FieldError
from contracts.generation.request import GenerationRequest
from contracts.tasks import TaskError
from tests.unit.warmlane_client.scripted import document, lost, problem, reply
from warmlane_client import (
    AccessDenied,
    ForeignAnswer,
    GatewayBusy,
    GatewayUnreachable,
    NotThere,
    PlaceInQueue,
    ProblemDocument,
    RequestRefused,
    StepsMade,
    Task,
    TaskList,
    VideoMade,
    VideoRequest,
    WhyFailed,
    WrongField,
    WrongRequest,
    image_uri,
)
from warmlane_client.core.answers import failure, list_of, retry_after_s, task_of

HTTP_DATE = "Thu, 26 Feb 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry_after": "12"}, 12.0),
        ({"retry_after": HTTP_DATE, "date": "Thu, 26 Feb 2026 12:00:00 GMT"}, 30.0),
        ({"retry_after": HTTP_DATE, "date": "Thu, 26 Feb 2026 12:01:00 GMT"}, 0.0),
        ({"retry_after": HTTP_DATE}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "Mon, 01 Jan 2026 99999999999999999999:00:00 GMT", "date": HTTP_DATE}, None),
        ({"retry_after": "٣"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(reply(503, **headers)) == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(400, WrongRequest), (422, WrongRequest), (401, AccessDenied), (403, AccessDenied), (404, NotThere)],
        *[(410, NotThere), (429, GatewayBusy), (503, GatewayBusy), (409, RequestRefused), (500, RequestRefused)],
    ],
)
def test_a_problem_document_is_an_error_of_its_status(status: int, kind: type[RequestRefused]) -> None:
    error = failure(problem(status, "a_code", detail="why", retry_after_s=2.5))
    assert type(error) is kind
    assert isinstance(error, RequestRefused)
    assert (error.status, error.code, error.detail, error.retry_after_s, error.request_id) == (
        status,
        "a_code",
        "why",
        2.5,
        "r-1",
    )
    assert str(error) == f"no ({status} a_code): why"


def test_every_wrong_field_is_in_the_error() -> None:
    wrong = [{"pointer": "/steps", "code": "fixed_value", "message": "steps: expected 8, got 7", "a_later_key": 1}]
    error = failure(problem(422, "validation_failed", errors=wrong))
    assert isinstance(error, WrongRequest)
    assert error.problem.errors is not None
    assert error.problem.errors[0].pointer == "/steps"
    assert str(error).endswith("steps: expected 8, got 7")


@pytest.mark.parametrize("body", [b"<html>", b"", b"[" * 100_000, b'{"hello": "world"}', b"\xff", b"7"])
def test_what_no_gateway_wrote_is_a_foreign_answer(body: bytes) -> None:
    error = failure(reply(503, body, retry_after="3"))
    assert isinstance(error, ForeignAnswer)
    assert (error.status, error.retry_after_s) == (503, 3.0)
    for read in (task_of, list_of):
        with pytest.raises(ForeignAnswer):
            read(reply(200, body))


def test_no_answer_is_nobody() -> None:
    error = failure(lost("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))
    assert isinstance(error, GatewayUnreachable)
    assert error.is_certificate


def test_a_task_of_a_later_version_is_read_and_kept_whole() -> None:
    written = document("a_later_status", a_later_key={"x": 1}, route="a_later_route", queue=None)
    task = task_of(reply(200, written, etag='"7"'))
    assert (task.status, task.has_ended, task.revision, task.document) == ("a_later_status", False, '"7"', written)
    page = list_of(reply(200, {"tasks": [written], "next_cursor": None, "a_later_key": 1}))
    assert [each.id for each in page.tasks] == [task.id]


def test_the_client_knows_every_key_of_a_task_and_of_a_problem() -> None:
    """The package imports nothing of the server's, so this holds the two together."""
    kept = {field.name for field in msgspec.structs.fields(Task)} - {"document", "revision"}
    assert kept == {field.name for field in msgspec.structs.fields(TaskView)}
    for own, server in (
        (ProblemDocument, Problem),
        (WrongField, FieldError),
        (PlaceInQueue, QueuePlace),
        (StepsMade, Progress),
        (WhyFailed, TaskError),
        (VideoMade, VideoView),
        (TaskList, TaskPage),
    ):
        assert set(own.__struct_fields__) == set(server.__struct_fields__), own
    assert set(VideoRequest.__struct_fields__) - {"more"} == set(GenerationRequest.__struct_fields__)


def test_only_what_was_given_is_sent() -> None:
    request = VideoRequest(model="anisora", prompt="a fox", num_frames=33, cfg=1.5, keep_s=90, more={"later": True})
    given = {"num_frames": 33, "cfg": 1.5, "keep_s": 90, "later": True}
    assert request.body() == {"model": "anisora", "prompt": "a fox", **given}


def test_an_image_is_sent_as_what_it_is() -> None:
    assert image_uri(b"\xff\xd8\xff\xe0").startswith("data:image/jpeg;base64,")
    assert image_uri(b"RIFF\0\0\0\0WEBPVP8 ").startswith("data:image/webp;base64,")
    with pytest.raises(ValueError, match="neither PNG, JPEG nor WebP"):
        image_uri(b"GIF89a")
