"""Requests to one gateway, through `warmlane_client`. Their failures become errors written for a person."""

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from contracts.keys import Presented
from ops.commands.api.problems import DamagedVideo, NotWarmlane, Refused, Unreachable
from ops.commands.web_client import said
from warmlane_client import Call, Client, Patience, Reply
from warmlane_client.errors import (
    DownloadDamaged,
    ForeignAnswer,
    GatewayUnreachable,
    Misconfigured,
    RequestRefused,
    WarmlaneError,
)

# Only `--retry` asks a busy system again, and says so on the terminal.
PATIENCE: Final = Patience(busy_s=0.0)
SERVICE_UNAVAILABLE: Final = 503


class Requests:
    """A connection to one gateway. Every method raises Unreachable if no gateway answers, and Refused or NotWarmlane if
    the answer is not a success."""

    def __init__(self, url: str, *, key: Presented | None, trusted: ssl.SSLContext | None, said_by: str) -> None:
        """Presents *key* with every request, and trusts only *trusted*. *said_by* is where the *url* comes from.

        Raises click.BadParameter if *url* is not a URL, click.ClickException if an environment variable cannot be used.
        """
        self._said_by = f" ({said_by})" if said_by else ""
        with self.said():
            # "" means no key: `presented_key` has already looked in the environment
            self.client = Client(url, key="" if key is None else key.text, ca=trusted, patience=PATIENCE)

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str | list[str]] | None = None,
        repeatable: bool = False,
    ) -> Reply:
        """Returns the answer, a success. If no gateway answers, sends a *repeatable* request again."""
        with self.said():
            call = Call(method=method, path=path, json=json, params=params or {})
            return self.client.request(call, repeatable=repeatable)

    def readiness(self) -> Reply:
        """What `/readyz` answers, ready or not."""
        with self.said():
            call = Call(method="GET", path="/readyz")
            return self.client.request(call, repeatable=False, accept={SERVICE_UNAVAILABLE})

    @contextlib.contextmanager
    def said(self) -> Iterator[None]:
        """Turns the errors that `warmlane_client` raises inside the block into errors for a person."""
        try:
            yield
        except Misconfigured as error:
            raise said(error) from error
        except RequestRefused as error:
            raise Refused(error.problem) from error
        except ForeignAnswer as error:
            raise NotWarmlane(str(error), status=error.status, retry_after_s=error.retry_after_s) from error
        except GatewayUnreachable as error:
            raise self._unreachable(error) from error
        except DownloadDamaged as error:
            raise DamagedVideo(f"{error} from {self.client.url}") from error
        except WarmlaneError as error:
            raise click.ClickException(str(error)) from error

    def _unreachable(self, error: GatewayUnreachable) -> Unreachable:
        if error.is_certificate:
            return Unreachable(
                f"the certificate of {error.url} is not one to trust ({error.why}); "
                "name the file of its authority with --ca or WARMLANE_CA"
            )
        return Unreachable(
            f"no gateway answers at {error.url}{self._said_by}: {error.why}; start one with `warmlane up`, name the "
            "folder of one with --data-dir, or its address with --url or WARMLANE_URL"
        )
