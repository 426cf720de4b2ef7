"""What a gateway answers before it can serve: that it lives, and what it waits for."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from contracts.api.health import Health, ModelReadiness, Readiness
from gateway.http.problems import PROBLEM_MEDIA_TYPE, ProblemError
from gateway.rules.paths import routed

RETRY_AFTER_S: Final = 1.0


class GateAnswer(Struct, frozen=True):
    """A status, its headers and its body."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer_before(path: str, *, models: Iterable[str], waits_for: str) -> GateAnswer:
    """What a gateway of *models* answers at *path* while it *waits_for* something. Slashes at the end of *path* change
    nothing. Pure.

    1. `/livez`: 200, as a process that waits needs no restart.
    2. `/readyz`: 503, in its usual form, with the reason.
    3. All else: 503 `starting`. Nothing of the request is read.
    """
    path = routed(path)
    if path == "/livez":  # 1
        return _json(200, Health(status="ok"), "application/json")
    if path == "/readyz":  # 2
        none = ModelReadiness(ready=False, warm=False, lanes=[])
        readiness = Readiness(
            ready=False, nats=False, degraded_worker=False, models=dict.fromkeys(models, none), troubles=[waits_for]
        )
        return _json(503, readiness, "application/json")
    problem = ProblemError("starting", "GET /readyz says what it waits for", retry_after_s=RETRY_AFTER_S)  # 3
    answer = _json(problem.problem.status, problem.problem, PROBLEM_MEDIA_TYPE)
    answer.headers.update({name.lower(): value for name, value in problem.headers.items()}, connection="close")
    return answer


class Gate:
    """An ASGI application, over HTTP alone, that answers by itself until `open`, and then passes everything on."""

    def __init__(self, models: Iterable[str]) -> None:
        """*models* are those that the gateway will serve."""
        self._models = tuple(models)
        self._app: Any = None
        self._waits_for = "this gateway has just been started"

    def wait_for(self, reason: str) -> None:
        """`/readyz` says *reason* from now on."""
        self._waits_for = reason

    def open(self, app: Any) -> None:
        """From now on *app* answers."""
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The interface of ASGI."""
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        answer = answer_before(scope["path"], models=self._models, waits_for=self._waits_for)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})


def _json(status: int, body: Struct, media_type: str) -> GateAnswer:
    content = msgspec.json.encode(body)
    return GateAnswer(status, {"content-type": media_type, "content-length": str(len(content))}, content)
