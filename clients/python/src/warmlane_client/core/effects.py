"""What a flow may ask of its shell, and what it gets back."""

from collections.abc import Generator, Mapping
from typing import Any, Final, TypeVar

from msgspec import Struct, field

from warmlane_client.models import Task

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 30.0

T = TypeVar("T")


class Call(Struct, frozen=True, kw_only=True):
    """A request. *reply_timeout_s* is how long the next bytes of its answer may take."""

    method: str
    path: str
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    reply_timeout_s: float = REPLY_TIMEOUT_S


class Reply(Struct, frozen=True, kw_only=True):
    """An answer; the names in *headers* are in lower case. Of an answer that is read in pieces, *body* is empty."""

    status: int
    url: str
    at_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class NoReply(Struct, frozen=True, kw_only=True):
    """No answer, or no more of it."""

    url: str
    why: str
    at_s: float


class Piece(Struct, frozen=True, kw_only=True):
    """Some bytes of an answer; None when it is complete."""

    content: bytes | None
    at_s: float


class Send(Struct, frozen=True):
    """Send *call* and read the answer. The outcome is a Reply or NoReply."""

    call: Call


class Open(Struct, frozen=True):
    """Send *call*; a success is read in pieces with Read, anything else is read at once. The outcome is a Reply or
    NoReply."""

    call: Call


class Read(Struct, frozen=True):
    """Read the next piece of the answer that was opened last; the next Send or Open closes it. The outcome is a Piece
    or NoReply."""


class Pause(Struct, frozen=True):
    """Wait for *seconds*, and up to *jitter_s* more. The outcome is the time."""

    seconds: float
    jitter_s: float = 0.0


class Now(Struct, frozen=True):
    """The outcome is the time: seconds of a clock that never goes back."""


class Report(Struct, frozen=True):
    """Report to the caller what *task* is now."""

    task: Task


class ReportIdle(Struct, frozen=True):
    """Report to the caller that *task* has not moved for a while."""

    task: Task


class ReportBytes(Struct, frozen=True):
    """Report to the caller that *done* of *total* bytes are there."""

    done: int
    total: int


class Write(Struct, frozen=True):
    """Add *content* to the file in hand."""

    content: bytes


class Restart(Struct, frozen=True):
    """Empty the file in hand."""


class Seal(Struct, frozen=True):
    """Give the file in hand its name, if *sha256* is its hash. The outcome is whether it is."""

    sha256: str


Effect = Send | Open | Read | Pause | Now | Report | ReportIdle | ReportBytes | Write | Restart | Seal
# What is sent back depends on the effect; the helpers below give it its type.
Flow = Generator[Effect, Any, T]


def send(call: Call) -> Flow[Reply | NoReply]:
    outcome: Reply | NoReply = yield Send(call)
    return outcome


def opened(call: Call) -> Flow[Reply | NoReply]:
    outcome: Reply | NoReply = yield Open(call)
    return outcome


def read() -> Flow[Piece | NoReply]:
    outcome: Piece | NoReply = yield Read()
    return outcome


def now() -> Flow[float]:
    at_s: float = yield Now()
    return at_s


def seal(sha256: str) -> Flow[bool]:
    is_sealed: bool = yield Seal(sha256)
    return is_sealed
