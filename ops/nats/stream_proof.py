"""Whether a stream is still the one that was followed, and still holds what it held (ADR 0030)."""

from collections.abc import Iterable
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from msgspec import Struct


class StreamState(Struct, frozen=True):
    """When the stream was made, as the server writes it; the last sequence that it gave; the first sequence that it
    still has; and how many subjects it holds. Once it is emptied, *first_seq* is one more than *last_seq*."""

    created: str
    last_seq: int
    first_seq: int = 0
    subjects: int = 0


class Mark(Struct, frozen=True):
    """Something that the stream holds for sure: a message that came from there, with its time, or one that the server
    acked, with its content."""

    seq: int
    time: datetime | None = None
    content: bytes | None = None


class There(Struct, frozen=True):
    """The message that stands at a mark's sequence now."""

    time: datetime
    content: bytes


class Verdict(Enum):
    """What a watch finds out about its stream after an interruption."""

    SAME = auto()
    WENT_BACK = auto()
    UNPROVEN = auto()


def judged(*, made_at: str | None, mark: Mark | None, state: StreamState, there: There | None) -> Verdict:
    """Whether the stream in *state* is the one that was followed, and still holds all that was known of it. Pure.

    The stream that was followed was made at *made_at*. *there* is the message at the sequence of *mark* now.

    1. The stream was made at another time: it is another stream.
    2. It has not come as far as *mark*: it lost what came last.
    3. Another message is there: the stream lost what came last, and others have written since.
    4. The message of *mark* is there: nothing before it can be lost.
    5. No message is there: that of *mark* was replaced by a newer one of its key, or has expired, or was lost. That
       proves nothing.
    """
    if made_at is not None and made_at != state.created:  # 1
        return Verdict.WENT_BACK
    if mark is None:
        return Verdict.UNPROVEN
    if state.last_seq < mark.seq:  # 2
        return Verdict.WENT_BACK
    if there is None:  # 5
        return Verdict.UNPROVEN
    is_same = there.time == mark.time if mark.time is not None else there.content == mark.content
    return Verdict.SAME if is_same else Verdict.WENT_BACK  # 4, 3


def was_emptied(*, standing: int | None, lately: Iterable[int], before: StreamState, now: StreamState) -> bool:
    """Whether something is gone without a message, as after a purge. Pure. The stream was in the state *before* at the
    last look, and is in the state *now*.

    1. It has fewer subjects than *standing*, the number of keys that had a value by what was reported before this look.
    2. *standing* is None, since nobody counts the keys of a large bucket: nothing is left of what it held before.
    3. The same: an entry that was reported *lately* (*lately* has revisions) is older than all that it holds.
    """
    if standing is not None:  # 1
        return now.subjects < standing
    if 0 < before.first_seq <= before.last_seq < now.first_seq:  # 2; one that was never written to begins at 0
        return True
    return any(revision < now.first_seq for revision in lately)  # 3


class StreamSource(Protocol):
    """What the proof needs of the connection."""

    @property
    def cuts(self) -> int:
        """How often the connection broke."""

    async def stream_state(self, stream: str) -> StreamState:
        """Raises when there is no such stream, or no answer."""

    async def message_at(self, stream: str, seq: int) -> There | None:
        """The message of *stream* at *seq*; None where it is gone. Raises when there is no answer."""


class KnownStream:
    """What is known for sure of *stream* since it was followed, and whether it is the same after an interruption."""

    def __init__(self, source: StreamSource, stream: str) -> None:
        self._source, self._stream = source, stream
        self._cuts = source.cuts
        self._made_at = ""
        self.last: Mark | None = None
        """The message that came last; None where none came since `forget`."""
        self._noted: Mark | None = None
        # the number of breaks when something was noted without a mark
        self._doubted: int | None = None

    def made_at(self, created: str) -> None:
        """The followed stream was made at *created*."""
        self._made_at = created

    def note(self, mark: Mark, cuts: int) -> None:
        """The process knows without a watch that the stream holds *mark*, since it wrote or read that message. When it
        began the call, the connection had broken *cuts* times.

        A call after a break proves nothing about the time before it, and the next break may lose what the call stored.
        """
        if cuts != self._cuts:
            self._doubted = cuts
            return
        if self._noted is None or mark.seq > self._noted.seq:
            self._noted = mark

    def doubt(self) -> None:
        """At the next `judge` no mark proves that the stream is the same."""
        self._doubted = -1  # no break has that number

    def forget(self) -> None:
        """The stream is followed from its start: what was known before no longer counts."""
        self.last = self._noted = None

    async def judge(self) -> tuple[Verdict, StreamState]:
        """What became of the stream, and its state now. Raises what `StreamSource` does."""
        cuts = self._source.cuts
        state = await self._source.stream_state(self._stream)
        mark = max((mark for mark in (self.last, self._noted) if mark is not None), key=_seq, default=None)
        there = None
        if mark is not None and mark.seq <= state.last_seq:
            there = await self._source.message_at(self._stream, mark.seq)
        verdict = judged(made_at=self._made_at, mark=mark, state=state, there=there)
        if verdict is Verdict.SAME and self._doubted not in (None, cuts):
            verdict = Verdict.UNPROVEN
        self._cuts, self._doubted = cuts, None
        return verdict, state


def _seq(mark: Mark) -> int:
    return mark.seq
