"""Which worker serves the degraded queue, held in memory by watching KV `leader`."""

from datetime import datetime, timedelta

from contracts.lanes import Leadership
from contracts.topology import LEADER_KEY, LEADER_TTL_S
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import LEADERSHIPS
from ops.nats.link import NatsLink


class LeaderBoard:
    """The degraded worker that leads. `start` it before use."""

    def __init__(self) -> None:
        self._leadership: Leadership | None = None
        self._seen_at: datetime | None = None

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        await (await Bucket(link, LEADERSHIPS).watch(self.on_entry)).wait()

    def on_entry(self, entry: Versioned[Leadership]) -> None:
        """The leader of the degraded queue took, kept or lost its place."""
        if entry.key != LEADER_KEY:
            return
        self._seen_at = None if entry.is_deleted else entry.time
        self._leadership = entry.value

    def is_alive(self, now: datetime) -> bool:
        """Whether a worker serves the degraded queue: it leads, and has its slot."""
        if self._leadership is not None and not self._leadership.serves:
            return False
        # the server puts a marker when the key expires; the age is for a marker that the watch missed while it was cut
        return self._seen_at is not None and now - self._seen_at < timedelta(seconds=2 * LEADER_TTL_S)

    def leader(self, now: datetime) -> Leadership | None:
        """The worker that serves the degraded queue; None if none does."""
        return self._leadership if self.is_alive(now) else None
