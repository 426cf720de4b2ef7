"""Keeps what the reader of a bucket was given, so that the reader learns once of every change and of what is gone."""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import structlog
from msgspec import Struct

from ops.nats.entry import Entry
from ops.telemetry.metrics import streams_went_back
from ops.telemetry.unreadable import unreadables

log = structlog.get_logger("nats")


class KnownRevision(Struct, frozen=True):
    """The last entry of a key that the reader was given: its revision, and the server's time of it."""

    revision: int
    time: datetime


def contradicts(given: dict[str, KnownRevision], newest: dict[str, Entry]) -> bool:
    """Whether *newest*, the last entry of every key now, shows that an entry that was *given* is gone. Pure.

    A missing key proves nothing: it may have expired.
    """
    for key, entry in newest.items():
        known = given.get(key)
        if known is not None and (
            entry.revision < known.revision or (entry.revision == known.revision and entry.time != known.time)
        ):
            return True
    return False


def is_news(entry: Entry, given: KnownRevision | None, *, went_back: bool) -> bool:
    """Whether *entry* is new to a reader that was *given* the key's last entry. Pure.

    Where the bucket *went_back*, what was given may be gone: then a lower revision is news, too.
    """
    if given is None or entry.revision > given.revision:
        return True
    return went_back and (entry.revision, entry.time) != (given.revision, given.time)


class Reader:
    """The reader of *bucket*, and what it has been given so far. `Watch` says what the callbacks mean.

    While the bucket is read once more, its entries are held back. The reader then gets them all at once, so that it
    never sees half a bucket. With *on_whole* the bucket is too large for that, and the reader gets every entry as it
    comes.
    """

    def __init__(
        self,
        bucket: str,
        on_change: Callable[[Entry], None],
        on_again: Callable[[], None] | None,
        on_whole: Callable[[], None] | None,
    ) -> None:
        self._bucket, self._on_change, self._on_again, self._on_whole = bucket, on_change, on_again, on_whole
        self._given: dict[str, KnownRevision] = {}
        # the given keys that have a value; of a large bucket only those given since the last look
        self._standing: dict[str, int] = {}
        self._held_back: list[Entry] | None = None
        self.has_lost = False
        """Whether entries that the reader was given may be gone: then everything in the bucket now is news."""

    @property
    def is_behind(self) -> bool:
        """Whether the bucket is being read once more, and the reader still has what was there before."""
        return self._held_back is not None

    def begin_again(self) -> None:
        """The bucket is read once more from its start."""
        self._held_back = []
        if self._on_again is not None and self._on_whole is not None:
            self._on_again()

    def receive(self, entry: Entry, *, is_whole: bool) -> None:
        """*entry* came from the bucket. *is_whole*: everything that was there at the start came before it."""
        if self._held_back is not None and self._on_whole is None:
            self._held_back.append(entry)
        else:
            self._give(entry, is_whole=is_whole)

    def all_is_there(self, revision: int) -> None:
        """All that the bucket held at *revision* has been received."""
        if self._held_back is not None:
            self._give_all(self._held_back, revision)
            self._held_back, self.has_lost = None, False

    def went_back(self) -> None:
        """The server lost what it had stored. Reports that once, and not again until the reader has what is there
        now."""
        if not self.has_lost:
            self.has_lost = True
            streams_went_back.add(self._bucket)
            advice = "nats-server lost what it stored last, or the bucket was made anew: see the runbook"
            log.error("stream_went_back", bucket=self._bucket, advice=advice)

    def standing(self) -> tuple[int | None, list[int]]:
        """How many keys have a value, by what the reader was given. For a large bucket that is None, and the list has
        the revisions that the reader was given since the last `looked`."""
        return (len(self._standing), []) if self._on_whole is None else (None, [*self._standing.values()])

    def looked(self) -> None:
        """The bucket was compared with `standing`."""
        if self._on_whole is not None:
            self._standing.clear()

    def _give(self, entry: Entry, *, is_whole: bool) -> None:
        if self._on_whole is None:
            self._given[entry.key] = KnownRevision(entry.revision, entry.time)
        if entry.value is None:
            self._standing.pop(entry.key, None)
        elif self._on_whole is None or is_whole:
            self._standing[entry.key] = entry.revision
        try:  # and not `_reported`, which costs too much for every entry
            self._on_change(entry)
        except Exception as error:
            _report(error, f"{self._bucket}.{entry.key}", entry.revision)

    @contextlib.contextmanager
    def _reported(self, what: str, revision: int) -> Iterator[None]:
        """Reports what the reader raises at one entry: it still gets the others, and `Watch.wait` still returns."""
        try:
            yield
        except Exception as error:
            _report(error, what, revision)

    def _give_all(self, entries: list[Entry], revision: int) -> None:
        if self._on_whole is not None:
            with self._reported(self._bucket, revision):
                self._on_whole()
            return
        newest = {entry.key: entry for entry in entries}
        if contradicts(self._given, newest):
            self.went_back()
        before, self._given = self._given, {}
        self._standing = {key: entry.revision for key, entry in newest.items() if entry.value is not None}
        is_all_news = self.has_lost and self._on_again is not None
        if is_all_news and self._on_again is not None:
            with self._reported(self._bucket, revision):
                self._on_again()
        now = datetime.now(UTC)
        for key in [key for key in before if key not in newest]:
            with self._reported(f"{self._bucket}.{key}", revision):
                self._on_change(Entry(key, None, revision, now))
        for entry in entries:
            if is_all_news or is_news(entry, before.get(entry.key), went_back=self.has_lost):
                self._give(entry, is_whole=False)
            else:
                self._given[entry.key] = KnownRevision(entry.revision, entry.time)


def _report(error: Exception, what: str, revision: int) -> None:
    # the text of the error may repeat what the entry holds: only its place is reported
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__} in {place.name}, line {place.lineno}"
    unreadables.report("entry", what, reason, revision=revision)
