"""Reads what a client submits to be made into a video, and checks it in the order of refusals (`access.py`)."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.generation.body import MalformedBody, beside_image_bytes, parse_body
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.form import FormTarget
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog
from contracts.tasks import Priority
from contracts.urls import parse_url
from gateway.http.body import COSTLY_BYTES, JSON, read_body, require_media_type, too_much_beside
from gateway.http.conditions import conditions_of, require_to_change
from gateway.http.form import FORM, FormReader, is_form, read_form
from gateway.http.lookup import CallerRequest
from gateway.http.preferences import MAX_WAIT_S, Preferences
from gateway.http.priority import class_of
from gateway.http.problems import ProblemError, wrong_fields
from gateway.http.queries import require_known_query
from gateway.services import Services

# Makes the request of the fields of a body. Raises InvalidRequest.
Check = Callable[[Mapping[str, Any], Catalog], AcceptedRequest]

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

# The problems with which every route that queues a task may answer.
SUBMISSION_PROBLEMS: Final = (
    "malformed_body",
    "body_too_large",
    "unsupported_media_type",
    "priority_forbidden",
    "too_many_tasks",
    "too_many_fetches",
    "validation_failed",
    "idempotency_key_reused",
    "queue_overloaded",
    "storage_full",
    "storage_unavailable",
    "transport_unavailable",
)


class Submission(Struct, frozen=True):
    """An accepted request, and what its headers add. *key* is the Idempotency-Key, if there is one."""

    accepted: AcceptedRequest
    key: str | None
    priority: Priority
    preferred: Preferences


async def read_submission(request: CallerRequest, services: Services) -> Submission:
    """What *request* submits to `POST /generate`. Nothing is written. Raises HTTPException (413), ProblemError."""
    found = await read_checked(request, services, validate)
    preferred = Preferences.of(request.headers.getall("prefer", []), wait_max_s=MAX_WAIT_S)
    return replace(found, preferred=preferred)


async def read_checked(
    request: CallerRequest, services: Services, check: Check, *, target: FormTarget | None = None
) -> Submission:
    """What *request* submits, as JSON or as a form. *target* takes the parts of a form; *check* judges the fields.

    This does not read `Prefer`. Raises HTTPException (413), ProblemError, and what *check* raises other than
    InvalidRequest.
    """
    body: bytes | FormReader
    if is_form(request):
        is_costly = True
        body = await read_form(
            request,
            image_max_bytes=services.image_max_bytes,
            text_max_bytes=services.beside_image_max_bytes,
            target=target,
        )
    else:
        body = await read_body(request)
        beside_image = beside_image_bytes(body)
        if beside_image > services.beside_image_max_bytes:
            raise too_much_beside(beside_image, services.beside_image_max_bytes)
        is_costly = len(body) > COSTLY_BYTES
    if is_costly:
        request.auth.take()
    require_media_type(request, (JSON, FORM))
    require_known_query(request.scope)
    key = idempotency_key_of(request)
    catalog = services.catalog
    accepted = await asyncio.to_thread(_checked, body, check, catalog) if is_costly else _checked(body, check, catalog)
    if not is_costly:
        request.auth.take()
    require_to_change(conditions_of(request), None)
    if accepted.webhook is not None:
        require_reachable(services, accepted.webhook.url)
    return Submission(
        accepted=accepted,
        key=key,
        priority=class_of(accepted.priority, request.headers.getall("priority", []), request.user.key),
        preferred=Preferences(),
    )


def idempotency_key_of(request: CallerRequest) -> str | None:
    """The Idempotency-Key of *request*, if there is one. Raises the problem `invalid_query`."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ProblemError("invalid_query", "Idempotency-Key: 1 to 255 printable ASCII characters without blanks")
    return key


def objection_to(services: Services, url: str) -> FieldError | None:
    """Why no webhook may go to *url*, as far as the gateway knows without resolving a name. The rest is judged when a
    webhook is sent."""
    why = services.webhooks.sender.objection_at_once(parse_url(url))
    if why is None:
        return None
    return FieldError(pointer="/webhook/url", code="address_refused", message=f"webhook/url: {why}")


def require_reachable(services: Services, url: str) -> None:
    """Raises the problem `validation_failed` where `objection_to` has one."""
    error = objection_to(services, url)
    if error is not None:
        raise ProblemError("validation_failed", "1 field is wrong; see errors", errors=[error])


def _checked(body: bytes | FormReader, check: Check, catalog: Catalog) -> AcceptedRequest:
    try:
        return check(body.fields() if isinstance(body, FormReader) else parse_body(body), catalog)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    except InvalidRequest as error:
        raise wrong_fields(error) from error
