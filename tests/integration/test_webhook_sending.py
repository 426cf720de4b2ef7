"""One attempt against hostile receivers: real HTTP servers, real TLS, and a real DNS server whose answers change."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network

import pytest
import trustme

from contracts.urls import parse_url
from gateway.outbound.connecting import Resolve
from gateway.rules.addresses import Network, allowing
from gateway.webhooks.sending import WebhookSender
from tests.kit.names import NameServer
from tests.kit.receivers import answering, endless, endless_head, receiving, silent
from tests.kit.support import BOUND_S, free_port

HEADERS = {"webhook-id": "x", "content-type": "application/json"}
LOOPBACK = allowing([ip_network("127.0.0.0/8")])
# No host is there, and no request may go there: a network for documentation.
FORBIDDEN = "203.0.113.7"


@contextlib.asynccontextmanager
async def sending(
    allowed: Sequence[Network] = LOOPBACK,
    *,
    resolve: Resolve | None = None,
    trusted: ssl.SSLContext | None = None,
    attempt_s: float = 20,
) -> AsyncIterator[WebhookSender]:
    sender = WebhookSender(allowed, resolve=resolve, trusted=trusted, attempt_s=attempt_s)
    try:
        yield sender
    finally:
        await sender.close()


async def test_the_address_that_was_judged_is_the_one_that_is_called_whatever_the_name_says_next() -> None:
    """DNS rebinding: the name leads to an allowed address when the gateway judges it, and elsewhere a moment later."""
    names = NameServer(["127.0.0.1"], [FORBIDDEN])
    async with receiving() as receiver, names.serving() as resolve, sending(resolve=resolve) as sender:
        url = f"http://receiver.test:{receiver.port}/hook"
        first = await sender.send(url, HEADERS, "{}")
        assert first.status == 204
        assert receiver.received[0].headers["host"] == f"receiver.test:{receiver.port}"
        # the name has changed: the gateway judges it again, and sends nothing
        second = await sender.send(url, HEADERS, "{}")
        assert second.status is None
        assert FORBIDDEN in second.error
        assert len(receiver.received) == 1


async def test_a_name_is_asked_for_once_for_each_attempt() -> None:
    names = NameServer(["127.0.0.1"])
    async with receiving() as receiver, names.serving() as resolve, sending(resolve=resolve) as sender:
        assert (await sender.send(f"http://receiver.test:{receiver.port}/", HEADERS, "{}")).status == 204
        assert names.questions == 1


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], [FORBIDDEN], []])
async def test_one_address_of_several_that_is_refused_refuses_all(answers: list[str]) -> None:
    names = NameServer(answers)
    async with receiving() as receiver, names.serving() as resolve, sending(resolve=resolve) as sender:
        url = f"http://receiver.test:{receiver.port}/"
        answer = await sender.send(url, HEADERS, "{}")
        assert answer.status is None
        assert answer.error
        assert await sender.objection_to(parse_url(url)) is not None
        assert receiver.connections == 0


async def test_without_a_word_of_the_operator_nothing_goes_to_this_machine() -> None:
    async with receiving() as receiver, sending(()) as sender:
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"):
            answer = await sender.send(f"https://{host}:{receiver.port}/", HEADERS, "{}")
            assert (answer.status, bool(answer.error)) == (None, True), host
        assert receiver.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with receiving() as inside, sending() as sender:
        async with receiving(answering(status, location=inside.url)) as receiver:
            assert (await sender.send(receiver.url, HEADERS, "{}")).status == status
        assert inside.connections == 0


@pytest.mark.parametrize("location", ["http://[", "http://xn--/", "http://a:99999999/", "mailto:x@y", "a" * 70_000])
async def test_where_a_redirect_leads_is_not_even_read(location: str) -> None:
    async with receiving(answering(302, location=location)) as receiver, sending() as sender:
        answer = await sender.send(receiver.url, HEADERS, "{}")
        assert (answer.status, answer.error) == (302, "")


async def test_what_a_receiver_leaves_is_brought_to_no_other_at_its_address() -> None:
    """Receivers of several callers may share an address, behind a provider's front. The gateway sends a receiver's
    cookie neither to another receiver nor back to itself."""
    async with receiving(answering(204, set_cookie="session=of-one; Path=/")) as receiver, sending() as sender:
        for host in ("127.0.0.1", "localhost", "127.0.0.1"):
            assert (await sender.send(f"http://{host}:{receiver.port}/", HEADERS, "{}")).status == 204
        assert all("cookie" not in each.headers for each in receiver.received)


@pytest.mark.parametrize(
    "asked", ["Mon, 01 Jan 2026 99999999999999999999:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 +" + "9" * 17]
)
async def test_a_date_that_cannot_be_is_no_date(asked: str) -> None:
    async with receiving(answering(503, retry_after=asked)) as receiver, sending() as sender:
        answer = await sender.send(receiver.url, HEADERS, "{}")
        assert (answer.status, answer.retry_after_s) == (503, None)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with sending() as sender:
            assert (await sender.send(receiver.url, HEADERS, "{}")).status == 204
        assert (proxy.connections, receiver.connections) == (0, 1)


async def test_an_answer_without_end_is_not_read() -> None:
    async with receiving(endless) as receiver, sending() as sender:
        assert (await sender.send(receiver.url, HEADERS, "{}")).status == 200


async def test_a_body_that_comes_byte_by_byte_is_not_waited_for() -> None:
    """Whatever length it declares, the sender ends the connection."""
    ended = asyncio.Event()

    async def answer(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        await dripped(writer, b"x")
        ended.set()

    async with receiving(answer) as receiver, sending(attempt_s=BOUND_S) as sender:
        assert (await sender.send(receiver.url, HEADERS, "{}")).status == 200
        await asyncio.wait_for(ended.wait(), BOUND_S)


async def test_a_head_without_end_is_given_up() -> None:
    async with receiving(endless_head) as receiver, sending() as sender:
        answer = await sender.send(receiver.url, HEADERS, "{}")
        assert answer.status is None
        assert answer.error


async def test_whoever_never_answers_has_failed() -> None:
    async with receiving(silent) as receiver, sending(attempt_s=0.2) as sender:
        answer = await sender.send(receiver.url, HEADERS, "{}")
        assert (answer.status, bool(answer.error)) == (None, True)


async def dripped(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Writes *piece* again and again, slowly, until the other side stops reading."""
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("first", "piece"),
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"HTTP/1.1 200 O", b"K"), (b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x")],
    ids=["heads", "status", "header"],
)
async def test_whoever_drips_has_failed_when_the_time_is_over(first: bytes, piece: bytes) -> None:
    """Each piece comes soon after the last one, but the attempt as a whole has a time limit."""

    async def answer(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await dripped(writer, piece)

    async with receiving(answer) as receiver, sending(attempt_s=0.3) as sender:
        outcome = await sender.send(receiver.url, HEADERS, "{}")
        assert (outcome.status, outcome.error) == (None, "no answer within 0.3 s")


async def test_nobody_there_is_an_answer_too() -> None:
    async with sending() as sender:
        answer = await sender.send(f"http://127.0.0.1:{free_port()}/", HEADERS, "{}")
        assert answer.status is None
        assert "ConnectError" in answer.error


async def test_the_certificate_is_that_of_the_name_and_not_of_the_address() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("receiver.test").configure_cert(server)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    async with receiving(tls=server) as receiver, NameServer(["127.0.0.1"]).serving() as resolve:
        async with sending(resolve=resolve, trusted=trusted) as sender:
            good = await sender.send(f"https://receiver.test:{receiver.port}/", HEADERS, "{}")
            assert good.status == 204
            other = await sender.send(f"https://other.test:{receiver.port}/", HEADERS, "{}")
            assert other.status is None
            assert "certificate" in other.error.lower()
        async with sending(resolve=resolve) as sender:  # an unknown authority
            assert (await sender.send(f"https://receiver.test:{receiver.port}/", HEADERS, "{}")).status is None
    assert [each.headers["host"] for each in receiver.received] == [f"receiver.test:{receiver.port}"]


async def test_slow_receivers_do_not_hold_each_other_up() -> None:
    async with receiving(silent) as deaf, receiving() as receiver, sending(attempt_s=30) as sender:
        waiting = [asyncio.create_task(sender.send(deaf.url, HEADERS, "{}")) for _ in range(50)]
        assert (await sender.send(receiver.url, HEADERS, "{}")).status == 204
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
