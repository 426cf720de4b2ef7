"""The ways in which a call to the gateway may fail, in words for a person."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import click
import msgspec

from contracts.api.lenient import lenient
from contracts.nesting import decode_json
from warmlane_client import ProblemDocument, Reply

KEY_VARIABLE: Final = "WARMLANE_API_KEY"
# What to do about a refusal, where the gateway cannot know it.
HINTS: Final = {
    "unauthorized": f"Set {KEY_VARIABLE}, or name a file that holds the key with --api-key-file. "
    "Where the nats-server is, `warmlane keys add` makes one.",
    "forbidden": "Use another key. Where the nats-server is, `warmlane keys add` makes one with the missing scope.",
}

T = TypeVar("T")


class Refused(click.ClickException):
    """The gateway answered with a problem document. A command that does not catch it shows it line by line, and ends
    with exit status 1.

    *retry_after_s* is the time after which another try makes sense, if the gateway knows it. *troubles* is what the
    gateway reports as wrong.
    """

    def __init__(self, problem: ProblemDocument, *, troubles: Sequence[str] = ()) -> None:
        super().__init__("\n".join([*problem_lines(problem), *(f"  The gateway says: {text}" for text in troubles)]))
        self.problem = problem
        self.retry_after_s = problem.retry_after_s


class Unreachable(click.ClickException):
    """No gateway answers."""


class Stuck(click.ClickException):
    """A task does not move, because nats-server stores nothing. Most likely its disk is full."""


class NotWarmlane(click.ClickException):
    """Something answers that is not a Warmlane gateway; *status* and *retry_after_s* are those of its answer."""

    def __init__(self, message: str, *, status: int = 200, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class DamagedVideo(click.ClickException):
    """The downloaded video does not have the hash that the task names."""


def problem_lines(problem: ProblemDocument) -> Iterator[str]:
    """*problem* for a person: what it is, then one line for each wrong field."""
    yield f"{problem.title} ({problem.status} {problem.code})"
    if problem.errors:
        for error in problem.errors:
            yield f"  {error.message}"
    elif problem.detail:
        yield f"  {problem.detail}"
    if problem.code in HINTS:
        yield f"  {HINTS[problem.code]}"
    if problem.retry_after_s is not None:
        yield f"  Try again in {problem.retry_after_s:g} s."


def decoded(reply: Reply, kind: type[T]) -> T:
    """The body of *reply* as *kind*; fields that a newer gateway adds are ignored. Raises NotWarmlane."""
    try:
        return decode_json(reply.body, lenient(kind))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotWarmlane(f"{reply.url} did not answer as a Warmlane gateway does ({error})") from error
