"""`/webhooks`: the endpoints that the gateway notifies of tasks, and the deliveries to them. HTTP only."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import UNSET

from contracts.api.webhooks import (
    DeliveriesPage,
    DeliveryView,
    EndpointSecret,
    EndpointsPage,
    EndpointView,
    RequestsSecret,
    WebhookTestView,
)
from contracts.generation.body import MalformedBody, parse_body
from contracts.generation.checks import webhook_events, webhook_url
from contracts.generation.errors import FieldError, unknown_fields
from contracts.urls import parse_url
from contracts.webhooks import OVERLAP_MAX_S, OVERLAP_S, WebhookDelivery, WebhookEndpoint
from gateway.boards.key_board import Caller
from gateway.http.access import needs
from gateway.http.body import read_body, require_json
from gateway.http.lookup import CallerRequest, reachable
from gateway.http.openapi.operations import KeyedOperation, problem_responses
from gateway.http.openapi.webhooks import EndpointOperation
from gateway.http.problems import ProblemError
from gateway.http.queries import require_known_query
from gateway.http.webhook_views import delivery_view, endpoint_view
from gateway.services import Services
from gateway.webhooks.registry import NoSuchEndpoint, TooManyEndpoints
from gateway.webhooks.sealing import CannotUnseal
from gateway.webhooks.service import NoSuchDelivery

_TAGS: Final = ["webhooks"]
_Services = NamedDependency[Services]
_Caller = NamedDependency[Caller]
BODY_MAX_BYTES: Final = 8 * 1024
LISTED_MAX: Final = 1_000
_Limit = Annotated[int, QueryParameter(name="limit", ge=1, le=LISTED_MAX)]
_Overlap = Annotated[
    float,
    QueryParameter(
        name="overlap_s", ge=0, le=OVERLAP_MAX_S, description="How long the previous secrets sign as well, in seconds."
    ),
]
_UNREACHABLE: Final = ("transport_unavailable",)


@get(
    "/webhooks",
    summary="List endpoints",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("read"),
)
async def list_webhooks(services: _Services, caller: _Caller) -> EndpointsPage:
    """The endpoints of the key's caller (of all callers for `admin`), oldest first. No secret is shown."""
    board, now = services.webhooks.endpoints, datetime.now(UTC)
    found = board.every() if caller.sees_only is None else board.of(caller.name)
    return EndpointsPage(endpoints=tuple(endpoint_view(each, now) for each in found))


@post(
    "/webhooks",
    summary="Register an endpoint",
    tags=_TAGS,
    operation_class=EndpointOperation,
    responses={
        201: ResponseSpec(EndpointSecret, description="The endpoint, and its secret.", generate_examples=False),
        **problem_responses(
            "malformed_body",
            "body_too_large",
            "unsupported_media_type",
            "validation_failed",
            "too_many_webhooks",
            *_UNREACHABLE,
        ),
    },
    **needs("submit", counts_late=True),
)
async def add_webhook(request: CallerRequest, services: _Services) -> EndpointSecret:
    """Registers an address that the gateway notifies of every task of the key's caller from now on. The answer has the
    secret that signs the messages (Standard Webhooks). It is never shown again."""
    body = await read_body(request, max_bytes=BODY_MAX_BYTES)
    require_json(request)
    require_known_query(request.scope)
    url, events = _asked(body)
    request.auth.take()
    why = await services.webhooks.objection_to(request.user.name, parse_url(url))
    if why is not None:
        raise _wrong([FieldError(pointer="/url", code="address_refused", message=f"url: {why}")])
    now = datetime.now(UTC)
    try:
        endpoint, secret = await reachable(services.webhooks.registry.add(request.user.name, url, events, now=now))
    except TooManyEndpoints as error:
        raise ProblemError("too_many_webhooks", str(error)) from error
    return EndpointSecret(endpoint=endpoint_view(endpoint, now), secret=secret)


@get(
    "/webhooks/{endpoint_id:str}",
    summary="Look at an endpoint",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("webhook_not_found", *_UNREACHABLE),
    **needs("read"),
)
async def get_webhook(services: _Services, caller: _Caller, endpoint_id: FromPath[str]) -> EndpointView:
    """One endpoint. No secret is shown."""
    return endpoint_view(await _find(services, caller, endpoint_id), datetime.now(UTC))


@delete(
    "/webhooks/{endpoint_id:str}",
    status_code=204,
    summary="Remove an endpoint",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("webhook_not_found", *_UNREACHABLE),
    **needs("submit"),
)
async def remove_webhook(services: _Services, caller: _Caller, endpoint_id: FromPath[str]) -> None:
    """Removes the endpoint. Nothing is sent there any more; deliveries that were still pending end as `dead`."""
    endpoint = await _find(services, caller, endpoint_id)
    try:
        await reachable(services.webhooks.registry.remove(endpoint.id))
    except NoSuchEndpoint as error:
        raise _no_such_endpoint() from error


@post(
    "/webhooks/{endpoint_id:str}/rotate",
    status_code=200,
    summary="Rotate the secret of an endpoint",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("webhook_not_found", *_UNREACHABLE),
    **needs("submit"),
)
async def rotate_webhook(
    services: _Services, caller: _Caller, endpoint_id: FromPath[str], overlap_s: _Overlap = OVERLAP_S
) -> EndpointSecret:
    """Makes a new secret. For `overlap_s` seconds the earlier secrets sign as well, so that a receiver can change
    over."""
    endpoint, now = await _find(services, caller, endpoint_id), datetime.now(UTC)
    try:
        rotated, secret = await reachable(services.webhooks.registry.rotate(endpoint.id, now=now, overlap_s=overlap_s))
    except NoSuchEndpoint as error:
        raise _no_such_endpoint() from error
    return EndpointSecret(endpoint=endpoint_view(rotated, now), secret=secret)


