"""Makes, reads and revokes the API keys in KV `keys`. Every gateway watches the bucket, and obeys within a second."""

import contextlib
import secrets
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.keys import (
    DEFAULT_BURST_S,
    DEFAULT_RATE_PER_S,
    SCOPES,
    SECRET_BYTES,
    ApiKey,
    Presented,
    Scope,
    sha256_of,
)
from contracts.tasks import Priority
from contracts.topology import DAY_S, KEYS, bucket_stream
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import API_KEYS
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import NotProvisioned

ID_BYTES: Final = 6
# A gateway remembers the time of every request in a burst.
BURST_MAX: Final = 100_000
# How long an operator can look up whose a revoked key was. A key without an entry lets nobody in either.
REVOKED_KEPT_S: Final = 30 * DAY_S


class NoSuchKey(Exception):
    """There is nothing to revoke. The text says why."""


class StoredKey(Struct, frozen=True):
    """What KV `keys` holds: the keys, oldest first, and the names of entries that cannot be read and let nobody in.

    *was_one_made*: somebody has made a key at some time. A gateway then refuses callers without a key, even on the
    loopback and even when no key is in force any more.
    """

    keys: tuple[ApiKey, ...]
    unreadable: tuple[str, ...]
    was_one_made: bool

    @property
    def in_force(self) -> tuple[ApiKey, ...]:
        """The keys that were not revoked."""
        return tuple(key for key in self.keys if key.revoked_at is None)

    @property
    def revoked(self) -> tuple[ApiKey, ...]:
        """The keys that were revoked."""
        return tuple(key for key in self.keys if key.revoked_at is not None)


async def read_keys(link: NatsLink) -> StoredKey:
    """Every key that was made. Raises NotProvisioned, TransportUnavailable."""
    entries = {entry.key: entry for entry in await (await _bucket(link)).entries()}
    keys = [entry.value for entry in entries.values() if entry.value is not None]
    unreadable = [name for name, entry in entries.items() if entry.value is None and not entry.is_deleted]
    keys.sort(key=lambda key: (key.created_at, key.id))
    return StoredKey(tuple(keys), tuple(sorted(unreadable)), bool(entries))


async def add(
    link: NatsLink,
    caller: str,
    scopes: tuple[Scope, ...],
    *,
    rate_per_s: float | None = DEFAULT_RATE_PER_S,
    burst_s: int = DEFAULT_BURST_S,
    highest_priority: Priority = Priority.INTERACTIVE,
    max_waiting: int | None = None,
    max_running: int | None = None,
    now: datetime,
) -> Presented:
    """Makes a key and returns the only copy of its secret. Raises NotProvisioned, TransportUnavailable."""
    bucket = await _bucket(link)
    while True:
        presented = Presented(secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES))
        key = ApiKey(
            id=presented.id,
            caller=caller,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            secret_sha256=sha256_of(presented.secret),
            created_at=now,
            rate_per_s=rate_per_s,
            burst_s=burst_s,
            highest_priority=highest_priority,
            max_waiting=max_waiting,
            max_running=max_running,
        )
        try:
            await bucket.create(key.id, key)
        except WrongRevision:
            continue  # the id is taken
        return presented


async def revoke(link: NatsLink, key_id: str, *, now: datetime) -> ApiKey:
    """Revokes the key: from now on it lets nobody in. Returns the key as it was before. A key that was revoked already
    stays as it is.

    Raises NoSuchKey, NotProvisioned, TransportUnavailable.
    """
    bucket = await _bucket(link)
    while True:
        entry: Versioned[ApiKey] | None = None
        with contextlib.suppress(ValueError):  # a text that cannot be an id
            entry = await bucket.get(key_id)
        if entry is None or entry.is_deleted:
            raise NoSuchKey(f"no key has the id {key_id!r}; `warmlane keys list` shows them")
        key = entry.value
        if key is None:
            raise NoSuchKey(
                f"the entry {key_id} cannot be read and lets nobody in; `nats kv del keys {key_id}` removes it"
            )
        if key.revoked_at is not None:
            return key
        try:
            await bucket.update(key_id, replace(key, revoked_at=now), revision=entry.revision)
        except WrongRevision:
            continue
        return key


async def forget_revoked(link: NatsLink, *, now: datetime) -> int:
    """Removes keys that were revoked REVOKED_KEPT_S ago or earlier, and returns how many. A deletion marker stays: it
    keeps a gateway from serving callers without a key again.

    Raises NotProvisioned, TransportUnavailable.
    """
    bucket, removed = await _bucket(link), 0
    for key in (await read_keys(link)).revoked:
        entry = await bucket.get(key.id) if is_to_go(key, now) else None
        if entry is not None and not entry.is_deleted:
            with contextlib.suppress(WrongRevision):
                await bucket.delete(key.id, revision=entry.revision)
                removed += 1
    return removed


def is_to_go(key: ApiKey, now: datetime) -> bool:
    """Whether *key* was revoked REVOKED_KEPT_S ago or earlier. Pure."""
    return key.revoked_at is not None and (now - key.revoked_at).total_seconds() >= REVOKED_KEPT_S


async def _bucket(link: NatsLink) -> Bucket[ApiKey]:
    if not await link.streams.exists(bucket_stream(KEYS)):
        raise NotProvisioned("the server lacks the bucket keys; run `warmlane provision`")
    return Bucket(link, API_KEYS, reports=False)
