"""The API calls that take one request, with its retries."""

import uuid
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from warmlane_client.core import effects
from warmlane_client.core.answers import batch_of, failure, list_of, task_of
from warmlane_client.core.effects import REPLY_TIMEOUT_S, Call, Flow, Reply
from warmlane_client.core.retries import Patience, Tries
from warmlane_client.models import Task, TaskList, VideoRequest

# A gateway may hold a submit for 30 s, until a worker takes the task or the time is over.
HELD_REPLY_TIMEOUT_S: Final = 45.0
NOT_MODIFIED: Final = 304
# Methods that do the same however often they arrive (RFC 9110).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})


def answered(
    call: Call,
    patience: Patience,
    *,
    repeatable: bool | None = None,
    while_lost: bool = False,
    accept: Collection[int] = (),
) -> Flow[Reply]:
    """The answer to *call*: a success, a 304, or one with a status in *accept*. Raises the error of the last try.

    *repeatable* says whether the call may safely arrive twice; by default its method decides that. With *while_lost* it
    waits for a gateway that restarts.
    """
    may_repeat = call.method in IDEMPOTENT if repeatable is None else repeatable
    begun_s = yield from effects.now()
    tries = Tries(patience, repeatable=may_repeat, begun_s=begun_s, while_lost=while_lost)
    while True:
        outcome = yield from effects.send(call)
        if isinstance(outcome, Reply) and (
            outcome.is_success or outcome.status == NOT_MODIFIED or outcome.status in accept
        ):
            return outcome
        error = failure(outcome)
        pause = tries.pause_after(error, outcome.at_s)
        if pause is None:
            raise error
        yield pause


def submit(
    request: VideoRequest | Mapping[str, Any], patience: Patience, *, idempotency_key: str | None, hold: bool
) -> Flow[Task]:
    """As `Client.submit`."""
    body = _body(request)
    headers = _named(idempotency_key)
    if not hold:
        headers["Prefer"] = "respond-async"
    timeout_s = HELD_REPLY_TIMEOUT_S if hold else REPLY_TIMEOUT_S
    call = Call(method="POST", path="/generate", json=body, headers=headers, reply_timeout_s=timeout_s)
    # the key makes it safe
    answer = yield from answered(call, patience, repeatable=True)
    return task_of(answer)


def submit_many(
    requests: Iterable[VideoRequest | Mapping[str, Any]], patience: Patience, *, idempotency_key: str | None
) -> Flow[tuple[Task, ...]]:
    """As `Client.submit_many`."""
    body = {"requests": [_body(request) for request in requests]}
    call = Call(method="POST", path="/generate/batch", json=body, headers=_named(idempotency_key))
    answer = yield from answered(call, patience, repeatable=True)
    return batch_of(answer)


def task(which: Task | str, patience: Patience) -> Flow[Task]:
    """As `Client.task`."""
    answer = yield from answered(Call(method="GET", path=task_path(which)), patience)
    return task_of(answer)


def page(patience: Patience, params: Mapping[str, str | list[str]]) -> Flow[TaskList]:
    """As `Client.tasks`."""
    answer = yield from answered(Call(method="GET", path="/tasks", params=params), patience)
    return list_of(answer)


def cancel(which: Task | str, patience: Patience) -> Flow[Task]:
    """As `Client.cancel`."""
    answer = yield from answered(Call(method="DELETE", path=task_path(which)), patience)
    return task_of(answer)


def listing(
    *,
    status: tuple[str, ...],
    model: str | None,
    labels: Mapping[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
    limit: int,
    cursor: str | None,
) -> dict[str, str | list[str]]:
    """The query of `GET /tasks`."""
    given: dict[str, str | list[str] | None] = {
        "status": list(status) or None,
        "model": model,
        "label": [f"{name}:{value}" for name, value in (labels or {}).items()] or None,
        "created_after": None if created_after is None else created_after.isoformat(),
        "created_before": None if created_before is None else created_before.isoformat(),
        "limit": str(limit),
        "cursor": cursor,
    }
    return {name: value for name, value in given.items() if value is not None}


def task_path(task: Task | str) -> str:
    """The path of a task, or of an id, even one that no task has."""
    return f"/tasks/{quote(task if isinstance(task, str) else task.id, safe='')}"


def _body(request: VideoRequest | Mapping[str, Any]) -> dict[str, Any]:
    return request.body() if isinstance(request, VideoRequest) else dict(request)


def _named(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4()) if idempotency_key is None else idempotency_key}
