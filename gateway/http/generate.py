"""`POST /generate`: read, submit, reply. HTTP only."""

import time
from functools import partial

from litestar import Response, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec

from contracts.api.tasks import TaskView
from gateway.boards.open_streams import TooManyStreams
from gateway.http.acceptance import accept
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.lookup import CallerRequest, awaited, etag_of, shown, until_gone
from gateway.http.not_accepted import NOT_ACCEPTED, not_accepted, overloaded
from gateway.http.openapi.operations import GenerateOperation, problem_responses
from gateway.http.preferences import Preferences
from gateway.http.problems import answer_of
from gateway.http.submission import SUBMISSION_PROBLEMS, read_submission
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.telemetry.tracing import current_span


@post(
    "/generate",
    status_code=202,
    summary="Submit a generation",
    tags=["generation"],
    operation_class=GenerateOperation,
    responses={
        200: ResponseSpec(TaskView, description="", generate_examples=False),
        **problem_responses(
            "invalid_query",
            "precondition_failed",
            *SUBMISSION_PROBLEMS,
        ),
    },
    **needs("submit", counts_late=True),
)
async def generate(request: CallerRequest, services: NamedDependency[Services]) -> Response[TaskView]:
    """Checks a request and queues it: for a warm lane of its model if there is one, else for the degraded worker.

    With a warm lane the answer comes at once. Without one it comes when the degraded worker takes the request, which
    can take 30 s, or as `503` when the worker does not: give your client a time-out of 35 s or more. A client that
    hangs up before that gives up its place. With `Prefer: respond-async` the answer is `202` at once, and a task that
    no worker takes in time ends as `failed` with the code `queue_overloaded`.

    A `422` lists every wrong field at once, before anything is written. For a model whose `enforcement` in
    `GET /settings` is `report`, another number for a fixed parameter is not an error: the fixed value is used, and
    `warnings` says so.

    With `Prefer: wait=S` the answer comes as `200` when the task has ended, or as `202` after S seconds. It comes at
    once if too many requests wait already. `Preference-Applied` says whether the gateway waited.

    `priority` names the class of the request: waiting requests of a higher class start first. If the API key may not
    name that class, the answer is `403 priority_forbidden`, and nothing is queued.

    With an `Idempotency-Key`, the same key and body lead to the same task, even while the first request is still held.
    After a `503 queue_overloaded` the same key makes a new task.
    """
    since_s = time.monotonic()
    submission = await read_submission(request, services)
    preferred = submission.preferred
    try:
        snapshot = await accept(
            request,
            services,
            submission.accepted,
            key=submission.key,
            priority=submission.priority,
            until_gone=None if preferred.responds_async else partial(until_gone, request),
            hold_s=_left_s(preferred, since_s),
        )
    except Overloaded as error:
        # a busy gateway gives this answer most often: returning it costs less than raising it
        return answer_of(overloaded(error, request, services))  # type: ignore[return-value]
    except NOT_ACCEPTED as error:
        raise not_accepted(error, has_key=submission.key is not None) from error
    current_span().set_attributes({"task.id": snapshot.task.id, "model": snapshot.task.model})
    left_s = _left_s(preferred, since_s)
    if left_s:
        try:
            snapshot = await awaited(request, services, snapshot, seen_revision=None, wait_s=left_s)
        except TooManyStreams:  # it is accepted all the same
            preferred = Preferences(responds_async=preferred.responds_async)
    task = shown(request, services, snapshot.task)
    headers = {"location": task.links.self_, "etag": etag_of(snapshot, task)} | preferred.applied
    has_ended = preferred.wait_s is not None and snapshot.task.status.is_terminal
    return JsonAnswer(task, headers=headers, status_code=200 if has_ended else 202)


def _left_s(preferred: Preferences, since_s: float) -> float | None:
    """What is left of the wait that the client prefers, for a request that came at *since_s* by this process's
    clock."""
    if preferred.wait_s is None:
        return None
    return max(0.0, preferred.wait_s - (time.monotonic() - since_s))
