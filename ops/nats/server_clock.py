"""The server's clock. Every machine's clock must agree with it, since one machine sets a deadline and another checks
it."""

from datetime import UTC, datetime
from typing import Final

from contracts.nesting import loads
from contracts.topology import TASKS, bucket_stream
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.clock import parse_time
from ops.nats.errors import UnusableServer, translated

MAX_SKEW_S: Final = 0.25
# Every user may ask for the state of this stream.
_ANY_STREAM: Final = f"$JS.API.STREAM.INFO.{bucket_stream(TASKS)}"


class ServerClock:
    """The clock of the server that *client* is connected to."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self.skew_s: float | None = None
        """The server's clock minus this machine's, in seconds, as measured last; None before."""

    async def measure_skew_s(self) -> float:
        """The server's clock minus this machine's, in seconds, as exactly as a few round trips can show.

        Raises TransportUnavailable, UnusableServer.
        """
        best: tuple[float, float] | None = None
        for _ in range(5):
            sent = datetime.now(UTC)
            with translated("clock"):
                reply = await self._client.request(_ANY_STREAM, timeout=REPLY_TIMEOUT_S)
            received = datetime.now(UTC)
            stamp = loads(reply.data).get("ts")
            if stamp is None:
                raise UnusableServer("the server's answers carry no time; Warmlane needs nats-server 2.11 or later")
            middle = sent + (received - sent) / 2
            sample = ((received - sent).total_seconds(), (parse_time(stamp) - middle).total_seconds())
            best = sample if best is None else min(best, sample)
        if best is None:
            raise UnusableServer("the server's clock could not be read")
        self.skew_s = best[1]
        return best[1]

    async def require(self) -> None:
        """Raises UnusableServer when this machine's clock is more than 0.25 s off the server's."""
        skew_s = await self.measure_skew_s()
        if abs(skew_s) > MAX_SKEW_S:
            raise UnusableServer(
                f"this machine's clock is {abs(skew_s):.2f} s {'behind' if skew_s > 0 else 'ahead of'} the "
                f"nats-server's; at most {MAX_SKEW_S} s is allowed. Synchronise both with NTP."
            )
