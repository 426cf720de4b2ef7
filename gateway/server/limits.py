"""What a client may make the gateway wait for or keep, and for how long: the bounds of a connection, and the rules that
apply them."""

import contextlib
import resource
from typing import Final, Literal

from msgspec import Struct

HEAD_S: Final = 10.0
HEAD_MAX_BYTES: Final = 64 * 1024
HEADERS_MAX: Final = 100
BODY_IDLE_S: Final = 10.0
BODY_S: Final = 60.0
UNREAD_S: Final = 30.0
LINGER_S: Final = 2.0
# Longer than clients keep an idle connection (httpx and the `openai` client 5 s, aiohttp 15 s): a client that closes
# first never sends a request into a connection that is being closed.
IDLE_S: Final = 20.0
CONNECTIONS_MAX: Final = 4_096
# Pipelined requests, which came before the answer to an earlier one. The answers come in order, so they only wait.
PIPELINED_MAX: Final = 16
# File descriptors for all else: nats-server, the artifact store, the log, and connections that are turned away.
RESERVED_FDS: Final = 256


class Limits(Struct, frozen=True, kw_only=True):
    """The bounds of one gateway's connections.

    How long a client may take: *head_s* to send a whole request head, from the connection or the first byte on;
    *body_idle_s* without sending a byte of a body, and *body_s* for all of it; *unread_s* without reading a byte of an
    answer that waits to be sent; *linger_s* to read a refusal before the connection is cut.
    """

    head_s: float = HEAD_S
    head_max_bytes: int = HEAD_MAX_BYTES
    headers_max: int = HEADERS_MAX
    body_idle_s: float = BODY_IDLE_S
    body_s: float = BODY_S
    unread_s: float = UNREAD_S
    linger_s: float = LINGER_S
    connections_max: int = CONNECTIONS_MAX
    pipelined_max: int = PIPELINED_MAX

    @property
    def look_every_s(self) -> float:
        """How often connections are looked at; a bound is exceeded by this much at most."""
        return min(1.0, self.head_s / 4, self.body_idle_s / 4, self.body_s / 4, self.unread_s / 4, self.linger_s / 4)


class Waits(Struct, kw_only=True):
    """Since when a connection keeps the gateway waiting, and for what, by the loop's clock; None for what the gateway
    does not wait for.

    *body_moved_s* is when a byte of the body came last. *unread_s* is when the client last took a byte of the
    *unsent_bytes* that wait to be sent to it. *leaving_s* is when it was refused.
    """

    head_s: float | None = None
    body_s: float | None = None
    body_moved_s: float = 0.0
    unread_s: float | None = None
    leaving_s: float | None = None
    unsent_bytes: int = 0

    def note_unsent(self, unsent_bytes: int, now_s: float) -> None:
        """Notes that *unsent_bytes* wait to be sent at *now_s*; if they are fewer than before, the client has read."""
        if unsent_bytes < self.unsent_bytes:
            self.unread_s = now_s
        self.unsent_bytes = unsent_bytes

    def excuse(self, stood_s: float) -> None:
        """The gateway itself stood still for *stood_s*: the client may take that much longer."""
        self.body_moved_s += stood_s
        if self.head_s is not None:
            self.head_s += stood_s
        if self.body_s is not None:
            self.body_s += stood_s
        if self.unread_s is not None:
            self.unread_s += stood_s
        if self.leaving_s is not None:
            self.leaving_s += stood_s


Overdue = Literal["leaving", "unread", "head", "body"]


def overdue(waits: Waits, limits: Limits, now_s: float) -> Overdue | None:
    """What a client has kept the gateway waiting for too long at *now_s*, by the first of these that applies. Pure.

    1. leaving: it was refused, and has had the time to read that.
    2. unread: it takes no byte of its answer.
    3. head: its request head is not complete.
    4. body: no byte of its body came for a while, or the whole takes too long.
    """
    if waits.leaving_s is not None:  # 1; nothing else counts any more
        return "leaving" if now_s >= waits.leaving_s + limits.linger_s else None
    if waits.unread_s is not None and now_s >= waits.unread_s + limits.unread_s:  # 2
        return "unread"
    if waits.head_s is not None and now_s >= waits.head_s + limits.head_s:  # 3
        return "head"
    if waits.body_s is not None:  # 4
        until_s = min(waits.body_s + limits.body_s, waits.body_moved_s + limits.body_idle_s)
        return "body" if now_s >= until_s else None
    return None


def connections_max(wanted: int, fds: int) -> int:
    """How many connections *fds* file descriptors allow, of *wanted*; at least 1. Pure."""
    return max(1, min(wanted, fds - RESERVED_FDS))


def raise_fd_limit(connections: int = CONNECTIONS_MAX) -> int:
    """Raises this process's limit of file descriptors to what *connections* need, as far as it may be raised.

    Returns how many it may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_FDS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max(soft, wanted)
    with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid it: then there are fewer connections
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft
