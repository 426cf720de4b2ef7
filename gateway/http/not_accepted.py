"""The problem of a request that was not accepted, for the routes that submit one."""

from typing import Final

from contracts.generation.errors import InvalidRequest
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.boards.storage import RETRY_AFTER_S, StorageFull
from gateway.http.lookup import CallerRequest
from gateway.http.problems import ProblemError, wrong_fields
from gateway.http.views import root_of, task_url
from gateway.images.fetching import TooManyFetches
from gateway.placing.admission import KeyReused
from gateway.placing.hold import CallerGone
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.artifacts import StorageFailed
from ops.nats.errors import TransportUnavailable
from ops.telemetry.tracing import current_span

RETRY_SOON_S: Final = 5.0


def overloaded(error: Overloaded, request: CallerRequest, services: Services) -> ProblemError:
    """The problem of a request that met a limit of the degraded queue."""
    if error.task_id is not None:
        current_span().set_attribute("task.id", error.task_id)
    reasons = {
        "depth": f"{DEGRADED_MAX_MSGS} requests are waiting already",
        "expected": f"no worker is expected to be free for it within {services.catalog.windows.wait_limit_s:g} s",
        "displaced": "a request of a higher class took the place of this one; it will not run",
        "wait": f"no worker took the request within {services.catalog.windows.wait_limit_s:g} s; it will not run",
    }
    return ProblemError(
        "queue_overloaded",
        f"{reasons[error.limit]}; try again after the time in Retry-After",
        limit=error.limit,
        retry_after_s=error.retry_after_s,
        instance=None if error.task_id is None else task_url(root_of(request), error.task_id),
    )


NotAccepted = (
    StorageFull | KeyReused | CallerGone | StorageFailed | TransportUnavailable | InvalidRequest | TooManyFetches
)
NOT_ACCEPTED: Final = (
    StorageFull,
    KeyReused,
    CallerGone,
    StorageFailed,
    TransportUnavailable,
    InvalidRequest,
    TooManyFetches,
)


def not_accepted(error: NotAccepted, *, has_key: bool) -> ProblemError:
    """The problem of a request that *error* ended; *has_key*: it had an Idempotency-Key."""
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
            detail = "the image could not be stored or read; the request will not run"
            return ProblemError("storage_unavailable", detail, retry_after_s=RETRY_SOON_S)
        case InvalidRequest():  # about an image that the request names
            return wrong_fields(error)
        case TooManyFetches():
            detail = "the gateway is fetching as many images as it may; try again after the time in Retry-After"
            return ProblemError("too_many_fetches", detail, retry_after_s=RETRY_SOON_S)
        case TransportUnavailable():
            hint = "the same request with the same Idempotency-Key is safe" if has_key else "use an Idempotency-Key"
            detail = f"the queue did not answer; {hint} to try again"
            return ProblemError("transport_unavailable", detail, retry_after_s=RETRY_SOON_S, outcome="unknown")
