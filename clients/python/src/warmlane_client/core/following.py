"""A task, followed until it has ended: by its event stream, and by polls where no stream comes through."""

from typing import Any, Final

import msgspec
from msgspec import Struct

from warmlane_client.core import effects
from warmlane_client.core.answers import failure, task_of
from warmlane_client.core.calls import NOT_MODIFIED, answered, task_path
from warmlane_client.core.effects import REPLY_TIMEOUT_S, Call, Flow, NoReply, Open, Pause, Reply, Report, ReportIdle
from warmlane_client.core.events import EventReader
from warmlane_client.core.retries import JITTER_S, RATE_LIMITED, TOO_MANY_REQUESTS, Patience, Tries, lost_pause_s
from warmlane_client.errors import AccessDenied, GatewayBusy, GatewayUnreachable, NotThere, WaitTimedOut
from warmlane_client.models import Task

# The length of a long poll; a gateway holds one for 60 s at most.
WAIT_S: Final = 20.0
# The same for a queued task: moving up in its queue does not end a long poll.
QUEUED_WAIT_S: Final = 1.0
# A stream sends at least a comment every 15 s: one that is silent for longer is dead.
SILENT_S: Final = 35.0
# After this many streams in a row without an event, the task is only polled.
MUTE_STREAMS: Final = 3
# A stream may say nothing for 15 s, so the rest of a bounded wait is polled.
LAST_STRETCH_S: Final = 20.0
NO_CONTENT: Final = 204


class Wait(Struct, frozen=True, kw_only=True):
    """How a task is followed: for at most *timeout_s* (None: without an end), by its event *stream*, or by polls alone.

    A stream reports a new place in the queue, but not a new expected wait at the same place. With *fresh_places* a task
    that waits is polled every second, for a program that shows the wait to a person.

    When the task has not moved for *idle_s*, the caller is notified (`on_idle`), and again every *idle_s*.
    """

    timeout_s: float | None = None
    stream: bool = True
    fresh_places: bool = False
    idle_s: float = 20.0


class _NoStream(Exception):
    """No event stream comes through; the task is polled from here on."""


