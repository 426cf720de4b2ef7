"""A problem as clients of OpenAI's API read it. Pure."""

from collections.abc import Mapping
from typing import Final

from contracts.api.problems import Problem
from contracts.api.videos import VideoApiError, VideoApiErrorBody

# Every answer below this path has the form that clients of OpenAI expect, errors included.
PREFIX: Final = "/v1/"
# A request that failed with one of these gets the same answer if it is sent again at once, or costs a second
# generation.
_FINAL: Final = frozenset({"queue_overloaded", "generation_failed"})
# Tells the client not to send the request again by itself, whatever its status.
NOT_AGAIN: Final[Mapping[str, str]] = {"x-should-retry": "false"}


def is_below(path: str) -> bool:
    """Whether *path* is one whose errors have this form."""
    return path.startswith(PREFIX)


def error_body(problem: Problem) -> VideoApiErrorBody:
    """*problem* in the form `{"error": …}`. Where fields are wrong, the message says what is wrong with each."""
    errors = problem.errors or []
    message = "; ".join(error.message for error in errors) or problem.detail
    param = errors[0].pointer.removeprefix("/").partition("/")[0] if errors else ""
    error = VideoApiError(
        message=message,
        type=error_type(problem.status),
        param=param or None,
        code=problem.code,
        errors=problem.errors,
    )
    return VideoApiErrorBody(error=error)


def error_type(status: int) -> str:
    """The class of an error, by its status."""
    if status >= 500:
        return "server_error"
    named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return named.get(status, "invalid_request_error")


def retry_headers(problem: Problem) -> dict[str, str]:
    """The headers that tell the client not to send the same request again by itself, where its own rule would be wrong:
    it sends a 5xx again twice."""
    return dict(NOT_AGAIN) if problem.code in _FINAL else {}
