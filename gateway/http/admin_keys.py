"""`/admin/keys`: the API keys, listed, made and revoked. HTTP only."""

from datetime import UTC, datetime
from typing import Final

from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec.structs import replace

from contracts.api.admin import KeysView, KeyView, NewKeyView
from contracts.generation.body import MalformedBody, parse_body
from contracts.keys import DEFAULT_BURST_S, ApiKey
from contracts.topology import is_token
from gateway.boards.key_board import Caller
from gateway.http.access import Turn, needs
from gateway.http.admin_views import key_view
from gateway.http.answers import JsonAnswer
from gateway.http.audit import audited
from gateway.http.body import read_body, require_json
from gateway.http.key_request import WrongKeyRequest, parse_key_request
from gateway.http.lookup import reachable
from gateway.http.openapi.admin_operations import ChangeOperation, NewKeyOperation
from gateway.http.openapi.operations import KeyedOperation, problem_responses
from gateway.http.problems import ProblemError
from gateway.http.queries import require_known_query
from gateway.services import Services
from ops.nats.api_keys import NoSuchKey, add, revoke

_Request = Request[Caller, Turn, State]
_Services = NamedDependency[Services]
_TAGS: Final = ["admin"]
KEY_MAX_BYTES: Final = 4 * 1024


@get(
    "/admin/keys",
    summary="API keys",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def list_keys(services: _Services) -> KeysView:
    """Every key on record, including revoked ones. No secret is shown."""
    return KeysView(
        is_open=services.keys.is_open,
        keys=tuple(map(key_view, services.keys.known())),
        unreadable=tuple(services.keys.unreadable()),
    )


@post(
    "/admin/keys",
    status_code=201,
    summary="Make an API key",
    tags=_TAGS,
    operation_class=NewKeyOperation,
    responses=problem_responses(
        "malformed_body", "body_too_large", "unsupported_media_type", "validation_failed", "transport_unavailable"
    ),
    **needs("admin", counts_late=True),
)
async def make_key(request: _Request, services: _Services) -> Response[NewKeyView]:
    """The answer has the only copy of the secret: the gateway does not store it and cannot show it again.

    Every gateway accepts the key within a second. The first key closes an open gateway for good: from then on every
    request needs a key. This does the same as `warmlane keys add`.
    """
    body = await read_body(request, max_bytes=KEY_MAX_BYTES)
    require_json(request)
    require_known_query(request.scope)
    try:
        wanted = parse_key_request(parse_body(body))
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    except WrongKeyRequest as error:
        raise ProblemError("validation_failed", "no key was made; see errors", errors=error.errors) from error
    request.auth.take()
    now = datetime.now(UTC)
    presented = await reachable(
        add(
            services.link,
            wanted.caller,
            wanted.scopes,
            rate_per_s=wanted.rate_per_s,
            highest_priority=wanted.highest_priority,
            max_waiting=wanted.max_waiting,
            max_running=wanted.max_running,
            now=now,
        )
    )
    audited(request, "key_made", on=presented.id, detail=f"{wanted.caller}: {', '.join(wanted.scopes)}")
    made = KeyView(
        id=presented.id,
        caller=wanted.caller,
        scopes=wanted.scopes,
        created_at=now,
        revoked_at=None,
        rate_per_s=wanted.rate_per_s,
        burst_s=DEFAULT_BURST_S,
        highest_priority=wanted.highest_priority,
        max_waiting=wanted.max_waiting,
        max_running=wanted.max_running,
    )
    answer = NewKeyView(key=made, secret=presented.text)
    return JsonAnswer(answer, status_code=201, headers={"cache-control": "no-store"})


@delete(
    "/admin/keys/{key_id:str}",
    status_code=200,
    summary="Revoke an API key",
    tags=_TAGS,
    operation_class=ChangeOperation,
    responses=problem_responses("key_not_found", "transport_unavailable"),
    **needs("admin"),
)
async def revoke_key(request: _Request, services: _Services, key_id: FromPath[str]) -> KeyView:
    """Within a second no gateway accepts the key. A key that was already revoked is returned unchanged.

    Revoking the last key does not open the gateway: it then refuses every request, including this one, until
    `warmlane keys add` makes another key.
    """
    if not is_token(key_id):
        raise ProblemError("key_not_found", "no key has such an id; GET /admin/keys lists them")
    now = datetime.now(UTC)
    try:
        was: ApiKey = await reachable(revoke(services.link, key_id, now=now))
    except NoSuchKey as error:
        raise ProblemError("key_not_found", "no key has this id; GET /admin/keys lists them") from error
    if was.revoked_at is not None:
        return key_view(was)
    audited(request, "key_revoked", on=key_id, detail=was.caller)
    return key_view(replace(was, revoked_at=now))
