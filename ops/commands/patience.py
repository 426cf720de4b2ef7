"""How long a client tries again where the system has no room for it, or is away for a moment. Pure."""

from typing import Final

from msgspec import Struct

FIRST_S: Final = 1.0
MOST_S: Final = 30.0
SERVICE_UNAVAILABLE: Final = 503


class Busy(Struct, frozen=True):
    """Why nothing was accepted: the *status* of the answer, and when another try makes sense, where the answer says
    so."""

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
