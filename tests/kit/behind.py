"""What a `NatsLink` hides: with it tests look at streams directly, and break the connection below the link."""

from nats.js.client import JetStreamContext

from ops.nats.client import NatsClient
from ops.nats.link import NatsLink


def js_of(link: NatsLink) -> JetStreamContext:
    """nats-py's JetStream on the connection of *link*."""
    return link.streams._js


def client_of(link: NatsLink) -> NatsClient:
    """The connection of *link*."""
    return link.connection._client


async def until_subscribed(link: NatsLink) -> None:
    """Returns once the server has every subscription of *link*.

    nats-py's `flush` does not say so: its PING overtakes a SUB that waits to be written. A question waits behind it.
    """
    await client_of(link).request("$JS.API.INFO", timeout=20)
