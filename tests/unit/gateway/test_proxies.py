"""Under which path the API is served, which proxies are trusted, and who is let in without a key through a proxy."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from litestar import Litestar

from contracts.hosts import OWN_SEGMENTS, PREFIX_MAX_CHARS, path_prefix
from gateway.app import create_app
from gateway.http.access import is_foreign
from gateway.server.proxies import behind_proxies, is_trusted, prefix_of, without_prefix
from gateway.services import Services
from ops.commands.behind import Behind, behind_options
from tests.kit.samples import catalog

PROXY = ipaddress.ip_network("10.1.0.0/16")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("/", ""),
        ("/warmlane", "/warmlane"),
        ("/warmlane/", "/warmlane"),
        ("/api/v1.2/~me_x-y", "/api/v1.2/~me_x-y"),
        ("/tasksboard", "/tasksboard"),
        ("/x/tasks", "/x/tasks"),
        ("/" + "x" * (PREFIX_MAX_CHARS - 1), "/" + "x" * (PREFIX_MAX_CHARS - 1)),
        *(
            (text, None)
            for text in ("warmlane", "//", "//evil.example", "/a//b", "https://a.example/x", "/a b", "/a?b")
        ),
        *((text, None) for text in ("/..", "/a/../b", "/./a", "/%2e%2e", "/видео", "/a\n", "/a\\b", '/a"b', "/a'><b")),
        *((f"/{text}", None) for text in ("tasks", "docs/x", "openapi.json", "x" * PREFIX_MAX_CHARS)),
    ],
)
def test_what_can_be_a_prefix(text: str, expected: str | None) -> None:
    assert path_prefix(text) == expected


@pytest.mark.parametrize(
    ("said", "own", "expected"),
    [
        ([], "", ""),  # 1
        ([], "/own", "/own"),
        (["/a"], "", "/a"),  # 2
        (["/a/"], "/own", "/a"),
        (["/outer, /inner"], "", "/outer/inner"),
        (["/outer", "/inner/,/last"], "", "/outer/inner/last"),
        (["/"], "/own", ""),
        (["/", "/a"], "/own", "/a"),
        (["//evil.example"], "/own", "/own"),  # 3
        (["/a, https://evil.example"], "", ""),
        (["/docs"], "/own", "/own"),
        (["/" + "a" * 200, "/" + "b" * 200], "/own", "/own"),
    ],
)
def test_what_a_proxy_says_of_the_prefix(said: list[str], own: str, expected: str) -> None:
    assert prefix_of(said, own) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/warmlane/tasks/x", "/tasks/x"),
        ("/warmlane", "/"),
        ("/warmlane/", "/"),
        ("/tasks/x", "/tasks/x"),
        ("/warmlanes/tasks", "/warmlanes/tasks"),
        ("/warmlane/warmlane/tasks", "/warmlane/tasks"),
        ("/", "/"),
    ],
)
def test_a_path_arrives_with_the_prefix_and_without(path: str, expected: str) -> None:
    assert without_prefix(path, "/warmlane") == expected
    assert without_prefix(path, "") == path


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::1", True),
        ("::2", False),
        ("127.0.0.1", False),
        ("", False),
        (None, False),
        ("x", False),
    ],
)
def test_who_is_trusted(peer: str | None, expected: bool) -> None:
    assert is_trusted(peer, (PROXY, ipaddress.ip_network("::1"))) is expected
    assert not is_trusted(peer, ())


HERE = {"host": "127.0.0.1:8000"}
ALLOWED = ("video.example.org", "10.0.0.5", "fd00::1")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (HERE, False),
        ({"host": "video.example.org"}, False),
        ({"host": "VIDEO.example.org.:8443"}, False),
        ({"host": "10.0.0.5:80"}, False),
        ({"host": "[fd00::1]:80"}, False),
        ({}, True),  # 1
        ({"host": ""}, True),
        ({"host": "attacker.example"}, True),
        ({"host": "video.example.org.attacker.example"}, True),
        ({"host": "video.example.org@attacker.example"}, True),
        (HERE | {"x-forwarded-host": "attacker.example"}, True),
        (HERE | {"x-forwarded-host": "localhost:5173"}, False),
        (HERE | {"x-forwarded-host": "video.example.org, attacker.example"}, True),
        ({"host": "attacker.example", "x-forwarded-host": "video.example.org"}, True),
        (HERE | {"x-forwarded-host": "video.example.org", "x-forwarded-for": "203.0.113.9"}, False),
        (HERE | {"x-forwarded-for": "203.0.113.9"}, True),  # 2
        (HERE | {"x-forwarded-for": "127.0.0.1, 203.0.113.9"}, True),
        (HERE | {"x-forwarded-for": "127.0.0.1, ::1, [::1]:9"}, False),
        (HERE | {"x-forwarded-for": "unknown"}, True),
        (HERE | {"x-real-ip": "203.0.113.9"}, True),
        (HERE | {"forwarded": "for=203.0.113.9"}, True),
        ({"host": "video.example.org", "forwarded": "for=203.0.113.9"}, False),
    ],
)
def test_who_is_foreign_without_a_key(headers: dict[str, str], expected: bool) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert is_foreign(raw, ALLOWED) is expected
    assert is_foreign(raw, ()) or not expected
    # a second Host, even a local one, makes no request local
    assert is_foreign([*raw, (b"host", b"127.0.0.1")], ALLOWED) is (expected and headers != {})


# The application behind it


def application() -> Litestar:
    return create_app(Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60))


@pytest.fixture(scope="module")
def app() -> Litestar:
    return application()


def under(app: Litestar, root_path: str, *trusted: Any) -> httpx.AsyncClient:
    """A client at 10.1.0.9."""
    transport = httpx.ASGITransport(behind_proxies(app, root_path, trusted), client=("10.1.0.9", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def test_every_path_of_the_api_begins_with_a_segment_that_no_prefix_may_have(app: Litestar) -> None:
    assert {route.path.split("/")[1] for route in app.routes} - {""} == OWN_SEGMENTS


@pytest.mark.parametrize("asked", ["", "/warmlane"])
@pytest.mark.parametrize("root_path", ["", "/warmlane"])
async def test_the_document_and_its_page_name_where_they_are(app: Litestar, root_path: str, asked: str) -> None:
    """Whether the proxy takes the prefix off or not."""
    async with under(app, root_path) as client:
        answer = await client.get(f"{asked}/openapi.json")
        if asked and not root_path:
            assert answer.status_code == 404
            return
        assert answer.json()["servers"] == [{"url": root_path or "/"}]
        assert (await client.get(f"{asked}/docs/openapi.json")).json()["servers"] == [{"url": root_path or "/"}]
        page = (await client.get(f"{asked}/docs/")).text
        assets = re.findall(r"(?:src|href)=[\"']([^\"']+)", page)
        assert len(assets) == 4
        assert all(asset.startswith(f"{root_path}/docs/assets/") for asset in assets)
        assert [(await client.get(asset)).status_code for asset in assets] == [200] * 4


@pytest.mark.parametrize(
    ("trusted", "said", "expected"),
    [
        ((PROXY,), "/said", "/said"),
        ((PROXY,), "//evil.example", "/own"),
        ((ipaddress.ip_network("127.0.0.1"),), "/said", "/own"),
        ((), "/said", "/own"),
    ],
)
async def test_only_a_trusted_proxy_is_believed(app: Litestar, trusted: Any, said: str, expected: str) -> None:
    async with under(app, "/own", *trusted) as client:
        document = (await client.get("/openapi.json", headers={"x-forwarded-prefix": said})).json()
    assert document["servers"] == [{"url": expected}]


async def test_whom_the_scope_names_as_the_client() -> None:
    """The caller's address in the log: the last one that no trusted proxy wrote."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"][0], scope["scheme"], scope["path"], scope["raw_path"], scope["root_path"]))

    said = [(b"x-forwarded-for", b"198.51.100.1, 203.0.113.9"), (b"x-forwarded-proto", b"https")]
    said += [(b"x-forwarded-prefix", b"/a")]
    for peer in ("10.1.0.9", "10.2.0.9"):
        scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": said}
        scope |= {"path": "/a/tasks/ü", "raw_path": b"/a/tasks/%C3%BC", "root_path": ""}
        await behind_proxies(app, "", (PROXY,))(scope, None, None)
    assert seen == [
        ("203.0.113.9", "https", "/tasks/ü", b"/tasks/%C3%BC", "/a"),
        ("10.2.0.9", "http", "/a/tasks/ü", b"/a/tasks/%C3%BC", ""),
    ]
    assert behind_proxies(app, "", ()) is app


