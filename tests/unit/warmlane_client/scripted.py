"""A flow, run by hand: its outcomes are read from a list, and its clock moves with its pauses."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from warmlane_client.core.effects import (
    Effect,
    Flow,
    NoReply,
    Now,
    Open,
    Pause,
    Piece,
    Read,
    Reply,
    Report,
    ReportBytes,
    ReportIdle,
    Restart,
    Seal,
    Send,
    Write,
)

URL: Final = "http://gateway.example"
MOMENT: Final = "2026-02-26T12:00:00Z"
T = TypeVar("T")


def reply(status: int = 200, body: Any = b"", **headers: str) -> Reply:
    """An answer; a *body* that is no bytes is sent as JSON. Names of *headers* have underscores."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, url=URL, at_s=0.0, headers=named, body=content)


def problem(status: int, code: str, **more: Any) -> Reply:
    document = {"type": f"urn:warmlane:problem:{code}", "title": "no", "status": status, "detail": "", "code": code}
    return reply(status, {**document, **more}, x_request_id="r-1")


def lost(why: str = "refused") -> NoReply:
    return NoReply(url=URL, why=why, at_s=0.0)


def piece(content: bytes | None, *, after_s: float = 0.0) -> Piece:
    return Piece(content=content, at_s=after_s)


def stream() -> Reply:
    return reply(200, content_type="text/event-stream; charset=utf-8")


def document(status: str = "pending", **more: Any) -> dict[str, Any]:
    return {"id": "t-1", "status": status, "model": "anisora", "created_at": MOMENT, "queued_at": MOMENT, **more}


def event(status: str, revision: int, **more: Any) -> bytes:
    return b"event: task\nid: %d\ndata: %s\n\n" % (revision, msgspec.json.encode(document(status, **more)))


class Run:
    """What a flow did: *asked* are its requests, *reported* its states, *idle* how often nothing moved."""

    def __init__(self, outcomes: Iterable[Reply | NoReply | Piece]) -> None:
        self._outcomes = list(outcomes)
        self.now_s = 0.0
        self.asked: list[Send | Open] = []
        self.reported: list[str] = []
        self.pauses: list[float] = []
        self.idle = 0
        self.file = b""
        self.sealed_as: list[bool] = []

    def of(self, flow: Flow[T], *, whole: bytes = b"") -> T:
        """The result of *flow*. A file is sealed when it is *whole*. Every outcome has to be asked for."""
        outcome: Any = None
        try:
            while True:
                outcome = self._outcome(flow.send(outcome), whole)
        except StopIteration as ended:
            assert self._outcomes == []
            result: T = ended.value
            return result

    def _outcome(self, effect: Effect, whole: bytes) -> Any:
        match effect:
            case Send() | Open():
                self.asked.append(effect)
                return self._next()
            case Read():
                return self._next()
            case Pause(seconds, _):
                self.pauses.append(seconds)
                self.now_s += seconds
            case Report(task):
                self.reported.append(task.status)
            case ReportIdle():
                self.idle += 1
            case Write(content):
                self.file += content
            case Restart():
                self.file = b""
            case Seal():
                self.sealed_as.append(self.file == whole)
                return self.file == whole
            case ReportBytes() | Now():
                pass
        return self.now_s

    def _next(self) -> Reply | NoReply | Piece:
        outcome = self._outcomes.pop(0)
        self.now_s += outcome.at_s  # in a script: how long it took
        return msgspec.structs.replace(outcome, at_s=self.now_s)

    def headers(self) -> list[dict[str, str]]:
        return [dict(each.call.headers) for each in self.asked]

    def paths(self) -> list[str]:
        return [each.call.path for each in self.asked]
