"""The page at `/` and its files: who gets them, how long they are cached, and what they may do."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from gateway.app import create_app
from gateway.http.conditions import GZIP, encoded
from gateway.http.panel import CONTENT_SECURITY_POLICY, FOLDER, MEDIA_TYPES, files_in, page_under, wants_page
from gateway.server.proxies import behind_proxies
from gateway.services import Services
from tests.kit.samples import catalog

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
SCRIPT = b"export const words = 'paper boat';\n" * 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a small panel, beside a file that does not belong to it."""
    static = tmp_path / "static"
    (static / "parts").mkdir(parents=True)
    (static / "index.html").write_bytes(b'<!doctype html><html lang="en"><head><title>x</title></head></html>')
    (static / "app.js").write_bytes(SCRIPT)
    (static / "parts" / "small.css").write_bytes(b"body { margin: 0 }")
    (static / "notes.md").write_bytes(b"not to be served")
    (tmp_path / "secret.js").write_bytes(b"not to be served")
    return static


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient[Litestar]]:
    services = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)
    with TestClient(create_app(services, panel_folder=folder), base_url="http://127.0.0.1") as found:
        yield found


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        pytest.param(None, False, id="1-nothing"),
        pytest.param("*/*", False, id="1-curl"),
        pytest.param("application/json", False, id="1-json"),
        pytest.param("text/html;q=0, */*", False, id="2-anything-else"),
        pytest.param("text/html;q=0.5, application/json", False, id="3-json-sooner"),
        pytest.param("text/html, application/json", True, id="both"),
        pytest.param("TEXT/HTML", True, id="any-case"),
        pytest.param(BROWSER, True, id="browser"),
    ],
)
def test_wants_page(accept: str | None, expected: bool) -> None:
    assert wants_page(accept) is expected


def test_a_browser_gets_the_page_and_a_program_what_it_got_before(client: TestClient[Litestar]) -> None:
    page = client.get("/", headers={"accept": BROWSER})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.startswith("<!doctype html>")
    assert page.headers["vary"] == "Accept, Accept-Encoding"
    for accept in ("*/*", "application/json"):
        answer = client.get("/", headers={"accept": accept})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", ["/", "/panel/app.js", "/panel/parts/small.css"])
def test_what_the_page_may_do_and_how_long_it_is_kept(client: TestClient[Litestar], path: str) -> None:
    answer = client.get(path, headers={"accept": BROWSER})
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    known = client.get(path, headers={"accept": BROWSER, "if-none-match": answer.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    head = client.head(path, headers={"accept": BROWSER})
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", answer.headers["etag"])


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'self'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert not re.search(r"https?:|data:|\*", CONTENT_SECURITY_POLICY)


def test_a_file_is_sent_compressed_to_those_who_accept_it(client: TestClient[Litestar]) -> None:
    packed = client.get("/panel/app.js", headers={"accept-encoding": "gzip"})
    plain = client.get("/panel/app.js", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == SCRIPT  # as the client unpacked it
    assert int(packed.headers["content-length"]) < len(SCRIPT) / 10
    assert (plain.content, plain.headers.get("content-encoding")) == (SCRIPT, None)
    assert packed.headers["etag"] == encoded(plain.headers["etag"], GZIP)
    assert {packed.headers["vary"], plain.headers["vary"]} == {"Accept-Encoding"}
    known = client.get("/panel/app.js", headers={"accept-encoding": "gzip", "if-none-match": packed.headers["etag"]})
    assert known.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "",
        "index.html",
        "notes.md",
        "nothing.js",
        "parts",
        "parts/",
        "../secret.js",
        "%2e%2e/secret.js",
        "..%2fsecret.js",
    ],
)
def test_nothing_else_is_served(client: TestClient[Litestar], path: str) -> None:
    answer = client.get(f"/panel/{path}", headers={"accept": BROWSER})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_behind_a_prefix_the_page_names_its_own_base(folder: Path) -> None:
    services = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)
    app = behind_proxies(create_app(services, panel_folder=folder), "/warmlane", ())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        for path in ("/warmlane", "/warmlane/", "/"):
            page = await http.get(path, headers={"accept": BROWSER})
            assert page.text.count('<head><base href="/warmlane/">') == 1
        assert (await http.get("/warmlane/panel/app.js")).content == SCRIPT
    assert page_under("", b"<head></head>") == b"<head></head>"


def test_the_panel_of_the_package_has_only_files_that_are_served() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert found == set(files_in(FOLDER))
    assert {Path(name).suffix for name in found} <= set(MEDIA_TYPES)
