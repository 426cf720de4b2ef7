"""The access log: a line for each request that was refused or failed, or for every request if the operator asks for
that.

A line names the caller of the key or, without one, the address; never a query, a header, a body or a key. Its
`request_id` stands in the answer too, as `X-Request-Id`.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from msgspec import Struct, field

from gateway.http.noted import Noted, begin
from gateway.rules.paths import routed
from ops.telemetry.metrics import requests_not_logged

ID_HEADER: Final = b"x-request-id"
# The id that a caller or a proxy gave the request is kept, where it is short and can be read in any log.
_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# The id of a key in a path is no secret; the rest of the key is.
_KEY: Final = re.compile(r"(wl_[0-9a-f]{12})_[0-9a-zA-Z]+")
PATH_MAX_CHARS: Final = 160
# Probes are no callers: while they are answered 503, a line of its own says what the gateway waits for.
PROBES: Final = frozenset({"/healthz", "/livez", "/readyz"})
# Lines of refusals in any window: a flood of them fills no disk, and one caller's does not hide the others'.
WINDOW_S: Final = 10.0
LINES_MAX: Final = 100
LINES_OF_CALLER_MAX: Final = 20
CALLERS_MAX: Final = 1_000
# Of the callers whose refusals were not logged, how many are named.
NAMED_MAX: Final = 5

# new randomness for each request would cost a system call each time
_PROCESS: Final = secrets.token_hex(6)
_COUNT: Final = itertools.count(1)

log = structlog.get_logger("access")


class Budget(Struct):
    """Which refusals are logged. Pure: *now_s* is any clock that only goes forward.

    1. In each window of WINDOW_S, LINES_OF_CALLER_MAX of one caller and LINES_MAX in all.
    2. Of callers beyond CALLERS_MAX in one window, none.
    """

    began_s: float = float("-inf")
    logged: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_count: int = 0

    def takes(self, caller: str, now_s: float) -> bool:
        """Whether one more refusal of *caller* is logged."""
        if now_s - self.began_s >= WINDOW_S:
            self.began_s, self.logged = now_s, 0
            self.asked.clear()
        asked = self.asked.get(caller, 0)
        is_known = asked or len(self.asked) < CALLERS_MAX  # 2
        if is_known:
            self.asked[caller] = asked + 1
        if is_known and asked < LINES_OF_CALLER_MAX and self.logged < LINES_MAX:  # 1
            self.logged += 1
            return True
        self.left_out_count += 1
        name = caller if caller in self.left_out or len(self.left_out) < CALLERS_MAX else "others"
        self.left_out[name] = self.left_out.get(name, 0) + 1
        return False

    def take_left_out(self) -> tuple[int, dict[str, int]]:
        """How many refusals were left out since the last call, and the callers with most of them."""
        count, self.left_out_count = self.left_out_count, 0
        most = sorted(self.left_out.items(), key=lambda item: -item[1])[:NAMED_MAX]
        self.left_out.clear()
        return count, dict(most)


class Answered(Struct, frozen=True, kw_only=True):
    """What a line says. *status* None: the caller left before there was an answer."""

    noted: Noted
    address: str
    method: str = ""
    path: str = ""
    status: int | None
    took_s: float | None = None


class AccessLog:
    """The access log of one gateway; with *logs_all* also of requests that were served."""

    def __init__(self, *, logs_all: bool = False) -> None:
        self._logs_all = logs_all
        self._budget = Budget()
        requests_not_logged.begin()

    def around(self, app: ASGIApp) -> ASGIApp:
        """*app*, which serves HTTP alone, with a line for each of its answers."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            noted = begin(request_id_of(scope["headers"]))
            header = (ID_HEADER, noted.request_id.encode("ascii"))
            begun_s = time.monotonic()
            status: int | None = None

            async def send_on(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message["headers"] = [*message.get("headers", ()), header]
                await send(message)

            try:
                await app(scope, receive, send_on)
            except Exception:
                status = status or 500  # which the server answers by itself
                raise
            finally:
                if self._logs_all or (status is not None and status >= 400):  # else there is nothing to log
                    self.log_answer(
                        Answered(
                            noted=noted,
                            address=address_of(scope.get("client")),
                            method=str(scope.get("method", "")),
                            path=scope["path"],
                            status=status,
                            took_s=time.monotonic() - begun_s,
                        )
                    )

        return answer

    def log_answer(self, answered: Answered) -> None:
        """Logs *answered* if it was refused, within the budget; with *logs_all* in any case."""
        is_refused = refuses(answered)
        if not is_refused and not self._logs_all:
            return
        if is_refused and not self._budget.takes(answered.noted.key or answered.address, time.monotonic()):
            requests_not_logged.add()
            if self._budget.left_out_count == 1:
                asyncio.get_running_loop().call_later(WINDOW_S, self._log_left_out)
            return
        log.info("request", **fields_of(answered))

    def _log_left_out(self) -> None:
        count, most = self._budget.take_left_out()
        log.warning("requests_not_logged", requests=count, callers=most, within_s=WINDOW_S)


def refuses(answered: Answered) -> bool:
    """Whether *answered* is a refusal or a failure. A 503 to a probe is neither: it is what the probe asks for.
    Pure."""
    if answered.status is None or (answered.status == 503 and routed(answered.path) in PROBES):
        return False
    return answered.status >= 400


def fields_of(answered: Answered) -> dict[str, Any]:
    """What the line of *answered* says. Pure."""
    noted = answered.noted
    fields = {
        "request_id": noted.request_id,
        "method": answered.method,
        "path": shown_path(answered.path),
        "status": answered.status,
        "code": noted.code,
        "caller": noted.caller,
        "key": noted.key,
        "key_counts": None if noted.counts else False,
        "address": answered.address,
        "took_s": None if answered.took_s is None else round(answered.took_s, 4),
    }
    return {name: value for name, value in fields.items() if name == "status" or value not in (None, "")}


def shown_path(path: str) -> str:
    """*path* without a key that somebody put there, and cut to PATH_MAX_CHARS. Pure."""
    shown = _KEY.sub(r"\1_...", path)
    shown = shown if len(shown) <= PATH_MAX_CHARS else shown[:PATH_MAX_CHARS] + "..."
    return quote(shown, safe="/:@!$&'()*+,;=~-._", errors="backslashreplace")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The request's own `X-Request-Id` where it can be used, else a new one."""
    for name, value in headers:
        if name == ID_HEADER:
            return value.decode("ascii") if _GIVEN_ID.fullmatch(value) else new_request_id()
    return new_request_id()


def new_request_id() -> str:
    """An id that no other request of any gateway has: the process's own number, and a count."""
    return f"{_PROCESS}{next(_COUNT):08x}"


def address_of(client: tuple[str, int] | None) -> str:
    """The address of the client, if a trusted proxy names it, else that of the other end of the connection."""
    return "unknown" if client is None else str(client[0])
