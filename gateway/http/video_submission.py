"""What a client submits to `/v1/videos`: a form or JSON, read whole, and checked in the order of refusals."""

import asyncio
from functools import partial
from typing import Final

from contracts.generation.body import MalformedBody, beside_image_bytes, parse_body
from contracts.generation.errors import InvalidRequest
from contracts.generation.request import AcceptedRequest
from contracts.settings import Catalog
from gateway.boards.snapshots import Snapshot
from gateway.http.body import COSTLY_BYTES, JSON, read_body, require_media_type, too_much_beside
from gateway.http.bounds import require_within_bounds
from gateway.http.conditions import conditions_of, require_to_change
from gateway.http.form import FORM, FormReader, is_form, read_form
from gateway.http.generate import traceparent_in
from gateway.http.lookup import CallerRequest
from gateway.http.not_accepted import NOT_ACCEPTED, not_accepted, overloaded
from gateway.http.preferences import Preferences
from gateway.http.priority import class_of
from gateway.http.problems import ProblemError, wrong_fields
from gateway.http.queries import require_known_query
from gateway.http.submission import Submission, idempotency_key_of, require_reachable
from gateway.placing.hold import UntilGone
from gateway.placing.overload import Overloaded
from gateway.services import Services
from gateway.videos.errors import NOT_AGAIN
from gateway.videos.fields import UnknownModel, accepted, as_named
from gateway.videos.forms import VideoFormFields
from ops.telemetry.tracing import below_root, current_root, current_span, traceparent_of

MEDIA_TYPES: Final = (JSON, FORM)


async def read_video(request: CallerRequest, services: Services) -> Submission:
    """What *request* submits. Nothing is written. Raises HTTPException (413), ProblemError."""
    body: bytes | FormReader
    if is_form(request):
        is_costly = True
        body = await read_form(
            request,
            image_max_bytes=services.image_max_bytes,
            text_max_bytes=services.beside_image_max_bytes,
            target=VideoFormFields(),
        )
    else:
        body = await read_body(request)
        beside_image = beside_image_bytes(body)
        if beside_image > services.beside_image_max_bytes:
            raise too_much_beside(beside_image, services.beside_image_max_bytes)
        is_costly = len(body) > COSTLY_BYTES
    if is_costly:
        request.auth.take()
    require_media_type(request, MEDIA_TYPES)
    require_known_query(request.scope)
    key = idempotency_key_of(request)
    catalog = services.catalog
    found = await asyncio.to_thread(_accepted, body, catalog) if is_costly else _accepted(body, catalog)
    if not is_costly:
        request.auth.take()
    require_to_change(conditions_of(request), None)
    if found.webhook is not None:
        require_reachable(services, found.webhook.url)
    return Submission(
        accepted=found,
        key=key,
        priority=class_of(found.priority, request.headers.getall("priority", []), request.user.key),
        preferred=Preferences(),
    )


async def submit_video(
    request: CallerRequest, services: Services, submission: Submission, *, until_gone: UntilGone | None
) -> Snapshot:
    """The task of *submission*, as `Admission.accept` has it. Raises ProblemError."""
    try:
        with below_root():
            snapshot = await services.admission.accept(
                submission.accepted,
                caller=request.user.name,
                key=submission.key,
                priority=submission.priority,
                traceparent=traceparent_of(current_root()) or traceparent_in(request.headers.get("traceparent")),
                until_gone=until_gone,
                require=partial(require_within_bounds, request.user, services.tasks.index),
            )
    except Overloaded as error:
        raise overloaded(error, request, services) from error
    except InvalidRequest as error:  # of an image that was named
        raise wrong_fields(InvalidRequest([as_named(each) for each in error.errors])) from error
    except NOT_ACCEPTED as error:
        problem = not_accepted(error, has_key=submission.key is not None)
        if problem.problem.outcome == "unknown" and submission.key is None:
            # sent again by itself, the client might have made two videos
            problem.headers.update(NOT_AGAIN)
        raise problem from error
    current_span().set_attributes({"task.id": snapshot.task.id, "model": snapshot.task.model})
    return snapshot


def _accepted(body: bytes | FormReader, catalog: Catalog) -> AcceptedRequest:
    try:
        return accepted(body.fields() if isinstance(body, FormReader) else parse_body(body), catalog)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    except UnknownModel as error:
        raise ProblemError("model_not_found", str(error)) from error
    except InvalidRequest as error:
        raise wrong_fields(error) from error
