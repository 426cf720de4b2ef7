"""Reads answers. Pure."""

from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import msgspec

from warmlane_client.core.effects import NoReply, Reply
from warmlane_client.errors import ForeignAnswer, GatewayUnreachable, WarmlaneError, problem_error
from warmlane_client.models import Task, TaskList
from warmlane_client.problem import ProblemDocument

T = TypeVar("T")


def document(answer: Reply) -> dict[str, Any]:
    """The JSON object in *answer*. Raises ForeignAnswer."""
    return _decoded(answer, dict[str, Any])


def task_of(answer: Reply) -> Task:
    """The task in *answer*. Raises ForeignAnswer."""
    try:
        return Task.of(document(answer), answer.headers.get("etag", ""))
    except msgspec.ValidationError as error:
        raise _foreign(answer, error) from error


def batch_of(answer: Reply) -> tuple[Task, ...]:
    """The tasks of a batch in *answer*. Raises ForeignAnswer."""
    try:
        return tuple(Task.of(each) for each in msgspec.convert(document(answer).get("tasks"), list[dict[str, Any]]))
    except msgspec.ValidationError as error:
        raise _foreign(answer, error) from error


def list_of(answer: Reply) -> TaskList:
    """The page of tasks in *answer*. Raises ForeignAnswer."""
    page = document(answer)
    try:
        tasks = tuple(Task.of(each) for each in msgspec.convert(page.get("tasks"), list[dict[str, Any]]))
        return TaskList(tasks=tasks, next_cursor=msgspec.convert(page.get("next_cursor"), str | None))
    except msgspec.ValidationError as error:
        raise _foreign(answer, error) from error


def failure(outcome: Reply | NoReply) -> WarmlaneError:
    """The error for *outcome*, which is no success."""
    if isinstance(outcome, NoReply):
        return GatewayUnreachable(outcome.url, outcome.why)
    try:
        problem = _decoded(outcome, ProblemDocument)
    except ForeignAnswer:
        return ForeignAnswer(
            f"{outcome.url} answered {outcome.status}, and not as a Warmlane gateway does; check the address",
            status=outcome.status,
            retry_after_s=retry_after_s(outcome),
        )
    if problem.retry_after_s is None:
        problem = msgspec.structs.replace(problem, retry_after_s=retry_after_s(outcome))
    return problem_error(problem, request_id=outcome.headers.get("x-request-id", ""))


def retry_after_s(answer: Reply) -> float | None:
    """The wait that `Retry-After` of *answer* asks for, in seconds from when the answer was sent; None if it is missing
    or cannot be read. A date is compared with the answer's own `Date`, so that the clock of this machine does not
    matter."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until, since = parsedate_to_datetime(text), parsedate_to_datetime(answer.headers.get("date", ""))
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _decoded(answer: Reply, kind: type[T]) -> T:
    try:
        # an answer that nests deeper than the interpreter's stack counts as not JSON
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _foreign(answer, error) from error


def _foreign(answer: Reply, error: Exception) -> ForeignAnswer:
    return ForeignAnswer(f"{answer.url} did not answer as a Warmlane gateway does ({error})", status=answer.status)
