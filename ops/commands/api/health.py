"""What a gateway says about the system behind it."""

from collections.abc import Sequence
from typing import Final

import click

from contracts.api.health import Readiness
from ops.commands.api.problems import Refused, decoded
from ops.commands.api.requests import Requests

# A request was refused since the queue could not store it: what keeps it from that, `/readyz` says.
NOT_STORED: Final = frozenset({"transport_unavailable", "storage_full"})


class GatewayHealth:
    """The health of one system, as its gateway reports it."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def readiness(self) -> Readiness:
        """Which workers there are. Not yet ready is an answer, and not an error."""
        return decoded(self._requests.get_whatever("/readyz"), Readiness)

    def troubles(self) -> Sequence[str]:
        """What the gateway says is wrong; nothing where it does not answer."""
        try:
            return self.readiness().troubles
        except click.ClickException:
            return ()

    def explained(self, error: click.ClickException) -> click.ClickException:
        """*error*, and what the gateway says is wrong with it where that is why it refused."""
        if isinstance(error, Refused) and error.problem.code in NOT_STORED:
            return Refused(error.problem, troubles=self.troubles())
        return error
