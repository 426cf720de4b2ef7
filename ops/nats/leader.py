"""Leader election among several processes, by a key that expires (KV `leader`, design §3, §10.9).

One degraded worker serves the degraded queue; one gateway delivers webhooks. The key of the degraded queue says which
worker may fetch. It does not guard a card: the lock of the slot does (design §7). A new leader shows that lock its
*term*, to put aside the pipeline host of a leader that was suspended.
"""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog
from msgspec import Struct
from msgspec.structs import replace

from contracts.lanes import Leadership
from contracts.order import OrderState
from contracts.topology import LEADER_KEY, LEADER_REFRESH_S, LEADER_TTL_S
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import LEADERSHIPS
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.telemetry.seldom import Seldom
from ops.waiting import set_within

# Standbys also read the key themselves, this often, in case a watch delivers nothing.
POLL_S: Final = LEADER_TTL_S
RETRY_S: Final = 0.2

log = structlog.get_logger("leader")


class Standing(Struct, frozen=True, kw_only=True):
    """A leadership that this process took. *term* is the revision at which it took the key, and grows with every new
    leader.

    The key was stored at *revision*, at *sent_s* (monotonic seconds) or later.
    """

    term: int
    revision: int
    sent_s: float


def leads(standing: Standing | None, *, now_s: float) -> bool:
    """Whether the key is surely still ours: it was stored less than its time to live ago. Pure.

    The time counts from when the refresh was sent, so that a leader stops leading before the server expires its key. A
    process that was suspended or disconnected finds out here, not from the server.
    """
    return standing is not None and now_s < standing.sent_s + LEADER_TTL_S


def vacancy(entry: Versioned[Leadership] | None, *, owner: str) -> int | None:
    """The revision over which *owner* may take the key; None while somebody else has it. Pure.

    1. There is no entry: 0, as for a create.
    2. A marker is there, since the key expired or was given back: over the marker (a create fails there, design
       §10.7).
    3. The entry is *owner*'s own, from a take whose answer was lost: over that one.
    4. The entry cannot be read: over that one, since no worker of ours holds it, and it may never expire.
    """
    if entry is None:  # 1
        return 0
    if entry.value is None or entry.value.owner == owner:  # 2, 4, 3
        return entry.revision
    return None


class Leader:
    """The candidacy of one process for one *key*. In turn: `campaign`, then `hold` while it leads, then `resign`."""

    def __init__(
        self,
        link: NatsLink,
        *,
        worker: str,
        owner: str,
        slot: str = "",
        key: str = LEADER_KEY,
        order: Callable[[], OrderState | None] = lambda: None,
        serves_at_once: bool = True,
    ) -> None:
        """*owner* is the nonce of this process; *worker*, and *slot* where it has one, are shown to operators.

        Without *serves_at_once* the key says that this leader does not serve, until `serve` is called.
        """
        self._serves_at_once = serves_at_once
        self._key = key
        self._order = order
        self._bucket = Bucket(link, LEADERSHIPS, reports=False)
        self._worker, self._owner, self._slot = worker, owner, slot
        self._standing: Standing | None = None
        self._leadership: Leadership
        self._vacant = asyncio.Event()
        self._news = asyncio.Event()
        self._seldom = Seldom()
        link.connection.on_reconnect(self._vacant.set)

    @property
    def term(self) -> int:
        """The term of the last leadership; 0 before the first."""
        return 0 if self._standing is None else self._standing.term

    def is_leader(self, now_s: float) -> bool:
        """Whether this process leads at *now_s* (monotonic). Ask before every fetch."""
        return leads(self._standing, now_s=now_s)

    async def start(self) -> None:
        """Watches the key, so that a standby learns at once when the key goes. Raises TransportUnavailable."""
        await self._bucket.watch(self._on_change)

    def _on_change(self, entry: Versioned[Leadership]) -> None:
        if entry.key == self._key and entry.is_deleted:
            self._vacant.set()

    async def campaign(self) -> int:
        """Waits until this process leads, for as long as it takes, and returns the term."""
        while True:
            self._vacant.clear()
            try:
                if await self._take():
                    return self.term
            except WrongRevision:
                pass  # another standby was faster
            except TransportUnavailable as error:
                self._seldom.log(log.info, "leader_unknown", error=str(error))
            await set_within(POLL_S, self._vacant)

    async def _take(self) -> bool:
        revision = vacancy(await self._bucket.get(self._key), owner=self._owner)
        if revision is None:
            return False
        self._leadership = Leadership(
            worker=self._worker,
            owner=self._owner,
            slot=self._slot,
            pid=os.getpid(),
            since=datetime.now(UTC),
            serves=self._serves_at_once,
        )
        sent_s = time.monotonic()
        term = await self._store(revision)
        self._standing = Standing(term=term, revision=term, sent_s=sent_s)
        log.info("leads", key=self._key, worker=self._worker, slot=self._slot, term=term)
        return True

    def serve(self) -> None:
        """From now on the key says that this leader serves; all who watch the key learn it at once."""
        if not self._leadership.serves:
            self._leadership = replace(self._leadership, serves=True)
            self._news.set()

    async def hold(self) -> None:
        """Refreshes the key every LEADER_REFRESH_S; returns when this process no longer leads."""
        while (standing := self._standing) is not None and leads(standing, now_s=time.monotonic()):
            await set_within(max(0.0, standing.sent_s + LEADER_REFRESH_S - time.monotonic()), self._news)
            self._news.clear()
            try:
                sent_s = time.monotonic()
                revision = await self._store(standing.revision)
                self._standing = replace(standing, revision=revision, sent_s=sent_s)
            except WrongRevision:
                await self._look_again(standing)
            except TransportUnavailable as error:
                self._seldom.log(log.warning, "leader_not_refreshed", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _look_again(self, standing: Standing) -> None:
        """The key has a newer revision: a refresh of ours whose answer was lost, or the end of the leadership."""
        try:
            entry = await self._bucket.get(self._key)
        except TransportUnavailable:
            return  # tried again by the next refresh
        if entry is not None and entry.value is not None and entry.value.owner == self._owner:
            self._standing = replace(standing, revision=entry.revision)
        else:
            self._standing = None

    async def resign(self) -> None:
        """Gives the key back, if it is still ours: a standby takes it at once. Never raises; it expires anyway."""
        log.info("leads_no_more", key=self._key, worker=self._worker)
        self._standing = None
        try:
            entry = await self._bucket.get(self._key)
            if entry is not None and entry.value is not None and entry.value.owner == self._owner:
                await self._bucket.delete(self._key, revision=entry.revision)
        except WrongRevision:
            return  # it expired just now, and has another owner
        except TransportUnavailable as error:
            log.info("not_resigned", error=str(error))

    async def _store(self, revision: int) -> int:
        leadership = replace(self._leadership, order=self._order())
        # An answer that takes longer than this is not worth waiting for: the next refresh finds out.
        try:
            async with asyncio.timeout(LEADER_REFRESH_S):
                return await self._bucket.update(self._key, leadership, revision=revision, ttl_s=LEADER_TTL_S)
        except TimeoutError:
            raise TransportUnavailable(f"no answer within {LEADER_REFRESH_S:g} s") from None
