"""A test's own connection to a server under test. It waits for an answer as long as the connection stands. The product
gives up after 2 s, and a server on a busy machine or a busy disk may be silent for longer."""

from collections.abc import Mapping

import nats.errors

from ops.nats.access import NatsAccess
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.connecting import Connector
from ops.nats.link import NatsLink
from tests.kit.support import BOUND_S


class PatientClient(NatsClient):
    """As the product's, with another limit for an answer."""

    async def _ask(
        self, subject: str, payload: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[bytes, bytes]:
        patient_s = BOUND_S if timeout_s == REPLY_TIMEOUT_S else timeout_s
        return await super()._ask(subject, payload, headers, patient_s)

    def give_up(self) -> None:
        """The connection broke: no answer to what was asked on it comes any more."""
        for asked in self._asked.values():
            asked.fail(nats.errors.TimeoutError())


async def connected(server: NatsAccess | str, *, name: str = "test") -> NatsLink:
    """As `NatsLink.connect`, and more patient."""
    connector = Connector(server if isinstance(server, NatsAccess) else NatsAccess.at(server), name=name)
    connector._client = client = PatientClient()
    link = NatsLink(await connector.connect(wait_s=BOUND_S))
    connector.report_to(link.connection)
    link.connection.on_break(client.give_up)
    return link
