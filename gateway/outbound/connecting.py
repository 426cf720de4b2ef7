"""Connects to an address that a caller named: resolves it once, judges every IP address, and connects to one that was
judged.

The other side is taken to be hostile: slow, silent, endless, a redirect, or a name whose address changes between two
looks. So no redirect is followed or even read, no cookie is kept, and no proxy of the environment is used. The code
that asks decides how long an answer may take, and how much of it is read. Webhooks and fetches of images both go
through here, and through nothing else.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from ipaddress import ip_address
from typing import Any, Final

import httpx

from contracts.urls import NamedUrl
from gateway.rules.addresses import PLAIN, Address, Network, objection_to

CONNECT_S: Final = 10.0
# The system resolves names, in threads. A look-up takes some seconds if no name server answers.
RESOLVERS: Final = 64

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a host. Raises OSError where it has none."""
# What a connection may raise, and an answer that is not HTTP.
UNREACHABLE: Final = (OSError, httpx.HTTPError, httpx.InvalidURL)


class AddressRefused(Exception):
    """The gateway does not connect there. The text says why, and what an operator can do."""


class Outbound:
    """Connects to addresses on the public internet, and to networks that an operator *allowed*. Close it with `close`.

    The guards against server-side request forgery are here, once for everything.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        option: str,
        timeout_s: float,
        resolve: Resolve | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        """*option* is the option by which an operator allows a network, for errors; *timeout_s* bounds each wait for
        the other side. *resolve* is the system's resolver unless another is given; *trusted* holds the certificate
        authorities to trust."""
        self._allowed, self._option = allowed, option
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="outbound-names")
        self._resolve = resolve or self._by_the_system
        self._timeout_s = timeout_s
        self._trusted = trusted
        self._is_used = False

    @cached_property
    def _transport(self) -> httpx.AsyncHTTPTransport:
        """A bare transport. A client around it would keep cookies by the address, for all names at it, and would read
        where a redirect leads."""
        # made when it is needed: reading the certificate authorities would slow a gateway's start
        self._is_used = True
        # a connection for each request: a kept one would be used for another name at the same address
        return httpx.AsyncHTTPTransport(
            verify=self._trusted or httpx.create_ssl_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Ends every connection."""
        if self._is_used:
            await self._transport.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def judged(self, url: NamedUrl) -> Sequence[Address]:
        """The addresses of *url*'s host, all of which may be connected to. Raises AddressRefused; OSError where the
        name has none."""
        literal = url.literal
        addresses = [literal] if literal is not None else await self._resolve(url.host, url.port)
        self._require(url, addresses)
        return addresses

    def objection_at_once(self, url: NamedUrl) -> str | None:
        """Why `judged` will refuse *url*, as far as that is known without a look-up: for an IP address, and for plain
        http if the operator allowed nothing."""
        literal = url.literal
        if literal is not None:
            return objection_to([literal], self._allowed, is_plain=url.scheme == "http", option=self._option)
        return PLAIN if url.scheme == "http" and not self._allowed else None

    @contextlib.asynccontextmanager
    async def answer(
        self, method: str, url: NamedUrl, addresses: Sequence[Address], headers: Mapping[str, str], content: bytes = b""
    ) -> AsyncIterator[httpx.Response]:
        """The head of the answer from the first of *addresses*, as `judged` gave them, that can be reached. The code in
        the block may read the body.

        Raises AddressRefused, and what is in UNREACHABLE.
        """
        self._require(url, addresses)
        response = await self._first(method, url, addresses, headers, content)
        try:
            yield response
        finally:
            await response.aclose()  # the rest of the body is not read

    async def _first(
        self, method: str, url: NamedUrl, addresses: Sequence[Address], headers: Mapping[str, str], content: bytes
    ) -> httpx.Response:
        *others, last = addresses
        for address in others:
            try:
                return await self._at(address, method, url, headers, content)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # as any client does where a host has several
        return await self._at(last, method, url, headers, content)

    async def _at(
        self, address: Address, method: str, url: NamedUrl, headers: Mapping[str, str], content: bytes
    ) -> httpx.Response:
        there = httpx.URL(scheme=url.scheme, host=str(address), port=url.port, raw_path=url.target.encode())
        # the name for the certificate and for `Host`, the address for the connection
        extensions: dict[str, Any] = {"timeout": httpx.Timeout(self._timeout_s, connect=CONNECT_S).as_dict()}
        if url.literal is None:
            extensions["sni_hostname"] = url.host.removesuffix(".")
        request = httpx.Request(
            method, there, headers={"host": url.authority, **headers}, content=content, extensions=extensions
        )
        return await self._transport.handle_async_request(request)

    def _require(self, url: NamedUrl, addresses: Sequence[Address]) -> None:
        why = objection_to(addresses, self._allowed, is_plain=url.scheme == "http", option=self._option)
        if why is not None:
            raise AddressRefused(why)

    async def _by_the_system(self, host: str, port: int) -> Sequence[Address]:
        def look() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(entry[4][0]) for entry in found))

        return [ip_address(text) for text in await asyncio.get_running_loop().run_in_executor(self._threads, look)]


def words_of(error: Exception) -> str:
    """What went wrong, in words for the caller who named the address."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
