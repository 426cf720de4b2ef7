"""What a `NatsLink` hides: tests look at streams behind its back, and break what it stands on."""

from nats.js.client import JetStreamContext

from ops.nats.client import NatsClient
from ops.nats.link import NatsLink


def js_of(link: NatsLink) -> JetStreamContext:
    """nats-py's JetStream on the connection of *link*."""
    return link.streams._js


def client_of(link: NatsLink) -> NatsClient:
    """The connection of *link*."""
    return link.connection._client
