"""Sets up httpx with the proxies and certificate authorities of the environment. Errors say what is wrong with the
environment.

A gateway on this machine is called without a proxy, so that no other machine sees prompts and keys.
"""

import ipaddress
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from warmlane_client.core.effects import CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S, Call
from warmlane_client.errors import Misconfigured, NotAnAddress

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_PROXIES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
_AUTHORITIES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
Made = TypeVar("Made", httpx.Client, httpx.AsyncClient)


class GatewayTarget:
    """The gateway at *url*, and the key that the client sends to it. Its repr leaves the key out.

    Arguments that are None come from WARMLANE_URL, WARMLANE_API_KEY and WARMLANE_CA.
    """

    def __init__(self, url: str | None, key: str | None, ca: Path | ssl.SSLContext | None) -> None:
        """Checks nothing yet: `connected` does."""
        self.url = (url or os.environ.get("WARMLANE_URL") or DEFAULT_URL).rstrip("/")
        text = key if key is not None else os.environ.get("WARMLANE_API_KEY", "").strip()
        self._headers = {"Authorization": f"Bearer {text}"} if text else {}
        named = os.environ.get("WARMLANE_CA") if ca is None else None
        self._ca = Path(named) if named else ca

    def __repr__(self) -> str:
        return f"GatewayTarget({self.url!r})"

    def connected(self, kind: Callable[..., Made]) -> Made:
        """An httpx client of *kind* that calls the gateway. Raises Misconfigured, as NotAnAddress if its URL cannot be
        used."""
        verify: ssl.SSLContext | None = None
        if isinstance(self._ca, Path):
            verify = _trusting(self._ca)
        elif self._ca is not None:
            verify = self._ca
        return http_client(kind, self.url, headers=self._headers, trusted=verify)


def http_client(
    kind: Callable[..., Made],
    url: str,
    *,
    headers: Mapping[str, str],
    trusted: ssl.SSLContext | None,
    timeout_s: float = REPLY_TIMEOUT_S,
) -> Made:
    """An httpx client of *kind* for *url*; if *trusted* is given, it trusts nothing else.

    Raises NotAnAddress if *url* is no URL, Misconfigured if an environment variable cannot be used.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise NotAnAddress(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise NotAnAddress(f"{url!r} does not begin with http://")
    if not parsed.host:
        raise NotAnAddress(f"{url!r} names no host")
    # plain HTTP checks no certificate, and so needs no file of authorities
    verify: ssl.SSLContext | bool = trusted if trusted is not None else parsed.scheme == "https"
    options: dict[str, Any] = {
        "headers": dict(headers),
        "verify": verify,
        "trust_env": not is_loopback(parsed.host),
        "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        # each task that is followed has a stream: the gateway limits their number
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
    }
    try:
        return kind(base_url=url, **options)
    except FileNotFoundError as error:
        raise _environment(_AUTHORITIES, "there is no such file; correct or unset it") from error
    except ImportError as error:
        raise _environment(
            _PROXIES, "a SOCKS proxy needs the package socksio (pip install 'httpx[socks]'); or unset it"
        ) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise _environment(_PROXIES, f"no usable proxy setting ({error}); correct or unset it") from error


def is_loopback(host: str) -> bool:
    """Whether *host*, the name or address in a URL, is this very machine."""
    name = host.strip("[]").removesuffix(".").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def built(client: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    """*call* as httpx sends it."""
    options: dict[str, Any] = {} if call.json is None else {"json": call.json}
    timeout = httpx.Timeout(call.reply_timeout_s, connect=CONNECT_TIMEOUT_S)
    params = dict(call.params) or None
    return client.build_request(
        call.method, call.path, params=params, headers=dict(call.headers), timeout=timeout, **options
    )


def why(error: httpx.HTTPError) -> str:
    """The text of *error*, or its type if the text is empty."""
    return str(error) or type(error).__name__


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"{ca} cannot be read as certificates in PEM: {error}", variable="WARMLANE_CA") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _environment(names: tuple[str, ...], what: str) -> Misconfigured:
    def found() -> Iterator[str]:
        for name in (each for upper in names for each in (upper, upper.lower())):
            if os.environ.get(name):
                yield f"{name}={os.environ[name]}"

    variable = " ".join(found())
    return Misconfigured(f"{variable}: {what}", variable=variable)
