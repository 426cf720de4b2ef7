"""Logs what operators change over HTTP: who changed what, and on which object."""

import structlog
from litestar import Request
from litestar.datastructures import State

from gateway.boards.key_board import Caller
from gateway.http.access import Turn
from gateway.http.noted import noted

log = structlog.get_logger("admin")


def audited(request: Request[Caller, Turn, State], change: str, *, on: str, detail: str = "") -> None:
    """Logs that the caller of *request* made *change* on *on*, with the id of the key that allowed it."""
    caller = request.user
    log.warning(
        "admin_changed",
        change=change,
        on=on,
        detail=detail,
        caller=caller.name,
        key=None if caller.key is None else caller.key.id,
        request_id=noted().request_id,
    )
