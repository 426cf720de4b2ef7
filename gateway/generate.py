"""`POST /generate`: parse, check, submit, reply. HTTP only."""

import re
from typing import Any, Final

from litestar import Request, Response, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.exceptions import InternalServerException

from contracts.generation import InvalidRequest, MalformedBody, parse_body, validate
from gateway.admission import KeyReused, NoLane
from gateway.openapi import GenerateOperation, problem_responses
from gateway.problems import ProblemError
from gateway.services import Services
from gateway.views import TaskView, view
from ops.artifacts import StorageFailed
from ops.nats_link import StreamFull, TransportUnavailable

ANONYMOUS: Final = "anonymous"
RETRY_SOON_S: Final = 5.0

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@post(
    "/generate",
    status_code=202,
    summary="Submit a generation",
    tags=["generation"],
    operation_class=GenerateOperation,
    responses=problem_responses(
        "malformed_body",
        "invalid_query",
        "body_too_large",
        "unsupported_media_type",
        "validation_failed",
        "idempotency_key_reused",
        "no_lane",
        "queue_overloaded",
        "storage_unavailable",
        "transport_unavailable",
    ),
)
async def generate(request: Request[Any, Any, State], services: NamedDependency[Services]) -> Response[TaskView]:
    """Checks a request and queues it for a warm lane of its model.

    Every wrong field is listed at once, before anything is written. With an `Idempotency-Key`, the same key and body
    always lead to the same task.
    """
    try:
        body = await request.body()  # 413 before anything else is looked at
    except InternalServerException as error:  # Litestar's word for a client that hung up; nobody reads the answer
        raise ProblemError("malformed_body", "the body was cut off") from error
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError("unsupported_media_type", "send the request as application/json")
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ProblemError("invalid_query", "Idempotency-Key: 1 to 255 printable ASCII characters without blanks")
    try:
        accepted = validate(parse_body(body), services.catalog)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    except InvalidRequest as error:
        count = len(error.errors)
        detail = f"{count} field{'s are' if count > 1 else ' is'} wrong; see errors"
        raise ProblemError("validation_failed", detail, errors=error.errors) from error
    try:
        snapshot = await services.admission.submit(
            accepted, caller=ANONYMOUS, key=key, traceparent=_traceparent(request.headers.get("traceparent"))
        )
    except KeyReused as error:
        raise ProblemError(
            "idempotency_key_reused", "this Idempotency-Key came with another body before; use a new key"
        ) from error
    except NoLane as error:
        raise _again("no_lane", f"{error}; GET /readyz tells when one is warm") from error
    except StreamFull as error:
        raise _again(
            "queue_overloaded",
            f"{services.catalog.lane_queue_max_msgs} tasks of this model are waiting already",
            limit="depth",
        ) from error
    except StorageFailed as error:
        raise _again("storage_unavailable", "the image could not be stored; the request will not run") from error
    except TransportUnavailable as error:
        hint = "the same request with the same Idempotency-Key is safe" if key else "use an Idempotency-Key"
        raise _again(
            "transport_unavailable", f"the queue did not answer; {hint} to try again", outcome="unknown"
        ) from error
    task = view(snapshot.task)
    return Response(task, headers={"Location": task.links.self_, "ETag": f'"{snapshot.revision}"'})


def _again(code: str, detail: str, **extra: Any) -> ProblemError:
    return ProblemError(code, detail, retry_after_s=RETRY_SOON_S, **extra)


def _traceparent(header: str | None) -> str | None:
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None
