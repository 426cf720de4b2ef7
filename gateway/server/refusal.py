"""A refusal of a connection, before or instead of an answer of the application: why, and the bytes that say so."""

from http import HTTPStatus

import msgspec
from msgspec import Struct

from gateway.http.noted import Noted
from gateway.http.problems import PROBLEM_MEDIA_TYPE, ProblemError
from gateway.server.access_log import new_request_id
from gateway.server.limits import Limits


class ConnectionRefusal(Struct, frozen=True):
    """The row *code* of `PROBLEMS`, and the *detail* that the client reads."""

    code: str
    detail: str


NO_HTTP = ConnectionRefusal("malformed_request", "this is not an HTTP/1.1 request")
CONNECTIONS_FULL = ConnectionRefusal("too_many_connections", "this gateway has as many connections as it can have")


def late_head(limits: Limits) -> ConnectionRefusal:
    """The request head did not come in time."""
    return ConnectionRefusal("request_timeout", f"the request head was not complete within {limits.head_s:g} s")


def late_body(limits: Limits) -> ConnectionRefusal:
    """The body of the request did not come in time."""
    return ConnectionRefusal(
        "request_timeout",
        f"no byte of the body within {limits.body_idle_s:g} s, or not all of it within {limits.body_s:g} s",
    )


class Answer(Struct, frozen=True):
    """An answer of HTTP/1.1 that closes the connection, and what its line in the access log holds."""

    content: bytes
    status: int
    noted: Noted


def answer_of(refusal: ConnectionRefusal) -> Answer:
    """The problem document of *refusal*, as it goes over the connection."""
    problem = ProblemError(
        refusal.code, refusal.detail, retry_after_s=1.0 if refusal.code == "too_many_connections" else None
    )
    body = msgspec.json.encode(problem.problem)
    noted = Noted(new_request_id(), code=refusal.code)
    headers = {
        "content-type": PROBLEM_MEDIA_TYPE,
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": noted.request_id,
        **problem.headers,
    }
    status = HTTPStatus(problem.problem.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    head = "".join(f"{line}\r\n" for line in lines)
    return Answer(f"{head}\r\n".encode("ascii") + body, status.value, noted)
