"""`POST /generate`: read, submit, reply. HTTP only."""

import re
import time
from functools import partial
from typing import Final

from litestar import Response, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec

from contracts.api.tasks import TaskView
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.storage import RETRY_AFTER_S, StorageFull
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.bounds import require_within_bounds
from gateway.http.lookup import CallerRequest, awaited, etag_of, shown
from gateway.http.openapi.operations import GenerateOperation, problem_responses
from gateway.http.preferences import Preferences
from gateway.http.problems import ProblemError, answer_of
from gateway.http.submission import read_submission
from gateway.http.views import root_of, task_url
from gateway.placing.admission import KeyReused
from gateway.placing.hold import CallerGone
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.artifacts import StorageFailed
from ops.nats.errors import TransportUnavailable
from ops.telemetry.tracing import below_root, current_root, current_span, traceparent_of

RETRY_SOON_S: Final = 5.0

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@post(
    "/generate",
    status_code=202,
    summary="Submit a generation",
    tags=["generation"],
    operation_class=GenerateOperation,
    responses={
        200: ResponseSpec(TaskView, description="", generate_examples=False),
        **problem_responses(
            "malformed_body",
            "invalid_query",
            "precondition_failed",
            "body_too_large",
            "unsupported_media_type",
            "priority_forbidden",
            "too_many_tasks",
            "validation_failed",
            "idempotency_key_reused",
            "queue_overloaded",
            "storage_full",
            "storage_unavailable",
            "transport_unavailable",
        ),
    },
    **needs("submit", counts_late=True),
)
async def generate(request: CallerRequest, services: NamedDependency[Services]) -> Response[TaskView]:
    """Checks a request and queues it: for a warm lane of its model, or for the degraded worker where there is none.

    A warm lane gives an answer at once. On the degraded worker the answer comes when it takes the request, which can
    take 30 s, or as `503` when it does not: give your client a time-out of 35 s or more. A client that hangs up before
    gives up its place. With `Prefer: respond-async` the answer is `202` at once, and a task that is not taken in time
    ends as `failed` with the code `queue_overloaded`.

    Every wrong field is listed at once, before anything is written. Where `GET /settings` gives the `enforcement`
    `report` for a model, another number for a fixed parameter is not wrong: the fixed one is used, and `warnings` says
    so.

    With `Prefer: wait=S` the answer comes when the task has ended, as `200`, or after S seconds, as `202`.

    `priority` names the class of the request: what waits in a stricter one starts first. Where the API key may not name
    that class, the answer is `403 priority_forbidden`, and nothing is queued.

    With an `Idempotency-Key`, the same key and body lead to the same task, also to one that is still held; after a `503
    queue_overloaded` the same key makes a new task.
    """
    since_s = time.monotonic()
    submission = await read_submission(request, services)
    preferred = submission.preferred
    try:
        with below_root():
            snapshot = await services.admission.accept(
                submission.accepted,
                caller=request.user.name,
                key=submission.key,
                priority=submission.priority,
                traceparent=traceparent_of(current_root()) or _traceparent(request.headers.get("traceparent")),
                until_gone=None if preferred.responds_async else partial(_until_gone, request),
                hold_s=_left_s(preferred, since_s),
                require=partial(require_within_bounds, request.user, services.tasks.index),
            )
    except Overloaded as error:
        # a busy gateway answers this most often: it is returned, and not raised
        return answer_of(_overloaded(error, request, services))  # type: ignore[return-value]
    except _NOT_ACCEPTED as error:
        raise _problem(error, has_key=submission.key is not None) from error
    current_span().set_attributes({"task.id": snapshot.task.id, "model": snapshot.task.model})
    left_s = _left_s(preferred, since_s)
    if left_s:
        snapshot = await awaited(request, services, snapshot, seen_revision=None, wait_s=left_s)
    task = shown(request, services, snapshot.task)
    headers = {"location": task.links.self_, "etag": etag_of(snapshot, task.queue)} | preferred.applied
    has_ended = preferred.wait_s is not None and snapshot.task.status.is_terminal
    return JsonAnswer(task, headers=headers, status_code=200 if has_ended else 202)


def _left_s(preferred: Preferences, since_s: float) -> float | None:
    """What is left of the wait that the client prefers, of a request that came at *since_s* by this process's clock."""
    if preferred.wait_s is None:
        return None
    return max(0.0, preferred.wait_s - (time.monotonic() - since_s))


async def _until_gone(request: CallerRequest) -> None:
    # the body has been read: what is still received is that the client hung up
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _traceparent(header: str | None) -> str | None:
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


def _overloaded(error: Overloaded, request: CallerRequest, services: Services) -> ProblemError:
    if error.task_id is not None:
        current_span().set_attribute("task.id", error.task_id)
    reasons = {
        "depth": f"{DEGRADED_MAX_MSGS} requests are waiting already",
        "wait": f"no worker took the request within {services.catalog.windows.wait_limit_s:g} s; it will not run",
    }
    return ProblemError(
        "queue_overloaded",
        f"{reasons[error.limit]}; try again after the time in Retry-After",
        limit=error.limit,
        retry_after_s=error.retry_after_s,
        instance=None if error.task_id is None else task_url(root_of(request), error.task_id),
    )


_NotAccepted = StorageFull | KeyReused | CallerGone | StorageFailed | TransportUnavailable
_NOT_ACCEPTED: Final = (StorageFull, KeyReused, CallerGone, StorageFailed, TransportUnavailable)


def _problem(error: _NotAccepted, *, has_key: bool) -> ProblemError:
    match error:
        case StorageFull():
            detail = "the queue has no room for more requests, and nothing of this one was stored; try again later"
            return ProblemError("storage_full", detail, retry_after_s=RETRY_AFTER_S)
        case KeyReused():
            detail = "this Idempotency-Key came with another body before; use a new key"
            return ProblemError("idempotency_key_reused", detail)
        case CallerGone():  # nobody reads the answer
            return ProblemError("malformed_body", "the caller hung up")
        case StorageFailed():
            detail = "the image could not be stored; the request will not run"
            return ProblemError("storage_unavailable", detail, retry_after_s=RETRY_SOON_S)
        case TransportUnavailable():
            hint = "the same request with the same Idempotency-Key is safe" if has_key else "use an Idempotency-Key"
            detail = f"the queue did not answer; {hint} to try again"
            return ProblemError("transport_unavailable", detail, retry_after_s=RETRY_SOON_S, outcome="unknown")
