"""Bugs of the kind that this protocol invites, each planted in the product's own code."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final, cast
from unittest.mock import patch

from msgspec.structs import replace

import gateway.placing.displacement
import gateway.placing.sweeper
import gateway.rules.due
import gateway.rules.webhook_events
import gateway.webhooks.delivering
import lane_worker.runtime.claim
import lane_worker.runtime.claiming
from contracts import lifecycle
from contracts.tasks import GenerationTask, encode_task
from contracts.topology import TASKS
from degraded_worker.hand import Hand
from gateway.placing.hold import Holds
from gateway.placing.queueing import Queueing
from gateway.placing.slow_look import SlowLook
from gateway.placing.sweeper import Sweeper
from lane_worker.runtime.claim import Mine, claim_decision
from lane_worker.runtime.claiming import Claims
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.orphans import delete_or_leave
from lane_worker.runtime.settling import Settlement
from ops.nats.entries import Entries
from ops.nats.errors import StreamFull, TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.stream_proof import KnownStream, Mark, Verdict
from ops.nats.watch import Watch
from tests.model.planted_displacement import displaced_without_compare_and_set, displaces_the_claimed
from tests.model.planted_webhooks import (
    delivered_only_of_what_comes,
    delivered_what_was_meant,
    sent_is_delivered,
    silent_about_the_cancelled,
)


def ack_before_claim() -> AbstractContextManager[Any]:
    """A worker acks a message when it comes, and not when the record names the owner."""
    serve = WorkLoop._serve

    async def acked_first(self: WorkLoop, message: Any, *rest: Any) -> None:
        await self._ack(message)
        await serve(self, message, *rest)

    return patch.object(WorkLoop, "_serve", acked_first)


def epoch_not_compared() -> AbstractContextManager[Any]:
    """A worker claims whatever is pending, even by a message of another placement."""

    def careless(queued: GenerationTask, record: GenerationTask | None, **rest: Any) -> Any:
        if record is not None:
            queued = replace(queued, epoch=record.epoch)
        return claim_decision(queued, record, **rest)

    return patch.object(lane_worker.runtime.claiming, "claim_decision", careless)


class _BlindEntries:
    """Entries whose compare-and-set does not compare."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entries, name)

    async def update(self, bucket: str, key: str, value: bytes, *, revision: int) -> int:
        return await self._entries.put(bucket, key, value)


class _BlindLink:
    """A link with `_BlindEntries`."""

    def __init__(self, link: NatsLink) -> None:
        self._link, self.entries = link, _BlindEntries(link.entries)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def claim_without_compare_and_set() -> AbstractContextManager[Any]:
    """The claim overwrites the record."""
    claim = Claims._try_claim

    async def blind(self: Claims, queued: GenerationTask, entry: Any, *rest: Any) -> HeldTask | None:
        link = self._link
        self._link = cast(NatsLink, _BlindLink(link))
        try:
            held = await claim(self, queued, entry, *rest)
        finally:
            self._link = link
        if held is not None:
            held._link = link
        return held

    return patch.object(Claims, "_try_claim", blind)


def settle_without_compare_and_set() -> AbstractContextManager[Any]:
    """A worker writes its result whatever the record says by now."""

    async def put(self: HeldTask, change: Callable[[GenerationTask], GenerationTask]) -> GenerationTask:
        self.task = change(self.task)
        with contextlib.suppress(TransportUnavailable):
            await self._link.entries.put(TASKS, self.task.id, encode_task(self.task))
        return self.task

    return patch.object(HeldTask, "update", put)


def looked_at_once() -> AbstractContextManager[Any]:
    """A task that was due once is not looked at again, even if the look failed."""
    return patch("gateway.boards.deadlines.AGAIN_S", 1e9)


def moved_without_compare_and_set() -> AbstractContextManager[Any]:
    """A sweeper writes what is due, whatever the record says by now."""

    async def blind(self: Sweeper, task: GenerationTask, revision: int, now: datetime) -> Any:
        return self._tasks.record(task, await self._link.entries.put(TASKS, task.id, encode_task(task)), now)

    return patch.object(Sweeper, "_store", blind)


