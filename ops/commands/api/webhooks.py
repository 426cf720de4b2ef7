"""The webhooks of a gateway, as `warmlane webhooks` uses them."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from contracts.api.webhooks import (
    DeliveriesPage,
    DeliveryView,
    EndpointSecret,
    EndpointsPage,
    RequestsSecret,
    WebhookTestView,
)
from ops.commands.api.problems import decoded
from ops.commands.api.requests import Requests


class WebhookCalls:
    """The calls of `/webhooks`. Each raises what `CommandClient` raises."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def endpoints(self) -> EndpointsPage:
        """The endpoints that are registered."""
        return decoded(self._requests.send("GET", "/webhooks"), EndpointsPage)

    def add(self, url: str, events: Sequence[str]) -> EndpointSecret:
        """Registers *url* for *events*, or for the gateway's default events if there are none."""
        body: dict[str, Any] = {"url": url} | ({"events": list(events)} if events else {})
        return decoded(self._requests.send("POST", "/webhooks", json=body), EndpointSecret)

    def test(self, endpoint: str) -> WebhookTestView:
        """Sends a test message to *endpoint*."""
        return decoded(self._requests.send("POST", f"{_path(endpoint)}/test"), WebhookTestView)

    def rotate(self, endpoint: str, overlap_s: float) -> EndpointSecret:
        """Gives *endpoint* a new secret; for *overlap_s*, the earlier secrets sign as well."""
        params = {"overlap_s": f"{overlap_s:g}"}
        return decoded(self._requests.send("POST", f"{_path(endpoint)}/rotate", params=params), EndpointSecret)

    def remove(self, endpoint: str) -> None:
        """Removes *endpoint*."""
        self._requests.send("DELETE", _path(endpoint))

    def secret(self) -> RequestsSecret:
        """The secret for the addresses that requests name."""
        return decoded(self._requests.send("GET", "/webhooks/secret"), RequestsSecret)

    def rotate_secret(self, overlap_s: float) -> RequestsSecret:
        """A new secret for the addresses that requests name."""
        params = {"overlap_s": f"{overlap_s:g}"}
        return decoded(self._requests.send("POST", "/webhooks/secret/rotate", params=params), RequestsSecret)

    def deliveries(self, *, status: str | None, endpoint: str | None, limit: int) -> DeliveriesPage:
        """The newest *limit* deliveries that match."""
        given = {"status": status, "endpoint": endpoint, "limit": str(limit)}
        params = {name: value for name, value in given.items() if value is not None}
        return decoded(self._requests.send("GET", "/webhooks/deliveries", params=params), DeliveriesPage)

    def redeliver(self, delivery: str) -> DeliveryView:
        """Queues *delivery* again."""
        path = f"/webhooks/deliveries/{quote(delivery, safe='')}/redeliver"
        return decoded(self._requests.send("POST", path), DeliveryView)


def _path(endpoint: str) -> str:
    return f"/webhooks/{quote(endpoint, safe='')}"
