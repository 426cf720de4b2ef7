"""The problem document of a refusal."""

from typing import Any

from msgspec import Struct


class WrongField(Struct, frozen=True, kw_only=True):
    """One field that is wrong: *pointer* is where it stands in the request (RFC 6901)."""

    pointer: str = ""
    code: str = ""
    message: str = ""
    expected: Any = None
    got: Any = None


class ProblemDocument(Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457). *outcome* is `unknown` where the request may have been accepted after all; *limit* says
    which limit of the queue it hit; *instance* is the task in question."""

    title: str
    status: int
    code: str
    type: str = ""
    detail: str = ""
    instance: str | None = None
    errors: tuple[WrongField, ...] | None = None
    outcome: str | None = None
    limit: str | None = None
    retry_after_s: float | None = None
