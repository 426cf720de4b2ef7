"""RFC 9457 problem documents: every error of the gateway in one form. `problem_kinds.py` has the table of them."""

import math
import traceback
from collections.abc import Mapping
from typing import Any, Final, Literal

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ASGIApp, ExceptionHandlersMap, Receive, Scope, Send

from contracts.api.problems import OverloadLimit, Problem
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.wire import without_content
from gateway.http.answers import JsonAnswer
from gateway.http.noted import noted
from gateway.http.problem_kinds import PROBLEMS, TYPE_PREFIX
from gateway.videos.errors import error_body, is_below, retry_headers
from ops.telemetry import metrics
from ops.telemetry.tracing import current_span, failed

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
# How much of a body the gateway reads and discards after refusing it for its size, so that the client sees the reason.
DISCARD_MAX_BYTES: Final = 64 * 1024 * 1024
# The key in a route's options for what its query may hold (`queries.Query`).
QUERY: Final = "query"

_log = structlog.get_logger(__name__)


class ProblemError(Exception):
    """Raise it anywhere in a handler; `problem_handlers` makes it the answer.

    *code* is a row of `PROBLEMS` (KeyError otherwise). With *retry_after_s* the header `Retry-After` is sent too.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: list[FieldError] | None = None,
        instance: str | None = None,
        outcome: Literal["unknown"] | None = None,
        limit: OverloadLimit | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        kind = PROBLEMS[code]
        self.problem: Final = Problem(
            type=TYPE_PREFIX + code,
            title=kind.title,
            status=kind.status,
            detail=detail,
            code=code,
            instance=instance,
            errors=errors,
            outcome=outcome,
            limit=limit,
            retry_after_s=retry_after_s,
        )
        self.headers: Final = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def response(self) -> Response[Problem]:
        """The answer that carries this problem."""
        return ProblemAnswer(
            self.problem, status_code=self.problem.status, media_type=PROBLEM_MEDIA_TYPE, headers=self.headers
        )


def wrong_fields(error: InvalidRequest) -> ProblemError:
    """The problem of a request that breaks constraints."""
    count = len(error.errors)
    detail = f"{count} field{'s are' if count > 1 else ' is'} wrong; see errors"
    return ProblemError("validation_failed", detail, errors=error.errors)


class ProblemAnswer(JsonAnswer[Problem]):
    """A problem in the form of the request's path: below `/v1` as clients of OpenAI's API read it, wherever it was
    raised."""

    def to_asgi_response(self, app: Any, request: Request[Any, Any, Any], **_: Any) -> ASGIApp:  # type: ignore[override]
        """The ASGI application that sends it."""
        problem = self.content

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:
            answer: JsonAnswer[Any] = self
            make = super(ProblemAnswer, self).to_asgi_response
            if is_below(scope["path"]):
                headers = retry_headers(problem) | self.headers
                answer = JsonAnswer(error_body(problem), headers=headers, status_code=problem.status)
                make = answer.to_asgi_response
            await make(app, request)(scope, receive, send)

        return send_it


# The problems for what Litestar itself raises, by status. Its texts are for developers; the client gets the gateway's.
_BY_STATUS: Final[Mapping[int, str]] = {
    400: "invalid_query",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def begin() -> None:
    """Sets the counters of refusals to 0 at a gateway's start, so that the first refusal shows as a rise."""
    for code in PROBLEMS:
        metrics.requests_refused.begin(code)


def problem_handlers() -> ExceptionHandlersMap:
    """Litestar's `exception_handlers`: whatever is raised, the answer is a problem document."""
    return {ProblemError: _known, HTTPException: _from_litestar, Exception: _unexpected}


def _known(_: Request[Any, Any, Any], error: ProblemError) -> Response[Problem]:
    return answer_of(error)


def answer_of(error: ProblemError) -> Response[Problem]:
    """The answer that carries *error*, which this counts. Busy handlers return it instead of raising *error*:
    Litestar's exception handling costs as much as all the rest of a refusal."""
    metrics.requests_refused.add(error.problem.code)
    noted().code = error.problem.code
    current = current_span()
    current.set_attribute("warmlane.problem.code", error.problem.code)
    if error.problem.status >= 500:
        failed(current, error.problem.code)
    return error.response()


def _from_litestar(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    code = _BY_STATUS.get(error.status_code)
    if code is None:
        return _unexpected(request, error)
    detail = PROBLEMS[code].detail
    if code == "invalid_query":
        detail = _what_is_wrong(request, error)
    headers = dict(error.headers or {})
    if code == "body_too_large" and not _soon_over(request):
        # otherwise the server would go on reading what the client goes on sending
        headers["Connection"] = "close"
    return answer_of(ProblemError(code, detail, headers=headers))


def _soon_over(request: Request[Any, Any, Any]) -> bool:
    """Whether the body has a declared length, small enough for the gateway to read and discard the rest.

    Closing instead would reset the connection, and most clients would then never see the answer.
    """
    length = request.headers.get("content-length", "")
    return length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= DISCARD_MAX_BYTES


def _what_is_wrong(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """The parameters that Litestar refused, each with its allowed values, or else with Litestar's reason, without the
    value."""
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        query = request.route_handler.opt.get(QUERY)
        expected = {} if query is None else query.expected
        found = [
            f"{entry.get('key', 'request')}: {expected.get(entry.get('key'), without_content(entry['message']))}"
            for entry in error.extra
            if "message" in entry
        ]
        if found:
            return "; ".join(found)
    return error.detail


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    # as text: a renderer that is given the exception may print local variables, and prompts and keys are among them
    text = "".join(traceback.format_exception(error))
    _log.error(
        "unexpected_error", request_id=noted().request_id, method=request.method, path=request.url.path, exception=text
    )
    return answer_of(ProblemError("internal_error", PROBLEMS["internal_error"].detail))
