"""What a gateway reports about the system behind it."""

from collections.abc import Sequence
from typing import Final

import click

from contracts.api.health import Readiness
from ops.commands.api.problems import Refused, decoded
from ops.commands.api.requests import Requests

# The codes of requests that the queue could not store: `/readyz` says why it cannot.
NOT_STORED: Final = frozenset({"transport_unavailable", "storage_full"})


class GatewayHealth:
    """The health of one system, as its gateway reports it."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def readiness(self) -> Readiness:
        """Which workers there are. "Not ready yet" is an answer, and not an error."""
        return decoded(self._requests.readiness(), Readiness)

    def troubles(self) -> Sequence[str]:
        """What is wrong, as the gateway reports it; nothing where it does not answer."""
        try:
            return self.readiness().troubles
        except click.ClickException:
            return ()

    def explained(self, error: click.ClickException) -> click.ClickException:
        """*error*; if the queue could not store the request, with what the gateway reports as wrong."""
        if isinstance(error, Refused) and error.problem.code in NOT_STORED:
            return Refused(error.problem, troubles=self.troubles())
        return error
