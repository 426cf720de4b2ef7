"""Core NATS: messages that no stream stores, among processes and to the server's own API."""

import contextlib
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ops.nats.client import NatsClient
from ops.nats.errors import translated


class Core:
    """Messages that reach only the processes that are subscribed at that moment."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Sends *payload* on *subject* to the present subscribers. The sender does not learn whether it arrived."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(subject, payload)

    async def subscribe(self, subjects: str, on_message: Callable[[str, bytes], None]) -> None:
        """Calls *on_message* with subject and payload of whatever is published on *subjects* from now on.

        Raises TransportUnavailable.
        """

        async def receive(message: Msg) -> None:
            on_message(message.subject, message.data)

        with translated(subjects):
            await self._client.subscribe(subjects, cb=receive)

    async def answer(self, subjects: str, knows: Callable[[str], bool]) -> None:
        """From now on answers yes to a request on *subjects* when *knows* returns true for its subject. Other requests
        get no answer.

        Raises TransportUnavailable.
        """

        async def receive(question: Msg) -> None:
            if knows(question.subject):
                await question.respond(b"yes")

        with translated(subjects):
            await self._client.subscribe(subjects, cb=receive)

    async def ask(self, subject: str, *, timeout_s: float) -> bool:
        """Whether some process answers within *timeout_s*. Raises TransportUnavailable when it could not ask."""
        with translated(subject):
            try:
                await self._client.request(subject, timeout=timeout_s)
            except (TimeoutError, nats.errors.NoRespondersError):
                return False
        return True

    async def request(self, subject: str, payload: bytes, *, timeout_s: float, about: str) -> Msg:
        """The answer to *payload* on *subject*. *about* is what an error names.

        Raises TransportUnavailable when no answer came within *timeout_s*.
        """
        with translated(about):
            return await self._client.request(subject, payload, timeout=timeout_s)

    async def inbox(self, *, about: str) -> tuple[str, Subscription]:
        """A subject that is this connection's own, and a subscription to it. *about* is what an error names.

        Raises TransportUnavailable.
        """
        with translated(about):
            subject = self._client.new_inbox()
            return subject, await self._client.subscribe(subject)
