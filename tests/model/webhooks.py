"""Webhooks in the simulated system: the product's own `Webhooks`. The receivers are played. So is the expiring key by
which one gateway leads (`ops/nats/leader.py`), because the simulated server has no such keys."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from contracts.nesting import loads
from contracts.topology import LEADER_REFRESH_S, LEADER_TTL_S
from contracts.webhooks import DEFAULT_EVENTS, TaskWebhook
from gateway.rules.webhook_retries import WebhookAnswer
from tests.model.model_loop import HOST, Host
from tests.model.network import StoreAway, current

if TYPE_CHECKING:
    from tests.model.hosts import ModelHost

WEBHOOK: Final = TaskWebhook(url="https://receiver.example/hook", events=DEFAULT_EVENTS)
# A Fernet key of the model alone.
SEALING_KEY: Final = "bW9kZWxtb2RlbG1vZGVsbW9kZWxtb2RlbG1vZGVsbW8="
# The waits before each retry to a receiver that did not answer: short, and more than a run needs.
WAITS_S: Final = (1.0,) * 9
# This long after everything is mended, all deliveries that are owed are made and sent: a look at every record, and what
# comes of it.
DELIVERED_S: Final = 45.0


class Lead:
    """Who leads, and until when at most."""

    def __init__(self) -> None:
        self.holder: Host | None = None
        self.until_s = 0.0


class PlayedLeader:
    """The candidacy of one gateway, in the place of `Leader`."""

    def __init__(self, _: object, **__: object) -> None:
        self._host = cast("ModelHost", HOST.get())
        self._lead = self._host.world.lead
        self._until_s = 0.0

    def is_leader(self, now_s: float) -> bool:
        return now_s < self._until_s

    async def start(self) -> None:
        pass

    async def campaign(self) -> None:
        while True:
            if self._takes():
                return
            await asyncio.sleep(LEADER_REFRESH_S)

    async def hold(self) -> None:
        while self.is_leader(current().now_s):
            await asyncio.sleep(LEADER_REFRESH_S)
            self._takes()

    async def resign(self) -> None:
        self._until_s = 0.0
        if self._lead.holder is self._host and not self._host.is_cut:
            self._lead.until_s = 0.0

    def _takes(self) -> bool:
        now_s, lead = current().now_s, self._lead
        if self._host.is_cut or (lead.holder is not self._host and now_s < lead.until_s):
            return False
        lead.holder, lead.until_s = self._host, now_s + LEADER_TTL_S
        self._until_s = lead.until_s
        return True


class PlayedSender:
    """Sends to a receiver that answers 204, or whose answer does not come."""

    def __init__(self, _: object) -> None:
        self._world = cast("ModelHost", HOST.get()).world

    async def send(self, url: str, headers: Mapping[str, str], payload: str) -> WebhookAnswer:
        message: Any = loads(payload.encode())
        name, network = headers["webhook-id"], self._world.network
        deliver = lambda: self._world.ledger.on_delivered(message["data"]["id"], message["type"])  # noqa: E731
        try:
            await network.call(f"tell {name}", deliver, lane=f"store told {name}")
        except StoreAway as error:
            return WebhookAnswer(None, str(error))
        return WebhookAnswer(204)

    async def close(self) -> None:
        pass
