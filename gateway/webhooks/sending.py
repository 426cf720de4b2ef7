"""One attempt to deliver a webhook: resolve the name once, judge every address, connect to the one that was judged.

The receiver is hostile until it answers: it may be slow, silent, endless, a redirect, or a name whose address changes
between two looks. So no redirect is followed, no proxy of the environment is used, nothing of an answer but its head is
read, and whoever does not answer in ATTEMPT_S has failed.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from ipaddress import ip_address
from typing import Final

import httpx

from contracts.webhooks import BadWebhookUrl, WebhookUrl, parse_url
from gateway.rules.webhook_addresses import PLAIN, Address, Network, objection_to
from gateway.rules.webhook_retries import WebhookAnswer, retry_after_s

# As Standard Webhooks advises: 15 to 30 s.
ATTEMPT_S: Final = 20.0
CONNECT_S: Final = 10.0
ERROR_MAX_CHARS: Final = 200
# Names are resolved by the system, in threads, each for some seconds where no name server answers.
RESOLVERS: Final = 64

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a host. Raises OSError where it has none."""


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
        """*resolve* is the system's resolver unless another is given; *trusted* is whose certificates count."""
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook-names")
        self._resolve = resolve or self._by_the_system
        self._attempt_s = attempt_s
        self._trusted = trusted
        self._is_used = False

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        # made when it is needed: to read the authorities is a part of a gateway's start
        self._is_used = True
        # a connection for each attempt: one that is kept would be taken for another name at the same address
        return httpx.AsyncClient(
            verify=self._trusted or httpx.create_ssl_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self._attempt_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Ends every connection."""
        if self._is_used:
            await self._client.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def objection_to(self, url: WebhookUrl) -> str | None:
        """Why nothing may be sent to *url* now; None where it may be, by every address that its host has."""
        try:
            addresses = await self._addresses(url)
        except OSError as error:
            return f"the name cannot be resolved: {_words(error)}"
        return objection_to(addresses, self._allowed, is_plain=url.scheme == "http")

    def objection_at_once(self, url: WebhookUrl) -> str | None:
        """As `objection_to`, as far as it can be known without asking anybody: of an address that is no name, and of
        plain http where the operator allowed nothing."""
        literal = url.literal
        if literal is not None:
            return objection_to([literal], self._allowed, is_plain=url.scheme == "http")
        return PLAIN if url.scheme == "http" and not self._allowed else None

    async def send(self, url: str, headers: Mapping[str, str], payload: str) -> WebhookAnswer:
        """What came of sending *payload* there once. Never raises for what a receiver does."""
        begun_s = time.monotonic()
        status, error, asked_s = None, "", None
        try:
            parsed = parse_url(url)
            # its slot is taken until the system gives up on the name, so that no more threads wait than are counted
            addresses = await self._addresses(parsed)
            refusal = objection_to(addresses, self._allowed, is_plain=parsed.scheme == "http")
            if refusal is None:
                status, asked_s = await self._post(parsed, addresses, headers, payload.encode())
            else:
                error = refusal
        except BadWebhookUrl as bad:
            error = str(bad)
        except TimeoutError:
            error = f"no answer within {self._attempt_s:g} s"
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as failed:
            error = _words(failed)
        return WebhookAnswer(status, error[:ERROR_MAX_CHARS], asked_s, time.monotonic() - begun_s)

    async def _post(
        self, url: WebhookUrl, addresses: Sequence[Address], headers: Mapping[str, str], content: bytes
    ) -> tuple[int, float | None]:
        async with asyncio.timeout(self._attempt_s):
            *others, last = addresses
            for address in others:
                try:
                    return await self._post_to(address, url, headers, content)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    continue  # as any client does where a host has several
            return await self._post_to(last, url, headers, content)

    async def _post_to(
        self, address: Address, url: WebhookUrl, headers: Mapping[str, str], content: bytes
    ) -> tuple[int, float | None]:
        there = httpx.URL(scheme=url.scheme, host=str(address), port=url.port, raw_path=url.target.encode())
        # the name for the certificate and for `Host`, the address for the connection
        extensions = {} if url.literal is not None else {"sni_hostname": url.host.removesuffix(".")}
        request = self._client.build_request(
            "POST", there, headers={"host": url.authority, **headers}, content=content, extensions=extensions
        )
        answer = await self._client.send(request, stream=True)
        try:
            return answer.status_code, retry_after_s(answer.headers.get("retry-after"), datetime.now(UTC))
        finally:
            await answer.aclose()  # whatever else it has to say

    async def _addresses(self, url: WebhookUrl) -> Sequence[Address]:
        literal = url.literal
        return [literal] if literal is not None else await self._resolve(url.host, url.port)

    async def _by_the_system(self, host: str, port: int) -> Sequence[Address]:
        def look() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(entry[4][0]) for entry in found))

        return [ip_address(text) for text in await asyncio.get_running_loop().run_in_executor(self._threads, look)]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
