"""A nats-server with JetStream, as far as the protocol uses it (design §3, §10). Pure: the time is an argument.

test_conformance.py compares it with the real server. It gets the same configurations that `ops/nats/provisioning.py`
sends to the real one. Times are seconds of one clock, whose zero is `EPOCH`.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

EPOCH: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

_STREAM_FULL: Final = 10077
_WRONG_LAST_SEQUENCE: Final = 10071
NO_MESSAGE: Final = 10037
_NO_STREAM: Final = 10059
_NO_CONSUMER: Final = 10014


class Refused(Exception):
    """The server refuses, and has changed nothing."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code, self.err_code, self.description = code, err_code, description


class Stored:
    """A message of a stream."""

    __slots__ = ("data", "headers", "seq", "stored_s", "subject")

    def __init__(self, seq: int, subject: str, data: bytes, headers: dict[str, str], stored_s: float) -> None:
        self.seq, self.subject, self.data, self.headers, self.stored_s = seq, subject, data, headers, stored_s


class Consumer:
    """A durable pull consumer with explicit acks and no limit of deliveries."""

    def __init__(self, config: ConsumerConfig, stream: "Stream") -> None:
        self.config = config
        self._stream = stream
        self._matches = matcher([config.filter_subject or ">"])
        self._ack_wait_s = config.ack_wait or 30.0
        # sequences that were never delivered, in their order
        self._new: dict[int, None] = {}
        # sequence -> when it is redelivered unless it is acked
        self._unacked: dict[int, float] = {}
        # sequence -> how often it was delivered
        self._delivered: dict[int, int] = {}

    def add(self, message: Stored) -> None:
        if self._matches(message.subject):
            self._new[message.seq] = None

    def state(self) -> tuple[dict[int, None], dict[int, float]]:
        return dict(self._new), dict(self._unacked)

    def go_back(self, state: tuple[dict[int, None], dict[int, float]]) -> None:
        self._new, self._unacked = dict(state[0]), dict(state[1])

    def forget(self, seq: int) -> None:
        """The message is gone from the stream."""
        self._new.pop(seq, None)
        self._unacked.pop(seq, None)
        self._delivered.pop(seq, None)

    def fetch(self, batch: int, now_s: float) -> list[Stored]:
        """Up to *batch* messages: those whose ack is overdue, then new ones."""
        overdue = [seq for seq, again_s in self._unacked.items() if again_s <= now_s]
        seqs = [*overdue, *self._new][:batch]
        for seq in seqs:
            self._new.pop(seq, None)
            self._unacked[seq] = now_s + self._ack_wait_s
            self._delivered[seq] = self.delivered(seq) + 1
        return [self._stream.messages[seq] for seq in seqs]

    @property
    def pending(self) -> int:
        """How many messages were never delivered."""
        return len(self._new)

    def delivered(self, seq: int) -> int:
        """How often the message was delivered."""
        return self._delivered.get(seq, 0)

    def has_messages(self, now_s: float) -> bool:
        """Whether `fetch` would bring any."""
        return bool(self._new) or any(again_s <= now_s for again_s in self._unacked.values())

    def next_event_s(self, after_s: float) -> float | None:
        """The first moment after *after_s* at which an unacked message becomes due for redelivery."""
        return min((at_s for at_s in self._unacked.values() if at_s > after_s), default=None)

    def ack(self, seq: int) -> None:
        """Always succeeds, even if the message has expired: success proves nothing (design §10.2)."""
        if seq in self._unacked:
            self._stream.remove(seq)

    def keep(self, seq: int, now_s: float) -> None:
        """The worker is still busy with the message: it is redelivered `ack_wait` from now."""
        if seq in self._unacked:
            self._unacked[seq] = now_s + self._ack_wait_s

    def nak(self, seq: int, now_s: float) -> None:
        if seq in self._unacked:
            self._unacked[seq] = now_s


class StreamCopy(NamedTuple):
    """What a stream has stored at a moment."""

    messages: dict[int, Stored]
    last_seq: int
    by_subject: dict[str, list[int]]
    known_ids: dict[str, tuple[int, float]]
    consumers: dict[str, tuple[dict[int, None], dict[int, float]]]