def acts_before_it_has_caught_up() -> AbstractContextManager[Any]:
    """A gateway judges leases as soon as it is connected again, by what it knew before the break."""
    decide = gateway.rules.due.due_action
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(Sweeper, "_has_caught_up", lambda _: True))
    careless: Callable[..., Any] = lambda task, **rest: decide(task, **rest | {"unbroken_s": 1e9})  # noqa: E731
    stack.enter_context(patch.object(gateway.placing.sweeper, "due_action", careless))
    return stack


def no_slow_look() -> AbstractContextManager[Any]:
    """A gateway never learns of a record that its watch has missed."""

    async def never(_: SlowLook) -> None:
        await asyncio.Event().wait()

    return patch.object(SlowLook, "run", never)


def record_before_message() -> AbstractContextManager[Any]:
    """The record is made before its message is queued."""
    publish = Queueing.publish

    async def recorded_first(self: Queueing, task: GenerationTask) -> Any:
        with contextlib.suppress(Exception):
            await self._link.entries.create(TASKS, task.id, encode_task(task))
        return await publish(self, task)

    return patch.object(Queueing, "publish", recorded_first)


def nobody_completes_a_requeue() -> AbstractContextManager[Any]:
    """A gateway moves a record and dies before it publishes the message. The others take the task for queued."""
    at = gateway.rules.due.look_at
    return patch("gateway.boards.deadlines.look_at", lambda task, **_: at(task, is_placed=True))


def same_epoch_after_a_requeue() -> AbstractContextManager[Any]:
    """A lost task is queued again at the epoch of the worker that lost it."""
    requeue = lifecycle.requeue

    def stuck(task: GenerationTask, **rest: Any) -> GenerationTask:
        return replace(requeue(task, **rest), epoch=task.epoch)

    return patch.object(lifecycle, "requeue", stuck)


def attempts_not_counted() -> AbstractContextManager[Any]:
    """The sweeper queues a lost task again and again."""
    decide = gateway.rules.due.due_action
    return patch.object(
        gateway.placing.sweeper, "due_action", lambda task, **rest: decide(task, **rest | {"attempts": 99})
    )


def age_not_checked() -> AbstractContextManager[Any]:
    """A worker claims what it finds in the degraded queue, however old."""
    never: Callable[..., bool] = lambda *_: False  # noqa: E731
    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(lane_worker.runtime.claiming, "is_overdue", never))
    stack.enter_context(patch.object(lane_worker.runtime.claim, "is_overdue", never))
    return stack


def age_not_checked_again() -> AbstractContextManager[Any]:
    """A worker checks the age before its claim, and not whether the claim was stored in time."""
    return patch.object(lane_worker.runtime.claiming, "is_overdue", lambda *_: False)


def promise_forgotten() -> AbstractContextManager[Any]:
    """A client gets the id, and the record does not say so: a caller that hangs up later withdraws the task."""

    async def unmoved(_: Holds, snapshot: Any) -> Any:
        return snapshot

    return patch.object(Holds, "promise", unmoved)


