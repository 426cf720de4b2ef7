"""The steps of every answer on its way out: compression, conditions, and HEAD."""

import gzip
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from litestar import Litestar, Response, get
from litestar.params import FromPath
from litestar.response import ServerSentEvent, Stream
from litestar.testing import TestClient

from gateway.http.answers import JsonAnswer
from gateway.http.methods import with_heads_and_options
from gateway.http.outgoing import GZIP_MIN_BYTES, GZIP_THREAD_BYTES, accepts_gzip, gzipped
from gateway.http.outgoing import outgoing as middleware


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("*", True),
        ("deflate, gzip;q=0.1, br", True),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip; q=0.5", True),
        ("*;q=0", False),
        ("gzip, *;q=0", True),
        ("gzip;q=0, *", False),
        ("identity;q=0", False),
        ("identity;q=0, gzip;q=0.1", True),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip", True),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=nonsense", False),
        ("gzip;q=2", False),
        ("gzipped", False),
        (",;=", False),
    ],
)
def test_who_accepts_gzip(header: str | None, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


def test_equal_bytes_are_compressed_to_equal_bytes() -> None:
    """Otherwise one strong tag would name two representations."""
    body = b"a paper boat " * 500
    assert gzipped(body) == gzipped(body)
    assert gzip.decompress(gzipped(body)) == body
    assert gzipped(body)[4:8] == b"\0\0\0\0"  # no time in it


TEXTS = {"short": "x", "long": "x" * GZIP_MIN_BYTES, "longest": "x" * GZIP_THREAD_BYTES}


@get("/text/{size:str}")
async def text(size: FromPath[str]) -> Response[str]:
    return JsonAnswer(TEXTS[size], headers={"ETag": '"7"'})


@get("/bytes", media_type="video/mp4")
async def video() -> Stream:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"y" * GZIP_MIN_BYTES * 2

    return Stream(chunks(), media_type="video/mp4", headers={"ETag": '"8"'})


@get("/events")
async def events() -> ServerSentEvent:
    async def said() -> AsyncIterator[str]:
        yield "x" * GZIP_MIN_BYTES * 2

    return ServerSentEvent(said())


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Litestar]]:
    routes = with_heads_and_options([text, video, events])
    with TestClient(Litestar(routes, middleware=[middleware])) as found:
        found.headers["accept-encoding"] = ""
        yield found


ZIPPED = {"accept-encoding": "gzip"}


@pytest.mark.parametrize("size", ["long", "longest"])
def test_a_long_answer_is_compressed_for_who_accepts_it(client: TestClient[Litestar], size: str) -> None:
    plain = client.get(f"/text/{size}")
    zipped = client.get(f"/text/{size}", headers=ZIPPED)
    assert zipped.json() == plain.json()
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < int(plain.headers["content-length"])
    assert "content-encoding" not in plain.headers
    for answer in (plain, zipped):
        assert answer.headers["vary"] == "Accept-Encoding"
    # other bytes, another strong tag
    assert (plain.headers["etag"], zipped.headers["etag"]) == ('"7"', '"7-gzip"')


def test_what_is_short_or_streamed_is_sent_as_it_is(client: TestClient[Litestar]) -> None:
    for path in ("/text/short", "/bytes", "/events"):
        answer = client.get(path, headers=ZIPPED)
        assert answer.status_code == 200
        assert not {"content-encoding", "vary"} & set(answer.headers), path


def test_a_tag_is_known_in_the_encoding_that_it_names(client: TestClient[Litestar]) -> None:
    def answer(tag: str, **headers: str) -> Any:
        return client.get("/text/long", headers={"if-none-match": tag, **headers})

    for known in (answer('"7"'), answer('W/"6", W/"7"'), answer('"7-gzip"', **ZIPPED), answer("*", **ZIPPED)):
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["vary"] == "Accept-Encoding"
        assert not {"content-type", "content-length", "content-encoding"} & set(known.headers)
    assert answer('"7"').headers["etag"] == '"7"'
    assert answer('"7-gzip"', **ZIPPED).headers["etag"] == '"7-gzip"'
    for other in (answer('"7-gzip"'), answer('"7"', **ZIPPED), answer('"*"')):
        assert other.status_code == 200


def test_several_lines_of_a_header_are_one_list(client: TestClient[Litestar]) -> None:
    lines = [("if-none-match", '"5"'), ("if-none-match", '"7"')]
    assert client.get("/text/long", headers=lines).status_code == 304
    lines = [("accept-encoding", "br"), ("accept-encoding", "gzip")]
    assert client.get("/text/long", headers=lines).headers["content-encoding"] == "gzip"


def test_a_condition_that_does_not_hold_is_a_problem(client: TestClient[Litestar]) -> None:
    assert client.get("/text/long", headers={"if-match": '"7"'}).status_code == 200
    failed = client.get("/text/long", headers={"if-match": '"6"'})
    assert (failed.status_code, failed.json()["code"]) == (412, "precondition_failed")
    assert failed.headers["etag"] == '"7"'


@pytest.mark.parametrize("headers", [{}, ZIPPED, {"if-none-match": '"7"'}, {"if-match": '"6"'}])
@pytest.mark.parametrize("size", sorted(TEXTS))
def test_head_is_get_without_its_body(client: TestClient[Litestar], size: str, headers: dict[str, str]) -> None:
    whole, head = (client.request(method, f"/text/{size}", headers=headers) for method in ("GET", "HEAD"))
    assert (head.status_code, head.headers) == (whole.status_code, whole.headers)
    if whole.status_code == 200:
        assert head.content == b""
        assert int(head.headers["content-length"]) > 0