# The command line


@click.command()
@behind_options
def printed(behind: Behind) -> None:
    click.echo(" ".join(behind.arguments()))


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, ""),
        (["--root-path", "/warmlane/"], {}, "--root-path /warmlane"),
        ([], {"WARMLANE_ROOT_PATH": "/"}, ""),
        (
            [],
            {"WARMLANE_TRUSTED_PROXIES": "127.0.0.1, 10.1.0.0/16 ::1"},
            "--trusted-proxy 127.0.0.1/32 --trusted-proxy 10.1.0.0/16 --trusted-proxy ::1/128",
        ),
        ([], {"WARMLANE_ALLOWED_HOSTS": "a.example,b.example"}, "--allowed-host a.example --allowed-host b.example"),
        (
            ["--allowed-host", "Video.example.org.", "--allowed-host", "[FD00::1]", "--allowed-host", "10.0.0.5"],
            {},
            "--allowed-host video.example.org --allowed-host [fd00::1] --allowed-host 10.0.0.5",
        ),
    ],
)
def test_what_is_passed_on(arguments: list[str], environment: dict[str, str], expected: str) -> None:
    said = CliRunner().invoke(printed, arguments, env=environment)
    assert (said.exit_code, said.output.strip()) == (0, expected)
    assert CliRunner().invoke(printed, expected.split()).output.strip() == expected


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--root-path", "warmlane", "not a path such as /warmlane"),
        ("--root-path", "/tasks", "does not begin as a path of the API does"),
        ("--root-path", "https://a.example/x", "not a path such as /warmlane"),
        ("--trusted-proxy", "*", "neither an address such as 127.0.0.1 nor a network"),
        ("--trusted-proxy", "localhost", "neither an address"),
        ("--trusted-proxy", "10.1.2.3/16", "has host bits set"),
        ("--trusted-proxy", "", "neither an address"),
        ("--allowed-host", "*", "not a name such as video.example.org"),
        ("--allowed-host", "*.example.org", "not a name"),
        ("--allowed-host", "https://video.example.org", "not a name"),
        ("--allowed-host", "video.example.org:443", "without a scheme, a port"),
        ("--allowed-host", "me@video.example.org", "not a name"),
        ("--allowed-host", "", "not a name"),
    ],
)
def test_what_is_refused(option: str, value: str, reason: str) -> None:
    said = CliRunner().invoke(printed, [option, value])
    assert said.exit_code == 2
    assert reason in " ".join(said.output.split()).replace("│ ", "")