class Stream:
    """A stream, or the one behind a bucket."""

    def __init__(self, config: StreamConfig) -> None:
        self.config = config
        self.name = str(config.name)
        self.created = moment(0.0).isoformat().replace("+00:00", "Z")
        self.messages: dict[int, Stored] = {}
        self.last_seq = 0
        self.consumers: dict[str, Consumer] = {}
        self.on_stored: list[Callable[[Stored], None]] = []
        self.on_removed: list[Callable[[Stored], None]] = []
        self._by_subject: dict[str, list[int]] = {}
        self._known_ids: dict[str, tuple[int, float]] = {}
        # how late the server expires messages, as was measured on the real one
        self.expiry_late_s = 0.0

    def state(self) -> "StreamCopy":
        """All that is stored, to go back to."""
        by_subject = {subject: list(seqs) for subject, seqs in self._by_subject.items()}
        consumers = {name: consumer.state() for name, consumer in self.consumers.items()}
        return StreamCopy(dict(self.messages), self.last_seq, by_subject, dict(self._known_ids), consumers)

    def go_back(self, copy: "StreamCopy") -> None:
        """Loses what was stored since *copy*, as in a power cut."""
        self.messages, self.last_seq = dict(copy.messages), copy.last_seq
        self._by_subject = {subject: list(seqs) for subject, seqs in copy.by_subject.items()}
        self._known_ids = dict(copy.known_ids)
        for name, consumer in self.consumers.items():
            consumer.go_back(copy.consumers[name])

    def make_anew(self, now_s: float) -> None:
        """The stream is removed, and made anew with the same configuration."""
        self.go_back(StreamCopy({}, 0, {}, {}, dict.fromkeys(self.consumers, ({}, {}))))
        self.created = moment(now_s).isoformat().replace("+00:00", "Z")

    def last_on(self, subject: str) -> Stored | None:
        """The newest message on *subject*."""
        seqs = self._by_subject.get(subject)
        return self.messages[seqs[-1]] if seqs else None

    def on(self, subject: str) -> list[Stored]:
        """The messages on *subject*, the oldest first."""
        return [self.messages[seq] for seq in self._by_subject.get(subject, ())]

    def last_of_each(self) -> list[Stored]:
        """The newest message of every subject, in the order of their sequences."""
        return [self.messages[seq] for seq in sorted(seqs[-1] for seqs in self._by_subject.values() if seqs)]

    def store(self, subject: str, data: bytes, headers: dict[str, str], now_s: float) -> tuple[int, bool]:
        """The sequence, and whether the message was known before. Raises Refused."""
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None:
            last = self.last_on(subject)
            have = 0 if last is None else last.seq
            # before the duplicate table is asked: a repeated compare-and-set is refused, also with its Nats-Msg-Id
            if have != int(expected):
                raise Refused(400, _WRONG_LAST_SEQUENCE, f"wrong last sequence: {have}")
        message_id = headers.get("Nats-Msg-Id")
        window_s = self.config.duplicate_window or 120.0
        if message_id is not None:
            known = self._known_ids.get(message_id)
            if known is not None and now_s - known[1] < window_s:
                return known[0], True
        limit = self.config.max_msgs or -1
        if self.config.discard == DiscardPolicy.NEW and 0 < limit <= len(self.messages):
            raise Refused(503, _STREAM_FULL, "maximum messages exceeded")
        message = self._append(subject, data, headers, now_s)
        if message_id is not None:
            self._known_ids[message_id] = (message.seq, now_s)
        return message.seq, False

    def _append(self, subject: str, data: bytes, headers: dict[str, str], now_s: float) -> Stored:
        self.last_seq += 1
        message = Stored(self.last_seq, subject, data, headers, now_s)
        self.messages[message.seq] = message
        seqs = self._by_subject.setdefault(subject, [])
        seqs.append(message.seq)
        kept = self.config.max_msgs_per_subject or -1
        if 0 < kept < len(seqs):
            self.remove(seqs[0])
        for consumer in self.consumers.values():
            consumer.add(message)
        for callback in self.on_stored:
            callback(message)
        return message

    def remove(self, seq: int) -> None:
        """Removes the message. The duplicate table still knows it."""
        message = self.messages.pop(seq, None)
        if message is None:
            return
        seqs = self._by_subject[message.subject]
        seqs.remove(seq)
        if not seqs:
            del self._by_subject[message.subject]
        for consumer in self.consumers.values():
            consumer.forget(seq)
        for callback in self.on_removed:
            callback(message)

    def purge(self, subject: str | None = None) -> None:
        for message in list(self.messages.values()) if subject is None else self.on(subject):
            self.remove(message.seq)

    def next_event_s(self, after_s: float) -> float | None:
        """When something happens by itself after *after_s*: an expiry, a redelivery."""
        if not self.messages:
            return None
        moments: list[float] = []
        max_age_s = self.config.max_age
        if max_age_s and self.messages:
            moments.append(next(iter(self.messages.values())).stored_s + max_age_s + self.expiry_late_s)
        for consumer in self.consumers.values():
            again_s = consumer.next_event_s(after_s)
            if again_s is not None:
                moments.append(again_s)
        return min(moments, default=None)

    def pass_time(self, now_s: float) -> None:
        """Expires messages up to *now_s*. A delivered message without an ack expires like any other."""
        if not self.messages:
            return
        max_age_s = self.config.max_age
        if max_age_s:
            while self.messages:
                oldest = next(iter(self.messages.values()))
                if oldest.stored_s + max_age_s + self.expiry_late_s > now_s:
                    break
                self.remove(oldest.seq)