@post(
    "/webhooks/{endpoint_id:str}/test",
    status_code=200,
    summary="Send a test message to an endpoint",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("webhook_not_found", "webhook_secret_unavailable", *_UNREACHABLE),
    **needs("submit"),
)
async def test_webhook(services: _Services, caller: _Caller, endpoint_id: FromPath[str]) -> WebhookTestView:
    """Sends `webhook.test` once, now, and returns the result. A 2xx enables an endpoint that was disabled."""
    endpoint = await _find(services, caller, endpoint_id)
    try:
        answer = await reachable(services.webhooks.test(endpoint))
    except NoSuchEndpoint as error:
        raise _no_such_endpoint() from error
    except CannotUnseal as error:
        raise _unsealed(error) from error
    return WebhookTestView(
        delivered=answer.is_success, status=answer.status, error=answer.error, took_s=round(answer.took_s, 3)
    )


@get(
    "/webhooks/secret",
    summary="The secret for the addresses in requests",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("webhook_secret_unavailable", *_UNREACHABLE),
    **needs("submit"),
)
async def get_webhook_secret(services: _Services, caller: _Caller) -> RequestsSecret:
    """The secret that signs the messages to addresses that the caller's requests name in `webhook`. The gateway makes
    it when it is first needed."""
    now, registry = datetime.now(UTC), services.webhooks.registry
    endpoint = await reachable(registry.for_requests(caller.name, now=now))
    try:
        return RequestsSecret(secret=registry.secrets_of(endpoint, now)[0])
    except CannotUnseal as error:
        raise _unsealed(error) from error


@post(
    "/webhooks/secret/rotate",
    status_code=200,
    summary="Rotate the secret for the addresses in requests",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(*_UNREACHABLE),
    **needs("submit"),
)
async def rotate_webhook_secret(
    services: _Services, caller: _Caller, overlap_s: _Overlap = OVERLAP_S
) -> RequestsSecret:
    """As `POST /webhooks/{endpoint_id}/rotate`."""
    now, registry = datetime.now(UTC), services.webhooks.registry
    endpoint = await reachable(registry.for_requests(caller.name, now=now))
    _, secret = await reachable(registry.rotate(endpoint.id, now=now, overlap_s=overlap_s))
    return RequestsSecret(secret=secret)


@get(
    "/webhooks/deliveries",
    summary="List deliveries, newest first",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("invalid_query"),
    **needs("read"),
)
async def list_webhook_deliveries(
    services: _Services,
    caller: _Caller,
    status: FromQuery[Literal["pending", "delivered", "dead"] | None] = None,
    endpoint: FromQuery[str | None] = None,
    limit: _Limit = 100,
) -> DeliveriesPage:
    """The past and pending deliveries of the key's caller (of all callers for `admin`), newest first."""
    found = services.webhooks.deliveries.newest(caller.sees_only, status=status, endpoint=endpoint, limit=limit + 1)
    return DeliveriesPage(deliveries=tuple(map(delivery_view, found[:limit])), more=len(found) > limit)


@post(
    "/webhooks/deliveries/{delivery_id:str}/redeliver",
    status_code=200,
    summary="Redeliver",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("delivery_not_found", *_UNREACHABLE),
    **needs("submit"),
)
async def redeliver_webhook(services: _Services, caller: _Caller, delivery_id: FromPath[str]) -> DeliveryView:
    """Sends the delivery again, whatever its status: the same body under the same `webhook-id`, with the full number of
    attempts."""
    known: WebhookDelivery | None = services.webhooks.deliveries.get(delivery_id)
    if known is None or caller.sees_only not in (None, known.caller):
        raise _no_such_delivery()
    try:
        return delivery_view(await reachable(services.webhooks.redeliver(delivery_id)))
    except NoSuchDelivery as error:
        raise _no_such_delivery() from error


ROUTES: Final = (
    list_webhooks,
    add_webhook,
    get_webhook,
    remove_webhook,
    rotate_webhook,
    test_webhook,
    get_webhook_secret,
    rotate_webhook_secret,
    list_webhook_deliveries,
    redeliver_webhook,
)


async def _find(services: Services, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
    try:
        endpoint = await reachable(services.webhooks.registry.get(endpoint_id))
    except ValueError:  # a text that cannot be an id
        endpoint = None
    if endpoint is None or endpoint.url is None or caller.sees_only not in (None, endpoint.caller):
        raise _no_such_endpoint()
    return endpoint


def _asked(body: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        fields: dict[str, Any] = parse_body(body)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    errors: list[FieldError] = []
    absent = UNSET
    url = webhook_url("url", fields.get("url", absent), errors)
    events = webhook_events("events", fields.get("events", absent), errors)
    errors.extend(unknown_fields(fields, ("url", "events")))
    if errors or url is None or events is None:
        raise _wrong(errors)
    return url, events


def _wrong(errors: list[FieldError]) -> ProblemError:
    return ProblemError("validation_failed", 'send {"url": "https://…", "events": ["task.done"]}', errors=errors)


def _no_such_endpoint() -> ProblemError:
    return ProblemError("webhook_not_found", "no endpoint of yours has this id; GET /webhooks lists them")


def _no_such_delivery() -> ProblemError:
    return ProblemError("delivery_not_found", "no delivery of yours has this id; GET /webhooks/deliveries lists them")


def _unsealed(error: CannotUnseal) -> ProblemError:
    return ProblemError("webhook_secret_unavailable", f"{error}; rotate the secret, or ask an operator")
