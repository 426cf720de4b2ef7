"""The gateway fetches an image from hosts that may misbehave: real HTTP servers, real TLS, a real DNS server."""

import asyncio
import ssl
from ipaddress import ip_network
from typing import Any

import pytest
import trustme

from contracts.generation.images import ImageFile
from gateway.images.fetching import FETCHES_PER_CALLER, ImageFetcher, NotFetched, TooManyFetches
from gateway.rules.image_hosts import ImageHosts
from tests.integration.test_images import LIMITS, PNG, serving
from tests.kit.names import NameServer
from tests.kit.receivers import Answer, Received, answering, endless_head, receiving, silent
from tests.kit.support import eventually, free_port

# No host is there, and no request may go there: a network for documentation.
FORBIDDEN = "203.0.113.7"


async def drip(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + PNG[:8])
    await writer.drain()
    await writer.wait_closed()


def endless_image(sent: list[int]) -> Answer:
    """A host whose image never ends; *sent* gets how much of it was sent."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = PNG + b"x" * (0x10000 - len(PNG))
        try:
            while not writer.is_closing():
                writer.write(b"10000\r\n" + chunk + b"\r\n")
                await writer.drain()
                sent.append(len(chunk))
        except ConnectionError:
            pass

    return answer


def fetcher(*hosts: str, fetch_s: float = 10, **options: Any) -> ImageFetcher:
    return ImageFetcher(ImageHosts.of([*hosts, ip_network("127.0.0.0/8")]), fetch_s=fetch_s, **options)


async def fetch(address: str, *, using: ImageFetcher | None = None) -> ImageFile:
    used = using or fetcher()
    try:
        return await used.fetch(address, caller="c", limits=LIMITS)
    finally:
        if using is None:
            await used.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(answering(302, location="https://example.com/"), "answered 302: redirects", id="redirect"),
        pytest.param(answering(404), "answered 404", id="absent"),
        pytest.param(answering(206), "answered 206", id="a-part"),
        pytest.param(serving(b"GIF89a-more-of-it", "Content-Type: image/png"), "neither PNG", id="another-kind"),
        pytest.param(serving(PNG, "Content-Type: text/html"), "declares it as text/html", id="declared"),
        pytest.param(serving(PNG, "Content-Encoding: gzip"), "Content-Encoding: gzip", id="compressed"),
        pytest.param(serving(b"", "Content-Length: 99999999", length=False), "more than", id="declared-length"),
        pytest.param(serving(PNG[:50], "Content-Length: 1000", length=False), "peer closed", id="cut-off"),
        pytest.param(endless_head, "Protocol", id="endless-head"),
    ],
)
async def test_what_a_host_may_answer(answer: Answer, expected: str) -> None:
    async with receiving(answer) as host:
        with pytest.raises(NotFetched, match=expected):
            await fetch(host.url)


async def test_a_host_that_leaves_a_cookie_does_not_get_it_back() -> None:
    async with receiving(serving(PNG, "Set-Cookie: session=of-one; Path=/")) as host:
        used = fetcher()
        for _ in range(2):
            assert (await fetch(host.url, using=used)).content == PNG
        await used.close()
        assert all("cookie" not in each.headers for each in host.received)


@pytest.mark.parametrize("answer", [silent, drip])
async def test_a_host_that_takes_its_time_is_given_up(answer: Answer) -> None:
    async with receiving(answer) as host:
        hasty = fetcher(fetch_s=0.3)
        with pytest.raises(NotFetched, match=r"did not come within 0\.3 s"):
            await fetch(host.url, using=hasty)
        await hasty.close()


async def test_an_image_without_end_is_read_up_to_the_limit() -> None:
    sent: list[int] = []
    async with receiving(endless_image(sent)) as host:
        with pytest.raises(NotFetched, match="more than"):
            await fetch(host.url)
    # plus what fits into the buffers between the two
    assert sum(sent) < LIMITS.max_bytes + 32 * 2**20


async def test_what_is_no_image_is_given_up_at_its_first_bytes() -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html>")
        await writer.drain()
        await writer.wait_closed()  # it sends nothing more, and does not end

    async with receiving(answer) as host:
        with pytest.raises(NotFetched, match="first bytes"):
            await fetch(host.url)


async def test_a_name_that_changes_its_mind_is_asked_once_and_judged_each_time() -> None:
    """DNS rebinding: an allowed name leads to an allowed address, and then elsewhere."""
    names = NameServer(["127.0.0.1"], [FORBIDDEN])
    async with receiving(serving(PNG)) as host, names.serving() as resolve:
        used = fetcher("images.test", resolve=resolve)
        url = f"http://images.test:{host.port}/x.png"
        assert (await fetch(url, using=used)).content == PNG
        assert (names.questions, host.received[0].headers["host"]) == (1, f"images.test:{host.port}")
        with pytest.raises(NotFetched, match=FORBIDDEN):
            await fetch(url, using=used)
        assert host.connections == 1
        await used.close()


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], [FORBIDDEN], ["169.254.169.254"], []])
async def test_an_allowed_name_leads_nowhere_inside(answers: list[str]) -> None:
    async with receiving(serving(PNG)) as host, NameServer(answers).serving() as resolve:
        used = fetcher("images.test", resolve=resolve)
        with pytest.raises(NotFetched):
            await fetch(f"https://images.test:{host.port}/", using=used)
        assert host.connections == 0
        await used.close()


async def test_an_allowed_name_on_the_inside_needs_its_network_too() -> None:
    async with receiving(serving(PNG)) as host:
        used = ImageFetcher(ImageHosts.of(["localhost"]))
        with pytest.raises(NotFetched, match="not on the public internet"):
            await fetch(f"https://localhost:{host.port}/", using=used)
        assert host.connections == 0
        await used.close()


def tls_of(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, trusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(server)
    authority.configure_trust(trusted)
    return server, trusted


async def test_the_certificate_is_that_of_the_name() -> None:
    server, trusted = tls_of("images.test")
    async with receiving(serving(PNG), tls=server) as host, NameServer(["127.0.0.1"]).serving() as resolve:
        used = fetcher("*.test", resolve=resolve, trusted=trusted)
        assert (await fetch(f"https://images.test:{host.port}/", using=used)).content == PNG
        with pytest.raises(NotFetched, match=r"(?i)certificate"):
            await fetch(f"https://other.test:{host.port}/", using=used)
        await used.close()


async def test_nobody_there_is_an_answer_too() -> None:
    with pytest.raises(NotFetched, match="ConnectError"):
        await fetch(f"http://127.0.0.1:{free_port()}/")


async def test_a_caller_whose_hosts_are_slow_takes_no_more_than_its_own_places() -> None:
    used = fetcher(fetch_s=30)
    async with receiving(silent) as deaf, receiving(serving(PNG)) as host:
        waiting = [asyncio.create_task(fetch(deaf.url, using=used)) for _ in range(FETCHES_PER_CALLER)]
        await eventually(lambda: _all_ask(deaf.received))
        with pytest.raises(TooManyFetches):
            await fetch(host.url, using=used)
        assert (await used.fetch(host.url, caller="another", limits=LIMITS)).content == PNG
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert (await fetch(host.url, using=used)).content == PNG  # the places for fetches are free again
    await used.close()


async def _all_ask(received: list[Received]) -> bool:
    return len(received) == FETCHES_PER_CALLER
