"""The headers of Standard Webhooks, signed by the package `standardwebhooks`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from standardwebhooks.webhooks import Webhook

USER_AGENT: Final = "Warmlane-Webhooks/1"


def signed_headers(message_id: str, payload: str, secrets: Sequence[str], now: datetime) -> dict[str, str]:
    """The headers that go with *payload*, signed with each of *secrets*. *now* is in UTC: the package drops the time
    zone.

    The id is the same at every attempt; the time is that of this attempt.
    """
    signatures = [Webhook(secret).sign(message_id, now, payload) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
