"""An HTTP client that obeys the environment (proxies, authorities); errors say what is wrong with the environment.

A gateway on this machine is called without a proxy: prompts and keys are sent to nobody else.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
import httpx

from contracts.hosts import names_loopback
from ops.machine.tls import trusting

_PROXIES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
_AUTHORITIES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def web_client(url: str, *, headers: Mapping[str, str], ca: Path | None, timeout: httpx.Timeout) -> httpx.Client:
    """A client of *url*; with *ca*, trusts the certificates of that authority alone.

    Raises click.BadParameter for what is no URL, click.ClickException for a *ca* or a variable of the environment that
    cannot be used.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise click.BadParameter(f"{url!r} is not a URL: {error}", param_hint="--url") from error
    # plain HTTP checks no certificate, so that no file of authorities can be missing
    trusted = trusting(ca) if ca is not None else parsed.scheme == "https"
    try:
        return httpx.Client(
            base_url=url,
            timeout=timeout,
            headers=headers,
            verify=trusted,
            trust_env=not names_loopback(parsed.netloc.decode("ascii", "replace")),
        )
    except FileNotFoundError as error:
        raise click.ClickException(f"{_set(_AUTHORITIES)}: there is no such file; correct or unset it") from error
    except ImportError as error:
        raise click.ClickException(
            f"{_set(_PROXIES)}: a SOCKS proxy needs the package socksio (pip install 'httpx[socks]'); or unset it"
        ) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise click.ClickException(
            f"{_set(_PROXIES)}: no usable proxy setting ({error}); correct or unset it"
        ) from error


def _set(names: tuple[str, ...]) -> str:
    def found() -> Iterator[str]:
        for name in (each for upper in names for each in (upper, upper.lower())):
            if os.environ.get(name):
                yield f"{name}={os.environ[name]}"

    return " ".join(found())
