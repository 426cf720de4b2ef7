"""A KV bucket whose entries are of one type.

This file alone handles an entry that cannot be read: it counts and logs the entry, and the reader gets no value. So one
bad entry does not stop the reader of good ones.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, Generic, TypeVar

from msgspec import Struct

from contracts.wire import Unreadable
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from ops.nats.watch import Watch
from ops.telemetry.unreadable import Kind, unreadables

T = TypeVar("T")


class Content(Struct, Generic[T], frozen=True):
    """What the entries of *bucket* hold. *decode* takes key and bytes, and raises Unreadable.

    An entry that cannot be read is counted as *kind*.
    """

    bucket: str
    kind: Kind
    encode: Callable[[T], bytes]
    decode: Callable[[str, bytes], T]


class _Undecoded:
    pass


_UNDECODED: Final = _Undecoded()


class Versioned(Generic[T]):
    """The entry at *key* at one *revision*, stored at *time* by the server's clock.

    The value is decoded once, when it is first asked for. A reader that sees by the revision that it knows the entry
    already pays nothing.
    """

    __slots__ = ("_content", "_entry", "_reports", "_value")

    def __init__(self, content: Content[T], entry: Entry, *, reports: bool = True) -> None:
        """*reports*: whether an entry that cannot be read is counted and logged."""
        self._content, self._entry, self._reports = content, entry, reports
        self._value: T | _Undecoded | None = _UNDECODED

    @property
    def key(self) -> str:
        return self._entry.key

    @property
    def revision(self) -> int:
        return self._entry.revision

    @property
    def time(self) -> datetime:
        return self._entry.time

    @property
    def raw(self) -> bytes | None:
        """The stored bytes; None for a deletion marker."""
        return self._entry.value

    @property
    def is_deleted(self) -> bool:
        """Whether the entry is a deletion marker."""
        return self._entry.value is None

    @property
    def value(self) -> T | None:
        """What the entry says; None for a deletion marker, and for an entry that cannot be read."""
        if isinstance(self._value, _Undecoded):
            self._value = self._decoded()
        return self._value

    def _decoded(self) -> T | None:
        if self._entry.value is None:
            return None
        try:
            return self._content.decode(self._entry.key, self._entry.value)
        except Unreadable as error:
            if self._reports:
                unreadables.report(self._content.kind, self._entry.key, error, revision=self._entry.revision)
            return None


class Bucket(Generic[T]):
    """The entries of one bucket, as *link* reads and writes them.

    Without *reports* it skips an entry that cannot be read, without counting or logging it. That is for commands, and
    for processes beside a gateway that reports the same entry. Every method raises TransportUnavailable when the
    outcome is unknown.
    """

    def __init__(self, link: NatsLink, content: Content[T], *, reports: bool = True) -> None:
        self._link, self._content, self._reports = link, content, reports

    def _versioned(self, entry: Entry) -> Versioned[T]:
        return Versioned(self._content, entry, reports=self._reports)

    async def get(self, key: str) -> Versioned[T] | None:
        """The entry at *key*, from the bucket's leader; None where there is none, not even a deletion marker."""
        entry = await self._link.entries.get(self._content.bucket, key)
        return None if entry is None else self._versioned(entry)

    async def entries(self) -> list[Versioned[T]]:
        """The newest entry of every key, deletion markers too, in the order in which they were written."""
        found: list[Versioned[T]] = []
        await (await self.watch(found.append)).wait()
        return found

    async def watch(
        self,
        on_change: Callable[[Versioned[T]], None],
        *,
        history: bool = False,
        on_again: Callable[[], None] | None = None,
        on_whole: Callable[[], None] | None = None,
    ) -> Watch:
        """As `Watches.start`. Raises NotFoundError where there is no such bucket."""
        return await self._link.watches.start(
            self._content.bucket,
            lambda entry: on_change(self._versioned(entry)),
            history=history,
            on_again=on_again,
            on_whole=on_whole,
        )

    async def create(self, key: str, value: T) -> int:
        """Stores the first revision of *key* and returns it. Raises WrongRevision when there is one already."""
        return await self.update(key, value, revision=0)

    async def update(self, key: str, value: T, *, revision: int, ttl_s: float | None = None) -> int:
        """Compare-and-set: stores *value* if *key* is still at *revision* (0: it has none), and returns the new one.

        With *ttl_s* (whole seconds) the entry expires unless it is stored again. Raises WrongRevision.
        """
        encoded = self._content.encode(value)
        return await self._link.entries.update(self._content.bucket, key, encoded, revision=revision, ttl_s=ttl_s)

    async def put(self, key: str, value: T, *, message_id: str | None = None) -> int:
        """Stores *value*, whatever was there, and returns the new revision. Of writes with the same *message_id* within
        two minutes the server stores the first."""
        encoded = self._content.encode(value)
        return await self._link.entries.put(self._content.bucket, key, encoded, message_id=message_id)

    async def delete(self, key: str, *, revision: int) -> int:
        """Puts a deletion marker at *key* if it is still at *revision*, and returns the marker's. Raises
        WrongRevision."""
        return await self._link.entries.delete(self._content.bucket, key, revision=revision)

    async def purge(self, key: str, *, revision: int | None = None) -> None:
        """Removes *key* with its history, in one write, and leaves a deletion marker. With *revision* it does so only
        if the key is still at that one. Raises WrongRevision."""
        await self._link.entries.purge(self._content.bucket, key, revision=revision)
