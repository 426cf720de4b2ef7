"""Requests to one gateway, sent again where that is safe and makes sense."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import httpx
import stamina

from contracts.keys import Presented
from ops.commands.api.problems import Refused, Unreachable, refusal
from ops.commands.web_client import web_client

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 30.0
# A submit that reaches nobody is given up soon: most likely no gateway was started.
SUBMIT_ATTEMPTS: Final = 4
# A task that was accepted goes on without us: the client waits for a gateway that is started again.
FOLLOW_PATIENCE_S: Final = 60.0
# A refusal of a key that asked too often says when its next turn is. The client waits no longer than this for a turn.
TURN_PATIENCE_S: Final = 60.0
TURN_ATTEMPTS: Final = 20

T = TypeVar("T")

_soon: Final = stamina.RetryingCaller(attempts=SUBMIT_ATTEMPTS, wait_initial=0.2, wait_max=2.0, wait_jitter=0.1)
_patiently: Final = stamina.RetryingCaller(attempts=None, timeout=FOLLOW_PATIENCE_S, wait_max=2.0, wait_jitter=0.1)
_in_turn: Final = stamina.RetryingCaller(attempts=TURN_ATTEMPTS, timeout=None)


class Requests:
    """A connection to one gateway. Every method raises Unreachable where nobody answers, and Refused or NotWarmlane for
    an answer that is no success."""

    def __init__(self, url: str, *, key: Presented | None, ca: Path | None, said_by: str) -> None:
        """As `Client`. Raises what `web_client` raises."""
        self._url = url
        self._said_by = f" ({said_by})" if said_by else ""
        # the commands mention retries where a person wants to know; nothing logs them
        stamina.instrumentation.set_on_retry_hooks([])
        self._http = web_client(
            url,
            timeout=httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={} if key is None else {"Authorization": f"Bearer {key.text}"},
            ca=ca,
        )

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer, a success or 304. A request that came too often is sent again when its turn has come."""
        return self.in_turn(lambda: self._send_once(method, path, **options))

    def send_soon(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `send`, but up to SUBMIT_ATTEMPTS times where nobody answers: only for what may safely arrive twice."""
        return _soon(_worth_another_try, self.send, method, path, **options)

    def send_patiently(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `send`, but again and again for FOLLOW_PATIENCE_S where nobody answers: only for what may safely arrive
        twice."""
        return _patiently(_worth_another_try, self.send, method, path, **options)

    def get_whatever(self, path: str) -> httpx.Response:
        """The answer of a GET, whatever its status."""
        try:
            return self._http.get(path)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def in_turn(self, call: Callable[[], T]) -> T:
        """What *call* returns. Where the gateway answers that it came too often, it is called again in its turn."""
        # the gateway did not look at such a request, so that it is safe to send it again
        return _in_turn(_until_turn, call)

    def file(self, path: str) -> Iterator[bytes]:
        """A file, as it comes. It comes from the gateway itself also where that gives links to an object store, which
        may speak with a certificate that is not trusted here."""
        try:
            with self._http.stream("GET", path) as reply:
                redirected = reply.status_code == httpx.codes.FOUND
                if not reply.is_success and not redirected:
                    reply.read()
                    raise refusal(reply)
                if not redirected:
                    yield from reply.iter_bytes()
                    return
            with self._http.stream("GET", path, params={"redirect": "false"}) as reply:
                if not reply.is_success:
                    reply.read()
                    raise refusal(reply)
                yield from reply.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _send_once(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.UnsupportedProtocol as error:
            raise click.BadParameter(f"{self._url!r} does not begin with http://", param_hint="--url") from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if reply.is_success or reply.status_code == httpx.codes.NOT_MODIFIED:
            return reply
        raise refusal(reply)

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unreachable(
                f"the certificate of {self._url} is not one to trust ({error}); "
                "name the file of its authority with --ca or WARMLANE_CA"
            )
        return Unreachable(
            f"no gateway answers at {self._url}{self._said_by}: {str(error) or type(error).__name__}; start one with "
            "`warmlane up`, name the folder of one with --data-dir, or its address with --url or WARMLANE_URL"
        )


def _worth_another_try(error: Exception) -> bool:
    return isinstance(error, Unreachable) or (
        isinstance(error, Refused) and error.problem.code == "transport_unavailable"
    )


def _until_turn(error: Exception) -> bool | float:
    if not isinstance(error, Refused) or error.problem.code != "rate_limited":
        return False
    wait_s = error.retry_after_s or 1.0
    return wait_s if wait_s <= TURN_PATIENCE_S else False
