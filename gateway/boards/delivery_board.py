"""The deliveries of webhooks, held in memory by watching KV `deliveries`; their payloads stay on the server."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from heapq import merge
from itertools import islice
from typing import Any, Final, get_args

from msgspec.structs import replace
from sortedcontainers import SortedList

from contracts.webhooks import DeliveryStatus, WebhookDelivery
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import WEBHOOK_DELIVERIES
from ops.nats.link import NatsLink
from ops.nats.watch import Watch

STATUSES: Final[tuple[DeliveryStatus, ...]] = get_args(DeliveryStatus)
_EVERYBODY: Final = None


class DeliveryBoard:
    """Every delivery, without its payload. `start` it before use."""

    def __init__(self) -> None:
        self._known: dict[str, WebhookDelivery] = {}
        self._revisions: dict[str, int] = {}
        self._of_task: dict[str, set[str]] = {}
        self._written: dict[str, datetime] = {}  # in the order in which they were written last
        self._shelves: dict[tuple[str | None, DeliveryStatus], Any] = {}  # SortedLists of when it was made, and its id
        self.on_change: Callable[[WebhookDelivery], None] = lambda _: None
        """Called with every delivery that is new or has changed."""
        self.gone = 0
        """How many deliveries the server no longer has, other than by age: it may lose its last writes."""
        self._watch: Watch

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        self._watch = await Bucket(link, WEBHOOK_DELIVERIES).watch(self.on_entry, on_again=self._revisions.clear)
        await self._watch.wait()

    def news_age_s(self) -> float:
        """The greatest age of what is in memory, in seconds; 0 while every change arrives at once."""
        return self._watch.age_s()

    def on_entry(self, entry: Versioned[WebhookDelivery]) -> None:
        """A delivery was made, or has changed."""
        if entry.value is None:
            self.gone += entry.key in self._known
            self._forget(entry.key)
        else:
            self.take_in(entry.value, entry.revision, entry.time)

    def take_in(self, delivery: WebhookDelivery, revision: int, written_at: datetime) -> None:
        """*delivery* was read or written; an older revision than the known one changes nothing."""
        if self._revisions.get(delivery.id, 0) >= revision:
            return
        self._forget(delivery.id)
        known = replace(delivery, payload="")
        self._known[delivery.id], self._revisions[delivery.id] = known, revision
        self._written[delivery.id] = written_at
        self._of_task.setdefault(known.task_id, set()).add(known.id)
        for shelf in self._shelves_of(known):
            shelf.add((known.made_at, known.id))
        self.on_change(known)

    def get(self, delivery: str) -> WebhookDelivery | None:
        """The delivery of that id, without its payload, if there is one."""
        return self._known.get(delivery)

    def __contains__(self, delivery: str) -> bool:
        return delivery in self._known

    def of_tasks(self, task_ids: Collection[str]) -> list[str]:
        """The ids of the deliveries of those tasks."""
        return [each for task_id in task_ids for each in self._of_task.get(task_id, ())]

    def tells(self, task_id: str, event: str, url: str) -> bool:
        """Whether there is a delivery of *event* of that task to *url*, in whatever status."""
        found = (self._known[each] for each in self._of_task.get(task_id, ()))
        return any((each.event, each.url) == (event, url) for each in found)

    def pending(self) -> Iterator[WebhookDelivery]:
        """Those that are to be sent, oldest first."""
        for _, delivery in tuple(self._shelves.get((_EVERYBODY, "pending"), ())):
            yield self._known[delivery]

    def count(self, status: DeliveryStatus) -> int:
        """How many are in *status*."""
        return len(self._shelves.get((_EVERYBODY, status), ()))

    def newest(
        self, caller: str | None, *, status: DeliveryStatus | None, endpoint: str | None, limit: int
    ) -> list[WebhookDelivery]:
        """At most *limit* deliveries of *caller*, or of everybody, that match; newest first. None matches all."""
        statuses = STATUSES if status is None else (status,)
        shelves = [reversed(self._shelves.get((caller, each), ())) for each in statuses]
        found = (self._known[delivery] for _, delivery in merge(*shelves, reverse=True))
        return list(islice((each for each in found if endpoint in (None, each.endpoint)), limit))

    def most_overdue_s(self, now: datetime) -> float:
        """How long the most overdue delivery has been due; 0 without any."""
        due = [each.next_at for each in self.pending() if each.next_at is not None and each.next_at < now]
        return max(((now - at).total_seconds() for at in due), default=0.0)

    def drop_expired(self, *, ttl_s: float, now: datetime) -> None:
        """Forgets what the server has dropped by age; the server sends no message about that."""
        oldest = now - timedelta(seconds=ttl_s)
        while self._written:
            delivery, written_at = next(iter(self._written.items()))
            if written_at >= oldest:
                return
            self._forget(delivery)

    def _forget(self, delivery: str) -> None:
        known = self._known.pop(delivery, None)
        self._revisions.pop(delivery, None)
        self._written.pop(delivery, None)
        if known is not None:
            for shelf in self._shelves_of(known):
                shelf.discard((known.made_at, known.id))
            of_task = self._of_task[known.task_id]
            of_task.discard(known.id)
            if not of_task:
                del self._of_task[known.task_id]

    def _shelves_of(self, delivery: WebhookDelivery) -> Iterator[Any]:
        for caller in (_EVERYBODY, delivery.caller):
            yield self._shelves.setdefault((caller, delivery.status), SortedList())
