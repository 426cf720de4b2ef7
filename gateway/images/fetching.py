"""Fetches the image that a request names by its address. The guards are those of `gateway.outbound`.

A file that is too large, or no image, is refused while it streams. A fetch ends within FETCH_S, whatever the host does.
"""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Final

import httpx
import structlog

from contracts.fields import ImageField
from contracts.generation.images import UNKNOWN_TYPES, ImageFile
from contracts.images import MAGIC_BYTES, looks_like
from contracts.urls import NamedUrl, parse_url
from gateway.outbound.connecting import UNREACHABLE, AddressRefused, Outbound, Resolve, words_of
from gateway.rules.image_hosts import OPTION, ImageHosts

# From the look-up of the name to the last byte.
FETCH_S: Final = 10.0
# Each may hold an image in memory.
FETCHES_MAX: Final = 16
FETCHES_PER_CALLER: Final = 4
USER_AGENT: Final = "Warmlane-Images/1"
ERROR_MAX_CHARS: Final = 200

log = structlog.get_logger("images")


class NotFetched(Exception):
    """The image cannot be fetched from its address. *code* is for programs; the text says why, and what to do."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code: Final = code


class TooManyFetches(Exception):
    """The caller, or the gateway as a whole, already has as many fetches running as allowed."""


class ImageFetcher:
    """Fetches images from the *hosts* that an operator allowed. Close it with `close`."""

    def __init__(
        self,
        hosts: ImageHosts,
        *,
        resolve: Resolve | None = None,
        trusted: ssl.SSLContext | None = None,
        fetch_s: float = FETCH_S,
    ) -> None:
        """*resolve* is the system's resolver unless another is given; *trusted* holds the certificate authorities to
        trust."""
        self._hosts = hosts
        self._outbound = Outbound(hosts.networks, option=OPTION, timeout_s=fetch_s, resolve=resolve, trusted=trusted)
        self._fetch_s = fetch_s
        self._fetching: Counter[str] = Counter()

    async def close(self) -> None:
        """Ends every connection."""
        await self._outbound.close()

    async def fetch(self, address: str, *, caller: str, limits: ImageField) -> ImageFile:
        """The file at *address*, a URL as `parse_url` takes it. The file is no larger than *limits* allow, and its
        first bytes are those of an image.

        Raises NotFetched, and TooManyFetches if *caller*, or all callers together, have no free place.
        """
        url = parse_url(address)
        why = self._hosts.objection(url)
        if why is not None:
            raise NotFetched("url_not_allowed", why)
        try:
            with self._place(caller):
                file = await self._in_time(url, limits)
        except NotFetched as error:
            # the host alone: paths and queries of addresses may hold keys
            log.info("image_not_fetched", host=url.host, caller=caller, code=error.code, error=str(error))
            raise
        log.info("image_fetched", host=url.host, caller=caller, bytes=len(file.content))
        return file

    @contextlib.contextmanager
    def _place(self, caller: str) -> Iterator[None]:
        if self._fetching[caller] >= FETCHES_PER_CALLER or self._fetching.total() >= FETCHES_MAX:
            raise TooManyFetches
        self._fetching[caller] += 1
        try:
            yield
        finally:
            self._fetching[caller] -= 1
            if not self._fetching[caller]:  # callers come and go
                del self._fetching[caller]

    async def _in_time(self, url: NamedUrl, limits: ImageField) -> ImageFile:
        headers = {
            "user-agent": USER_AGENT,
            "accept": ", ".join(limits.media_types),
            "accept-encoding": "identity",
        }
        try:
            async with asyncio.timeout(self._fetch_s):
                addresses = await self._outbound.judged(url)
                async with self._outbound.answer("GET", url, addresses, headers) as answer:
                    return await read_image(answer, limits)
        except AddressRefused as error:
            raise NotFetched("address_refused", str(error)) from error
        except TimeoutError as error:
            raise NotFetched("not_fetched", f"the image did not come within {self._fetch_s:g} s") from error
        except UNREACHABLE as error:
            raise NotFetched("not_fetched", words_of(error)[:ERROR_MAX_CHARS]) from error


async def read_image(answer: httpx.Response, limits: ImageField) -> ImageFile:
    """The image in *answer*. No more of the answer is read than *limits* allow. Raises NotFetched.

    1. Anything but a 200 is no image; a redirect is not followed.
    2. It must come without an encoding, since a compressed image may be far larger than what arrives.
    3. Its declared type and length are believed only where they refuse it.
    4. Its first bytes tell whether it is an image, and each chunk whether it is too large.
    """
    if answer.is_redirect:  # 1
        hint = "redirects are not followed; send the address that it leads to"
        raise NotFetched("not_fetched", f"the host answered {answer.status_code}: {hint}")
    if answer.status_code != httpx.codes.OK:
        raise NotFetched("not_fetched", f"the host answered {answer.status_code}")
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":  # 2
        raise NotFetched("not_fetched", f"the host sent it with Content-Encoding: {encoding[:32]}")
    declared = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    types = ", ".join(limits.media_types)
    if declared not in UNKNOWN_TYPES and declared not in limits.media_types:  # 3
        raise NotFetched("bad_image", f"the host declares it as {declared[:64]}, which is none of {types}")
    too_large = NotFetched("bad_image", f"more than {limits.max_bytes} bytes")
    length = answer.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.max_bytes:
        raise too_large
    content = bytearray()
    async for chunk in answer.aiter_raw():  # 4
        was_known = len(content) >= MAGIC_BYTES
        content += chunk
        if len(content) > limits.max_bytes:
            raise too_large
        if not was_known and len(content) >= MAGIC_BYTES and looks_like(bytes(content[:MAGIC_BYTES])) is None:
            raise NotFetched("bad_image", "neither PNG, JPEG nor WebP, judging by its first bytes")
    return ImageFile(bytes(content), declared)