class TaskWait:
    """*task*, followed as *wait* says. `until_ended` is the flow."""

    def __init__(self, task: Task, wait: Wait, patience: Patience) -> None:
        self._task, self._wait, self._patience = task, wait, patience
        self._revision, self._event_id = task.revision, ""
        self._begun_s = self._moved_s = self._looked_s = 0.0

    def until_ended(self) -> Flow[Task]:
        """The task when it has ended. Reports every new state and place, including the first.

        1. The client reads an event stream to its end. It opens a stream that breaks again, with the id of its last
           event.
        2. If three streams in a row bring no event, or the answer is no event stream, the client polls the task.
        3. If the gateway does not answer, the client waits for it, for `lost_s` from its last answer.

        Raises WaitTimedOut after `timeout_s`, and any error that does not pass by itself.
        """
        self._begun_s = self._moved_s = self._looked_s = yield from effects.now()
        yield Report(self._task)
        streams = self._wait.stream
        while not self._task.has_ended:
            if streams and not self._shows_place:
                try:
                    yield from self._streams()
                except _NoStream:
                    streams = False
            else:
                yield from self._look(at_s=(yield from effects.now()))
                yield from self._poll()
        return self._task

    @property
    def _shows_place(self) -> bool:
        return self._wait.fresh_places and self._task.queue is not None

    def _streams(self) -> Flow[None]:
        """Reads one event stream after the other, until the task has ended or is to be polled for its place.

        Raises _NoStream if none comes through or the time is short.
        """
        tries = Tries(self._patience, repeatable=True, begun_s=self._begun_s, while_lost=True)
        mute = 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._event_id} if self._event_id else {})
            path = f"{task_path(self._task.id)}/events"
            self._require_time((yield from effects.now()))
            outcome: Reply | NoReply = yield Open(
                Call(method="GET", path=path, headers=headers, reply_timeout_s=SILENT_S)
            )
            if isinstance(outcome, Reply) and _is_stream(outcome):
                tries.heard(outcome.at_s)
                has_spoken, at_s = yield from self._events()
                if self._task.has_ended or self._shows_place:
                    return
                mute = 0 if has_spoken else mute + 1
                if mute >= MUTE_STREAMS:
                    raise _NoStream
                yield from self._look(at_s=at_s)
                yield Pause(lost_pause_s(mute + 1), JITTER_S)
                continue
            if isinstance(outcome, Reply) and outcome.is_success:  # 204: it had ended; or no event stream
                raise _NoStream
            error = failure(outcome)
            if isinstance(error, GatewayBusy) and error.status == TOO_MANY_REQUESTS and error.code != RATE_LIMITED:
                raise _NoStream  # the caller has as many streams open as it may
            pause = tries.pause_after(error, outcome.at_s)
            if pause is None:
                if isinstance(error, AccessDenied | NotThere | GatewayUnreachable):
                    raise error
                raise _NoStream
            yield from self._look(at_s=outcome.at_s)
            yield pause

    def _events(self) -> Flow[tuple[bool, float]]:
        """Reads the stream that was opened, until it or the task ends. Returns whether it had an event, and when it
        ended."""
        reader, has_spoken = EventReader(self._event_id), False
        while True:
            piece = yield from effects.read()
            if isinstance(piece, NoReply) or piece.content is None:
                return has_spoken, piece.at_s
            for event in reader.read(piece.content):
                if event.name == "task" and (task := _task_in(event.data)) is not None:
                    has_spoken, self._event_id = True, event.last_id
                    yield from self._becomes(task, f'"{event.last_id}"' if event.last_id else "", piece.at_s)
            if self._task.has_ended or self._shows_place:
                return has_spoken, piece.at_s
            yield from self._look(at_s=piece.at_s)
            self._require_time(piece.at_s)

    def _poll(self) -> Flow[None]:
        headers = {"If-None-Match": self._revision} if self._revision else {}
        wait_s = QUEUED_WAIT_S if self._task.queue else WAIT_S
        if self._wait.timeout_s is not None:
            left_s = self._wait.timeout_s - ((yield from effects.now()) - self._begun_s)
            wait_s = min(wait_s, max(left_s, 0.0))
        answer = yield from self._asked(headers, wait_s)
        if answer.status == NOT_MODIFIED:
            if self._task.queue is None:
                return
            answer = yield from self._asked({}, 0.0)  # the place is no part of the revision
        task = task_of(answer)
        yield from self._becomes(task, task.revision, answer.at_s)

    def _asked(self, headers: dict[str, str], wait_s: float) -> Flow[Reply]:
        call = Call(
            method="GET",
            path=task_path(self._task.id),
            params={"wait": f"{wait_s:g}"},
            headers=headers,
            reply_timeout_s=wait_s + REPLY_TIMEOUT_S,
        )
        patience = self._patience
        if self._wait.timeout_s is not None:  # a gateway that is away is not waited for longer than the task
            left_s = self._wait.timeout_s - ((yield from effects.now()) - self._begun_s)
            patience = msgspec.structs.replace(patience, lost_s=min(patience.lost_s, max(left_s, 0.0)))
        return (yield from answered(call, patience, while_lost=True))

    def _becomes(self, task: Task, revision: str, at_s: float) -> Flow[None]:
        before, self._task, self._revision = self._task, msgspec.structs.replace(task, revision=revision), revision
        if before.document != task.document:
            self._moved_s = at_s
            yield Report(self._task)

    def _look(self, *, at_s: float) -> Flow[None]:
        """Reports that nothing moves, if that is due. Raises WaitTimedOut."""
        timeout_s = self._wait.timeout_s
        if timeout_s is not None and at_s - self._begun_s >= timeout_s:
            raise WaitTimedOut(self._task, timeout_s)
        if at_s - max(self._moved_s, self._looked_s) >= self._wait.idle_s:
            self._looked_s = at_s
            yield ReportIdle(self._task)

    def _require_time(self, at_s: float) -> None:
        timeout_s = self._wait.timeout_s
        if timeout_s is not None and timeout_s - (at_s - self._begun_s) <= LAST_STRETCH_S:
            raise _NoStream


def _is_stream(answer: Reply) -> bool:
    return answer.status == 200 and answer.headers.get("content-type", "").startswith("text/event-stream")


def _task_in(data: str) -> Task | None:
    """The task of an event; None for what a later version may send."""
    try:
        document: Any = msgspec.json.decode(data)
        return Task.of(document) if isinstance(document, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
