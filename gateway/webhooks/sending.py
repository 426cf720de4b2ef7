"""One attempt to deliver a webhook. The guards are those of `gateway.outbound`.

Only the head of an answer is read. An attempt without an answer in ATTEMPT_S has failed.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from contracts.urls import BadUrl, NamedUrl, parse_url
from gateway.outbound.connecting import UNREACHABLE, AddressRefused, Outbound, Resolve, words_of
from gateway.rules.addresses import Network
from gateway.rules.webhook_retries import WebhookAnswer, retry_after_s

OPTION: Final = "--webhooks-allow"
# As Standard Webhooks advises: 15 to 30 s.
ATTEMPT_S: Final = 20.0
ERROR_MAX_CHARS: Final = 200


class WebhookSender:
    """Sends to addresses on the public internet, and to those that an operator *allowed*. Close it with `close`."""

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        resolve: Resolve | None = None,
        trusted: ssl.SSLContext | None = None,
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        """*resolve* is the system's resolver unless another is given; *trusted* holds the certificate authorities to
        trust."""
        self._outbound = Outbound(allowed, option=OPTION, timeout_s=attempt_s, resolve=resolve, trusted=trusted)
        self._attempt_s = attempt_s

    async def close(self) -> None:
        """Ends every connection."""
        await self._outbound.close()

    async def objection_to(self, url: NamedUrl) -> str | None:
        """Why nothing may be sent to *url* now; None if every address that its host has allows it."""
        try:
            await self._outbound.judged(url)
        except AddressRefused as error:
            return str(error)
        except OSError as error:
            return f"the name cannot be resolved: {words_of(error)}"
        return None

    def objection_at_once(self, url: NamedUrl) -> str | None:
        """As `objection_to`, as far as that is known without a look-up: for an IP address, and for plain http if the
        operator allowed nothing."""
        return self._outbound.objection_at_once(url)

    async def send(self, url: str, headers: Mapping[str, str], payload: str) -> WebhookAnswer:
        """Sends *payload* to *url* once. Returns what came of it; never raises for what a receiver does."""
        begun_s = time.monotonic()
        status, error, asked_s = None, "", None
        try:
            parsed = parse_url(url)
            # without the time-out: the attempt keeps its place until the system gives up on the name, so that no more
            # threads wait than are counted
            addresses = await self._outbound.judged(parsed)
            async with (
                asyncio.timeout(self._attempt_s),
                self._outbound.answer("POST", parsed, addresses, headers, payload.encode()) as answer,
            ):
                status = answer.status_code
                asked_s = retry_after_s(answer.headers.get("retry-after"), datetime.now(UTC))
        except (BadUrl, AddressRefused) as refused:
            error = str(refused)
        except TimeoutError:
            error = f"no answer within {self._attempt_s:g} s"
        except UNREACHABLE as failed:
            error = words_of(failed)
        return WebhookAnswer(status, error[:ERROR_MAX_CHARS], asked_s, time.monotonic() - begun_s)
