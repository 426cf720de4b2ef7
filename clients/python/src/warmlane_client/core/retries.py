"""When a client tries again, and when it gives up. Pure."""

from typing import Final

from msgspec import Struct

from warmlane_client.core.effects import Pause
from warmlane_client.errors import ForeignAnswer, GatewayBusy, GatewayUnreachable, RequestRefused, WarmlaneError

FIRST_S: Final = 1.0
MOST_S: Final = 30.0
SERVICE_UNAVAILABLE: Final = 503
TOO_MANY_REQUESTS: Final = 429
# The gateway refused the request unread: the key has to wait for its next turn.
RATE_LIMITED: Final = "rate_limited"
# It is not known whether the gateway accepted the request.
UNKNOWN: Final = "transport_unavailable"
TURNS: Final = 20
JITTER_S: Final = 0.1
# How proxies say that there is no gateway behind them.
NOBODY_BEHIND: Final = frozenset({502, 503, 504})


class Patience(Struct, frozen=True, kw_only=True):
    """How long a client tries again before it raises the error.

    *busy_s*: in all, while the system has no room (503, or 429 for a caller's own bounds), as its `Retry-After` says; 0
    raises at once. *turn_s*: the longest wait for the next turn of a rate limit. *lost_attempts*: how often a request
    is sent to a gateway that does not answer. *lost_s*: how long a restart of the gateway may take while a task is
    followed or a video is downloaded.
    """

    busy_s: float = 120.0
    turn_s: float = 60.0
    lost_attempts: int = 4
    lost_s: float = 60.0


class Busy(Struct, frozen=True):
    """Why nothing was accepted: the *status* of the answer, and when another try makes sense, if the answer says so."""

    status: int
    retry_after_s: float | None = None


def pause_s(busy: Busy, *, tries: int, left_s: float) -> float | None:
    """How long to wait before the next try, after *tries* that failed and with *left_s* of patience; None to give up.

    1. Only the cause of a 503 passes by itself.
    2. The client waits for as long as Retry-After says.
    3. Without a Retry-After it waits for 1 s, then twice as long each time, and 30 s at most.
    4. It gives up where the wait would be longer than *left_s*.
    """
    if busy.status != SERVICE_UNAVAILABLE:  # 1
        return None
    wait_s = busy.retry_after_s
    if wait_s is None:
        wait_s = min(MOST_S, FIRST_S * 2 ** min(tries - 1, 10))  # 3
    return wait_s if wait_s <= left_s else None  # 2, 4


def lost_pause_s(losses: int) -> float:
    """How long to wait after *losses* requests in a row without an answer: 0.2 s, then twice as long, 2 s at most."""
    return min(2.0, 0.2 * float(2 ** min(losses - 1, 10)))


class Tries:
    """The tries of one call, begun at *begun_s*."""

    def __init__(self, patience: Patience, *, repeatable: bool, begun_s: float, while_lost: bool = False) -> None:
        """*repeatable* says whether the request may safely arrive twice; *while_lost*, whether to wait for a gateway
        that does not answer, for `lost_s`, as while a task is followed."""
        self._patience, self._repeatable, self._while_lost = patience, repeatable, while_lost
        self._begun_s = self._heard_s = begun_s
        self._turns = self._busy = self._losses = 0

    def heard(self, now_s: float) -> None:
        """The gateway has answered: what failed before no longer counts."""
        self._heard_s = now_s
        self._turns = self._busy = self._losses = 0

    def pause_after(self, error: WarmlaneError, now_s: float) -> Pause | None:
        """What to do after *error* at *now_s*: a pause, or None to raise it.

        1. The rate limit refused the request unread: it is sent in its turn, up to 20 times, if that is no further off
           than `turn_s`.
        2. No gateway answered, or the gateway does not know whether it accepted the request: a request that may arrive
           twice is sent again, `lost_attempts` times, or with *while_lost* until `lost_s` are over. With *while_lost* a
           502, 503 or 504 is no answer either: the gateway is stopping or starting, or a proxy has none behind it.
        3. There is no room: the request is sent again as Retry-After says, until `busy_s` are over.
        """
        if isinstance(error, RequestRefused) and error.code == RATE_LIMITED:  # 1
            self._turns += 1
            wait_s = 1.0 if error.retry_after_s is None else error.retry_after_s
            return Pause(wait_s) if wait_s <= self._patience.turn_s and self._turns < TURNS else None
        if _is_nobody(error, while_lost=self._while_lost):  # 2
            if not self._repeatable or (isinstance(error, GatewayUnreachable) and error.is_certificate):
                return None
            self._losses += 1
            if self._while_lost:
                goes_on = now_s - self._heard_s < self._patience.lost_s
            else:
                goes_on = self._losses < self._patience.lost_attempts
            return Pause(lost_pause_s(self._losses), JITTER_S) if goes_on else None
        busy = _busy(error)  # 3
        if busy is None:
            return None
        self._busy += 1
        left_s = self._patience.busy_s - (now_s - self._begun_s)
        wait_s_or_none = pause_s(busy, tries=self._busy, left_s=left_s) if left_s > 0 else None
        return None if wait_s_or_none is None else Pause(wait_s_or_none, JITTER_S)


def _is_nobody(error: WarmlaneError, *, while_lost: bool) -> bool:
    if isinstance(error, ForeignAnswer | RequestRefused) and error.status in NOBODY_BEHIND and while_lost:
        return True
    return isinstance(error, GatewayUnreachable) or (isinstance(error, RequestRefused) and error.code == UNKNOWN)


def _busy(error: WarmlaneError) -> Busy | None:
    """*error* as a lack of room, if it is one. A caller's own bounds (429) pass by themselves, as a full queue does."""
    if isinstance(error, GatewayBusy):
        return Busy(SERVICE_UNAVAILABLE, error.retry_after_s)
    if isinstance(error, ForeignAnswer) and error.status in (SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS):
        return Busy(SERVICE_UNAVAILABLE, error.retry_after_s)
    return None
