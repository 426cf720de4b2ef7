"""Turns an accepted request into its task, for every route that queues one."""

import re
from functools import partial
from typing import Final

from contracts.generation.request import AcceptedRequest
from contracts.tasks import Priority
from gateway.boards.snapshots import Snapshot
from gateway.http.bounds import require_within_bounds
from gateway.http.lookup import CallerRequest
from gateway.placing.hold import UntilGone
from gateway.services import Services
from ops.telemetry.tracing import below_root, current_root, traceparent_of

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


async def accept(
    request: CallerRequest,
    services: Services,
    accepted: AcceptedRequest,
    *,
    key: str | None,
    priority: Priority,
    until_gone: UntilGone | None,
    hold_s: float | None = None,
) -> Snapshot:
    """The task of *accepted* for the caller of *request*, in its trace and within the bounds of its API key.

    Raises what `Admission.accept` raises, and ProblemError for a bound.
    """
    with below_root():
        return await services.admission.accept(
            accepted,
            caller=request.user.name,
            key=key,
            priority=priority,
            traceparent=sender_of(request),
            until_gone=until_gone,
            hold_s=hold_s,
            require=partial(require_within_bounds, request.user, services.tasks.index),
        )


def sender_of(request: CallerRequest) -> str | None:
    """The `traceparent` for the task of *request*: that of its own span if it has one, else the one that it came
    with."""
    return traceparent_of(current_root()) or _traceparent_in(request.headers.get("traceparent"))


def _traceparent_in(header: str | None) -> str | None:
    """The value of the header `traceparent`, if it is well formed."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None
