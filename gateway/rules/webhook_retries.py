"""What an attempt to deliver a webhook leads to. Pure: no clock, no chance, no I/O.

The waits are those of Standard Webhooks: at once, then after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h.
"""

import email.utils
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

WAITS_S: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
ATTEMPTS_MAX: Final = len(WAITS_S) + 1
# A wait is this share longer or shorter, by chance: what failed together does not come back together.
JITTER: Final = 0.1
RETRY_AFTER_MAX_S: Final = 86_400.0
GONE: Final = 410


class WebhookAnswer(Struct, frozen=True):
    """What came of an attempt: the *status* of the answer, or None and the *error* that prevented one.

    *retry_after_s* is what the receiver asked for.
    """

    status: int | None
    error: str = ""
    retry_after_s: float | None = None
    took_s: float = 0.0

    @property
    def is_success(self) -> bool:
        """Whether the receiver has taken it: any 2xx. A redirect does not count."""
        return self.status is not None and 200 <= self.status < 300


class Delivered(Struct, frozen=True):
    """The receiver has it."""


class Again(Struct, frozen=True):
    """It is sent again *at* that moment."""

    at: datetime


class Dead(Struct, frozen=True):
    """It is not sent again, unless its caller asks for it. *disables*: nothing else goes to this endpoint either."""

    disables: bool = False


def verdict(answer: WebhookAnswer, *, attempts: int, now: datetime, chance: float) -> Delivered | Again | Dead:
    """What follows from *answer* to the last of *attempts*. *chance* is a number from 0 to 1.

    1. A 2xx: delivered.
    2. 410 Gone: dead, and the endpoint is disabled.
    3. No attempt is left: dead.
    4. Otherwise again, after the wait of the schedule, and no sooner than the receiver asked for, by a day at most.
    """
    if answer.is_success:  # 1
        return Delivered()
    if answer.status == GONE:  # 2
        return Dead(disables=True)
    if attempts >= ATTEMPTS_MAX:  # 3
        return Dead()
    wait_s = WAITS_S[max(1, attempts) - 1] * (1 - JITTER + 2 * JITTER * chance)
    asked_s = min(RETRY_AFTER_MAX_S, answer.retry_after_s or 0.0)
    return Again(now + timedelta(seconds=max(wait_s, asked_s)))  # 4


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` asks for, as a number or a date; None where it says neither."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(RETRY_AFTER_MAX_S, float(text[:9]))
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError for numbers beyond any date
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(RETRY_AFTER_MAX_S, max(0.0, (at - now).total_seconds()))


OUTCOMES: Final = ("delivered", "refused", "failed", "unreachable")


def outcome_of(answer: WebhookAnswer) -> str:
    """What became of an attempt, in one of OUTCOMES: 2xx, 3xx and 4xx, 5xx, or no answer at all. Pure."""
    if answer.status is None:
        return "unreachable"
    if answer.is_success:
        return "delivered"
    return "failed" if answer.status >= 500 else "refused"
