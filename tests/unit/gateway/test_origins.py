"""From which pages, and under which names, a gateway may be called."""

import socket
from functools import partial
from typing import Any

import click
import pytest
from litestar.config.cors import CORSConfig
from litestar.testing import TestClient

from gateway.http.cross_origin import comes_from_elsewhere
from ops.commands.option_types import ListenHost, Origin
from tests.unit.gateway.test_access import BY_READER, READ, application, client

__all__ = ["client"]  # fixtures


# ── from where ───────────────────────────────────────────────────────────────────────────────────────────────────────

PAGE = "https://app.example.org"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, idempotency-key",
}


def test_no_page_of_another_origin_may_call_unless_it_is_named() -> None:
    with TestClient(application(READ)) as client:
        for answer in (
            client.options("/generate", headers=PREFLIGHT),
            client.get("/settings", headers={"origin": PAGE}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        refused = client.options("/generate", headers=PREFLIGHT)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
        assert refused.json()["code"] == "cross_origin_refused"
        assert "--cors-origin" in refused.json()["detail"]
        assert client.options("/generate", headers={"origin": PAGE}).status_code == 204  # not a preflight request


CHANGES_WITHOUT_A_QUESTION = [("POST", "/generate"), ("POST", "/images"), ("POST", "/webhooks/secret/rotate")]
FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(("method", "path"), CHANGES_WITHOUT_A_QUESTION)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": PAGE},
        {"origin": "null"},
        {"origin": PAGE, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=["origin", "null", "cross-site", "same-site"],
)
def test_a_page_of_another_origin_changes_nothing_though_its_browser_asked_nobody(
    method: str, path: str, headers: dict[str, str]
) -> None:
    """A form, and a body that is none, are sent to another origin without a preflight request."""
    with TestClient(application(), base_url="http://127.0.0.1:8000") as client:
        refused = client.request(method, path, headers=FORM | headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "cross_origin_refused")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, False, id="no-browser"),
        pytest.param({"origin": PAGE}, True, id="another-page"),
        pytest.param({"origin": "null"}, True, id="no-origin"),
        pytest.param({"origin": "http://127.0.0.1:8000"}, False, id="our-own"),
        pytest.param({"origin": "http://127.0.0.1:3000"}, True, id="another-port"),
        pytest.param({"origin": PAGE, "x-forwarded-host": "app.example.org"}, False, id="behind-a-proxy"),
        pytest.param({"origin": "https://video.example.org"}, False, id="an-allowed-host"),
        pytest.param({"origin": "https://named.example.org"}, False, id="a-named-origin"),
        pytest.param({"origin": PAGE, "sec-fetch-site": "same-origin"}, False, id="the-browser-knows"),
        pytest.param({"origin": PAGE, "sec-fetch-site": "cross-site"}, True, id="and-says-so"),
        pytest.param({"sec-fetch-site": "none"}, False, id="typed"),
        pytest.param({"origin": PAGE, "authorization": "Bearer x"}, False, id="with-a-key"),
    ],
)
def test_where_a_change_comes_from(headers: dict[str, str], expected: bool) -> None:
    cors = CORSConfig(allow_origins=["https://named.example.org"])
    sent = {"host": "127.0.0.1:8000"} | headers
    assert comes_from_elsewhere(sent, cors, {"video.example.org"}) is expected


def test_a_page_that_is_named_may_call_with_a_key() -> None:
    with TestClient(application(READ, cors_origins=(PAGE,))) as client:
        allowed = client.options("/generate", headers=PREFLIGHT)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert {"authorization", "idempotency-key"} <= set(
            allowed.headers["access-control-allow-headers"].lower().replace(",", " ").split()
        )
        assert "access-control-allow-credentials" not in allowed.headers
        answer = client.get("/settings", headers={"origin": PAGE, **BY_READER})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        # a page has to see why it was refused
        assert client.get("/settings", headers={"origin": PAGE}).headers["access-control-allow-origin"] == PAGE
        other = client.get("/settings", headers={"origin": "https://other.example.org", **BY_READER})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"origin": "https://other.example.org"}, ["'https://other.example.org'", "--cors-origin"]),
        ({"origin": "null"}, ["'null'", "--cors-origin"]),
        ({"access-control-request-method": "PATCH"}, ["'PATCH'", "GET, HEAD, POST, PUT, DELETE"]),
        ({"access-control-request-headers": "content-type, x-secret"}, ["'x-secret'", "idempotency-key"]),
    ],
    ids=["origin", "null", "method", "header"],
)
def test_a_refused_preflight_says_what_is_not_allowed(changes: dict[str, str], words: list[str]) -> None:
    with TestClient(application(READ, cors_origins=(PAGE,))) as client:
        refused = client.options("/generate", headers=PREFLIGHT | changes)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
        problem = refused.json()
        assert (problem["code"], problem["status"]) == ("cross_origin_refused", 403)
        for word in words:
            assert word in problem["detail"]
        assert "access-control-allow-origin" not in refused.headers


def test_vary_names_what_an_answer_depends_on() -> None:
    with TestClient(application(READ, cors_origins=(PAGE,))) as client:
        for headers in (BY_READER, {"origin": PAGE, **BY_READER}):
            answer = client.get("/settings", headers=headers)
            assert sorted(answer.headers["vary"].split(", ")) == ["Accept-Encoding", "Origin"]
            assert answer.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("origin", ["https://app.example.org", "http://localhost:5173", "https://[::1]:8443"])
def test_origins(origin: str) -> None:
    assert Origin()(origin) == origin


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.org/",
        "https://app.example.org/page",
        "https://*.example.org",
        "*",
        "null",
        "app.example.org",
        "https://user@app.example.org",
        "https://app.example.org:port",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(click.BadParameter, match="without a path"):
        Origin()(origin)


# ── to where ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "address", "is_loopback", "url"),
    [
        ("127.0.0.1", "127.0.0.1", True, "http://127.0.0.1:80"),
        ("localhost", "127.0.0.1", True, "http://127.0.0.1:80"),
        ("127.8.8.8", "127.8.8.8", True, "http://127.8.8.8:80"),
        ("::1", "::1", True, "http://[::1]:80"),
        ("0.0.0.0", "0.0.0.0", False, "http://127.0.0.1:80"),
        ("::", "::", False, "http://[::1]:80"),
        ("192.0.2.7", "192.0.2.7", False, "http://192.0.2.7:80"),
    ],
)
def test_hosts(name: str, address: str, is_loopback: bool, url: str) -> None:
    host = ListenHost.of(name)
    assert (host.address, host.is_loopback, host.url("http", 80)) == (address, is_loopback, url)


@pytest.mark.parametrize(
    ("address", "is_loopback"), [("192.0.2.7", False), ("127.0.1.1", True)], ids=["elsewhere", "here"]
)
def test_a_name_is_judged_by_the_address_that_is_listened_on(
    address: str, is_loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(*_: object, **__: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    host = ListenHost.of("gpu.example.org")
    assert (host.address, host.is_loopback, host.url("https", 443)) == (
        address,
        is_loopback,
        "https://gpu.example.org:443",
    )


@pytest.mark.parametrize("name", ["", "no such host", "256.256.256.256.256", "x" * 300])
def test_what_is_no_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server is asked: some know every name, and some do not answer."""
    monkeypatch.setattr(socket, "getaddrinfo", partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST))
    with pytest.raises(ValueError, match="address"):
        ListenHost.of(name)
