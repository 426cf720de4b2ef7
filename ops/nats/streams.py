"""The streams of the server: which exist, how far each has come, and how full it is."""

from datetime import datetime
from typing import Any

import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.client import JetStreamContext
from nats.js.manager import JetStreamManager

from contracts.nesting import loads
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.clock import parse_time
from ops.nats.errors import TransportUnavailable, translated
from ops.nats.stream_proof import StreamState


class Depth(Struct, frozen=True):
    """What a stream holds and may hold, as the server counts: 0 is no limit. *oldest_at* is None when it is empty."""

    messages: int
    max_msgs: int
    max_age_s: float
    oldest_at: datetime | None


class Usage(Struct, frozen=True):
    """What is stored in all streams together, and the limit that the server reports; 0 is no limit."""

    used_bytes: int
    limit_bytes: int


class ServerStreams:
    """All streams, those of buckets too."""

    def __init__(self, client: NatsClient, js: JetStreamContext) -> None:
        self._client, self._js = client, js

    @property
    def manager(self) -> JetStreamManager:
        """Makes, shows and changes streams and consumers. It is for provisioning, which deals with their settings."""
        return self._js

    async def exists(self, stream: str) -> bool:
        """Whether the server has *stream*. Raises TransportUnavailable."""
        try:
            await self.state(stream)
        except nats.js.errors.NotFoundError:
            return False
        return True

    async def has_leader(self, stream: str) -> bool:
        """Whether the server reports the state of *stream* now; in a cluster the leader of the stream does so."""
        try:
            await self.state(stream)
        except (TransportUnavailable, nats.errors.Error):
            return False
        return True

    async def state(self, stream: str) -> StreamState:
        """When *stream* was made, and how far it has come. Raises NotFoundError, TransportUnavailable."""
        with translated(stream):
            info = await self._info(stream)
            if "error" in info:
                nats.js.errors.APIError.from_error(info["error"])
        state = info["state"]
        return StreamState(info["created"], state["last_seq"], state.get("first_seq", 0), state.get("num_subjects", 0))

    async def depth(self, stream: str) -> Depth:
        """How full *stream* is. Raises TransportUnavailable."""
        with translated(stream):
            info = await self._info(stream)
        if "state" not in info:
            raise TransportUnavailable(f"{stream}: {info.get('error', {}).get('description', 'no such stream')}")
        state, config = info["state"], info["config"]
        return Depth(
            messages=state["messages"],
            max_msgs=max(0, config["max_msgs"]),
            max_age_s=config["max_age"] / 1e9,
            oldest_at=parse_time(state["first_ts"]) if state["messages"] else None,
        )

    async def _info(self, stream: str) -> Any:
        reply = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=REPLY_TIMEOUT_S)
        return loads(reply.data)

    async def usage(self) -> Usage:
        """How much JetStream has stored, and may store by the account's limit. Raises TransportUnavailable."""
        with translated("storage"):
            reply = await self._client.request("$JS.API.INFO", timeout=REPLY_TIMEOUT_S)
        info = loads(reply.data)
        if "storage" not in info:
            raise TransportUnavailable(f"storage: {info.get('error', {}).get('description', 'no figures')}")
        return Usage(info["storage"], max(0, info.get("limits", {}).get("max_storage", 0)))

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects of *stream* that match *pattern* and hold a message. Raises TransportUnavailable."""
        try:
            with translated(stream):
                return list((await self._js.stream_info(stream, subjects_filter=pattern)).state.subjects or ())
        except nats.js.errors.APIError as error:
            raise TransportUnavailable(f"{stream}: {error.description}") from error

    async def remove(self, stream: str) -> None:
        """Removes *stream* with all that it holds. Raises NotFoundError, TransportUnavailable."""
        with translated(stream):
            await self._js.delete_stream(stream)
