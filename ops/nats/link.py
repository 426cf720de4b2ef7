"""The one way to the server, with the traps of design §10 closed.

Every call ends within its time-out. A refusal and an unknown outcome are different errors: `StreamFull` and
`WrongRevision` mean that nothing was stored, `TransportUnavailable` that the outcome is unknown (`ops.nats.errors`).
"""

from typing import Self

from ops.nats.access import NatsAccess
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.connecting import Connector
from ops.nats.connection import Connection
from ops.nats.core import Core
from ops.nats.entries import Entries
from ops.nats.messages import Messages
from ops.nats.server_clock import ServerClock
from ops.nats.streams import ServerStreams
from ops.nats.watches import WatchedServer, Watches


class NatsLink:
    """What one process does with its connection. Make it with `NatsLink.connect`; close it with `close`."""

    def __init__(self, client: NatsClient) -> None:
        js = client.jetstream(timeout=REPLY_TIMEOUT_S)
        self.connection = Connection(client)
        self.core = Core(client)
        self.streams = ServerStreams(client, js)
        # made before the others, so that the watches learn of a reconnect first
        self.watches = Watches(WatchedServer(client, self.connection, self.streams), self.connection)
        self.messages = Messages(client, js, self.connection)
        self.entries = Entries(client, self.connection, self.messages, self.watches)
        self.clock = ServerClock(client)

    @classmethod
    async def connect(cls, server: NatsAccess | str, *, name: str, wait_s: float = 10.0) -> Self:
        """Connects to *server*, trying for *wait_s* seconds. Of several addresses it takes any one, and another when
        that server dies.

        Raises TransportUnavailable when nobody answers; UnusableServer for a server that is too old (before 2.11), that
        does not accept the user, or whose certificate is not trusted.
        """
        connector = Connector(server if isinstance(server, NatsAccess) else NatsAccess.at(server), name=name)
        link = cls(await connector.connect(wait_s=wait_s))
        connector.report_to(link.connection)
        return link

    async def close(self) -> None:
        """Closes the connection; what was not sent is dropped."""
        self.watches.close()
        await self.connection.close()
