"""An HTTP client that obeys the environment (proxies, authorities), set up like the client of a gateway. Its errors are
written for a person."""

import click
import httpx

from warmlane_client.errors import Misconfigured, NotAnAddress
from warmlane_client.transport import http_client


def web_client(url: str, *, timeout_s: float) -> httpx.Client:
    """A client of *url*.

    Raises click.BadParameter if *url* is not a URL, click.ClickException if an environment variable cannot be used.
    """
    try:
        return http_client(httpx.Client, url, headers={}, trusted=None, timeout_s=timeout_s)
    except Misconfigured as error:
        raise said(error) from error


def said(error: Misconfigured) -> click.ClickException:
    """*error* for a person."""
    if isinstance(error, NotAnAddress):
        return click.BadParameter(str(error), param_hint="--url")
    return click.ClickException(str(error))