def message_of_the_refused_stays() -> AbstractContextManager[Any]:
    """A task that ended in the queue keeps its place there."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    stack = contextlib.ExitStack()
    for module in ("sweeper", "hold", "admission", "input_images"):
        stack.enter_context(patch(f"gateway.placing.{module}.remove_leftovers", nothing))
    return stack


def loser_deletes_the_video() -> AbstractContextManager[Any]:
    """A worker whose result was refused removes the video, even if the record publishes it."""

    async def careless(self: Settlement, _: GenerationTask | None) -> None:
        await delete_or_leave(self._artifacts, self._held.task.video_path)

    return patch.object(Settlement, "discard_video", careless)


def one_file_for_all_epochs() -> AbstractContextManager[Any]:
    """A late loser overwrites the video of the winner."""
    return patch.object(GenerationTask, "video_path", property(lambda task: f"videos/{task.id}.mp4"))


def full_is_refused_and_recorded() -> AbstractContextManager[Any]:
    """A gateway refuses a request because the queue is full, and makes a record all the same."""
    publish = Queueing.publish

    async def careless(self: Queueing, task: GenerationTask) -> Any:
        try:
            return await publish(self, task)
        except StreamFull:
            if task.route == "degraded":
                with contextlib.suppress(Exception):
                    await self._link.entries.create(TASKS, task.id, encode_task(task))
            raise

    return patch.object(Queueing, "publish", careless)


def goes_on_blindly() -> AbstractContextManager[Any]:
    """A watch goes on after the last sequence that it received, whatever the stream holds now."""
    return patch("ops.nats.stream_proof.judged", lambda **_: Verdict.SAME)


def proof_of_a_later_time() -> AbstractContextManager[Any]:
    """A write after a break counts as proof that nothing from before the break is lost."""
    note = KnownStream.note
    return patch.object(KnownStream, "note", lambda self, mark, _: note(self, mark, self._cuts))


def doubts_forgotten() -> AbstractContextManager[Any]:
    """A watch forgets what was written between a break and its look, if the next break comes before the look."""
    note = KnownStream.note

    def before(self: KnownStream, mark: Mark, cuts: int) -> None:
        if cuts == self._cuts:
            note(self, mark, cuts)

    return patch.object(KnownStream, "note", before)


def not_asked_again() -> AbstractContextManager[Any]:
    """A watch follows what it has proven to be its bucket, without checking that it still is."""

    async def trust(_: Watch, __: Any) -> None:
        pass

    return patch.object(Watch, "_require_unchanged", trust)


# ── what the model found: the old code is put back ────────────────────────────────────────────────────────────────────


def given_back_and_taken_again() -> AbstractContextManager[Any]:
    """A worker that gave a task up runs it again when the server redelivers its message."""

    def before(queued: GenerationTask, record: GenerationTask | None, **rest: Any) -> Any:
        if record is not None and record.epoch == queued.epoch and record.owner == rest["owner"]:
            return Mine(record, rest["revision"])
        return claim_decision(queued, record, **rest)

    return patch.object(lane_worker.runtime.claiming, "claim_decision", before)


def another_model() -> AbstractContextManager[Any]:
    """A lane claims the record of another model, whose request came with the same key."""

    def before(queued: GenerationTask, record: GenerationTask | None, **rest: Any) -> Any:
        if record is not None:
            queued = replace(queued, model=record.model)
        return claim_decision(queued, record, **rest)

    return patch.object(lane_worker.runtime.claiming, "claim_decision", before)


def forgotten_by_the_server() -> AbstractContextManager[Any]:
    """A gateway answers `queue_overloaded` although an earlier try was stored. That was so long ago that the server no
    longer knows its id."""
    return patch("gateway.placing.queueing.DEGRADED_MAX_AGE_S", 1e9)


def acked_into_the_hand() -> AbstractContextManager[Any]:
    """A leader acks what it takes into its hand, as if that were a claim."""
    take = Hand._take

    def careless(self: Hand, message: Any) -> None:
        message._client.network.send("ack", message._ack, lane=f"ack {message.subject}")
        take(self, message)

    return patch.object(Hand, "_take", careless)


Plant = Callable[[], AbstractContextManager[Any]]
# The invariant of webhooks: bugs that break it show in runs with webhooks.
WEBHOOKS: Final = "11"
# the bug, the invariant that it breaks, and the first seed that shows it
PLANTS: Final[tuple[tuple[Plant, str, int], ...]] = (
    (ack_before_claim, "7", 282),
    (epoch_not_compared, "3", 60),
    (claim_without_compare_and_set, "3", 15),
    (settle_without_compare_and_set, "1", 37),
    (looked_at_once, "1", 33),
    (moved_without_compare_and_set, "1", 19),
    (acts_before_it_has_caught_up, "9", 25),
    (record_before_message, "6", 11),
    (nobody_completes_a_requeue, "7", 467),
    (same_epoch_after_a_requeue, "3", 27),
    (attempts_not_counted, "1", 99),
    (age_not_checked, "4", 17),
    (promise_forgotten, "1", 1205),
    (message_of_the_refused_stays, "6", 52),
    (loser_deletes_the_video, "2", 31),
    (one_file_for_all_epochs, "2", 192),
    (full_is_refused_and_recorded, "6", 14),
    (goes_on_blindly, "8", 2),
    (acked_into_the_hand, "7", 367),
    (displaces_the_claimed, "10", 170),
    (displaced_without_compare_and_set, "1", 61),
    (delivered_only_of_what_comes, WEBHOOKS, 3),
    (sent_is_delivered, WEBHOOKS, 0),
    (delivered_what_was_meant, WEBHOOKS, 0),
    (silent_about_the_cancelled, WEBHOOKS, 170),
)
