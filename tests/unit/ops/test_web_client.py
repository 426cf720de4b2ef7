"""The commands that call a gateway, in environments as people have them."""

from pathlib import Path

import click
import httpx
import pytest

from ops.commands.web_client import web_client

HERE = ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000", "https://127.0.0.1:8443"]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def client(url: str) -> httpx.Client:
    return web_client(url, timeout_s=1)


@pytest.mark.parametrize("url", HERE)
@pytest.mark.parametrize(
    "setting",
    ["ALL_PROXY=socks5://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1", "NO_PROXY=fe80::/10", "HTTPS_PROXY=::"],
)
def test_a_gateway_on_this_machine_is_called_without_a_proxy(
    url: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*setting.split("=", 1))
    with client(url) as http:
        assert not http._mounts


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ALL_PROXY=socks5://127.0.0.1:1", "needs the package socksio"),
        ("NO_PROXY=fe80::/10", "correct or unset it"),
        ("https_proxy=::", "correct or unset it"),
        ("HTTP_PROXY=ftp://proxy.example", "correct or unset it"),
    ],
)
def test_an_error_names_the_variable(setting: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")  # without one, NO_PROXY says nothing
    monkeypatch.setenv(*setting.split("=", 1))
    with pytest.raises(click.ClickException, match=message) as raised:
        client("http://gateway.example:8000")
    assert setting in raised.value.message


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_authorities_that_are_gone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    client("http://gateway.example").close()  # nothing is trusted there
    if name == "SSL_CERT_FILE":
        with pytest.raises(click.ClickException, match=r"SSL_CERT_FILE=.*gone: there is no such file"):
            client("https://gateway.example")


def test_a_proxy_is_used_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    with client("http://gateway.example") as http:
        assert any(mount is not None for mount in http._mounts.values())


def test_what_is_no_url() -> None:
    with pytest.raises(click.BadParameter, match="is not a URL"):
        client("http://here:port")