class JetStream:
    """The streams of one server."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self._routes: list[tuple[Callable[[str], bool], Stream]] = []
        self._route_of: dict[str, Stream] = {}

    def add_stream(self, config: StreamConfig) -> None:
        stream = Stream(config)
        assert config.retention in (RetentionPolicy.LIMITS, RetentionPolicy.WORK_QUEUE), config.retention
        self.streams[stream.name] = stream
        self._routes.append((matcher(config.subjects or ()), stream))

    def add_consumer(self, stream: str, config: ConsumerConfig) -> None:
        self.stream(stream).consumers[str(config.durable_name)] = Consumer(config, self.stream(stream))

    def stream(self, name: str) -> Stream:
        """Raises Refused when there is none."""
        if name not in self.streams:
            raise Refused(404, _NO_STREAM, "stream not found")
        return self.streams[name]

    def consumer(self, stream: str, name: str) -> Consumer:
        """Raises Refused when there is none."""
        if name not in self.stream(stream).consumers:
            raise Refused(404, _NO_CONSUMER, "consumer not found")
        return self.streams[stream].consumers[name]

    def publish(self, subject: str, data: bytes, headers: dict[str, str], now_s: float) -> tuple[str, int, bool]:
        """The stream, the sequence, and whether the message was known before. Raises Refused."""
        prefix = subject.rpartition(".")[0]
        stream = self._route_of.get(prefix)
        if stream is None:
            stream = next((stream for takes, stream in self._routes if takes(subject)), None)
            if stream is None:
                raise Refused(503, 0, f"no stream takes {subject}")
            self._route_of[prefix] = stream  # no stream selects by the last token
        seq, is_known = stream.store(subject, data, headers, now_s)
        return stream.name, seq, is_known

    def next_event_s(self, after_s: float) -> float | None:
        moments = [at_s for stream in self.streams.values() if (at_s := stream.next_event_s(after_s)) is not None]
        return min(moments, default=None)

    def pass_time(self, now_s: float) -> None:
        for stream in self.streams.values():
            stream.pass_time(now_s)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a subject matches one of *patterns*: `*` is one token, `>` all that follow."""
    patterns = tuple(patterns)
    if len(patterns) == 1 and not {"*", ">"} & set(patterns[0].split(".")):
        return patterns[0].__eq__
    split = [pattern.split(".") for pattern in patterns]

    def matches(subject: str) -> bool:
        tokens = subject.split(".")
        return any(_matches(pattern, tokens) for pattern in split)

    return matches


def _matches(pattern: list[str], tokens: list[str]) -> bool:
    for position, part in enumerate(pattern):
        if part == ">":
            return len(tokens) > position
        if position >= len(tokens) or part not in ("*", tokens[position]):
            return False
    return len(pattern) == len(tokens)


def moment(clock_s: float) -> datetime:
    """The wall time at *clock_s* of the clock."""
    return EPOCH + timedelta(seconds=clock_s)
