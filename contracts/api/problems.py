"""A refusal or an error, in the form of RFC 9457."""

from typing import Literal

from msgspec import Struct

from contracts.generation.errors import FieldError

# Which limit of the degraded queue a request hit.
OverloadLimit = Literal["depth", "wait", "displaced", "expected"]


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). Programs switch on *code*; *errors* lists every wrong field in a fixed order.

    *outcome* is "unknown" if the request may have been accepted after all; *limit* says which limit of the queue was
    hit: `depth`, it is full; `wait`, no worker took the request in time; `displaced`, a request of a higher class took
    its place; `expected`, no worker will be free in time. *instance* is the task in question.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = None
    errors: list[FieldError] | None = None
    outcome: Literal["unknown"] | None = None
    limit: OverloadLimit | None = None
    retry_after_s: float | None = None
