"""Bugs of the kind that this protocol invites, each planted in the product's own code."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final, cast
from unittest.mock import patch

from msgspec.structs import replace

import gateway.placing.sweeper
import gateway.rules.due
import lane_worker.runtime.claim
import lane_worker.runtime.claiming
from contracts import lifecycle
from contracts.tasks import GenerationTask, encode_task
from contracts.topology import TASKS
from degraded_worker.hand import Hand
from gateway.placing.hold import Holds
from gateway.placing.queueing import Queueing
from gateway.placing.rearm import Rearm
from gateway.placing.sweeper import Sweeper
from lane_worker.runtime.claim import Mine, claim_decision
from lane_worker.runtime.claiming import Claims
from lane_worker.runtime.held import HeldTask
from lane_worker.runtime.lease import LeaseKeeper
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.orphans import delete_or_leave
from lane_worker.runtime.settling import Settlement
from ops.nats.entries import Entries
from ops.nats.errors import StreamFull, TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.stream_proof import KnownStream, Mark, Verdict


def ack_before_claim() -> AbstractContextManager[Any]:
    """The message is acked when it comes, and not when the record says who holds it."""
    serve = WorkLoop._serve

    async def acked_first(self: WorkLoop, message: Any, *rest: Any) -> None:
        await self._ack(message)
        await serve(self, message, *rest)

    return patch.object(WorkLoop, "_serve", acked_first)


def epoch_not_compared() -> AbstractContextManager[Any]:
    """A worker takes whatever is pending, whichever placement its message is of."""

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
    """A link with such entries."""

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


def timer_acked_first() -> AbstractContextManager[Any]:
    """A due timer is acked before another is stored."""
    handle = Sweeper._on_due

    async def acked_first(self: Sweeper, message: Any) -> None:
        with contextlib.suppress(Exception):
            await message.ack()
        await handle(self, message)

    return patch.object(Sweeper, "_on_due", acked_first)


def record_before_timer() -> AbstractContextManager[Any]:
    """The record is made before there is a timer that ends it."""
    record = Queueing.record

    async def recorded_first(self: Queueing, task: GenerationTask) -> Any:
        with contextlib.suppress(Exception):
            await self._link.entries.create(TASKS, task.id, encode_task(task))
        return await record(self, task)

    return patch.object(Queueing, "record", recorded_first)


def no_timer_after_a_requeue() -> AbstractContextManager[Any]:
    """The sweeper publishes a lost task again, and forgets the timer."""

    async def forgetful(self: Sweeper, snapshot: Any, at: datetime, now: datetime) -> Any:
        try:
            await self._publish(snapshot.task)
        except StreamFull:
            return await self._fail(snapshot, *gateway.placing.sweeper._overloaded(snapshot.task), now)
        return snapshot

    return patch.object(Sweeper, "_republish", forgetful)


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
    """A worker takes what it finds in the degraded queue, however old."""
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
    """What ended in the queue keeps its place there."""

    async def nothing(*_: Any, **__: Any) -> None:
        pass

    stack = contextlib.ExitStack()
    for module in ("sweeper", "hold", "admission", "input_images"):
        stack.enter_context(patch(f"gateway.placing.{module}.remove_leftovers", nothing))
    return stack


def loser_deletes_the_video() -> AbstractContextManager[Any]:
    """A worker whose result was not taken removes the file, also when the record publishes it."""

    async def careless(self: Settlement, _: GenerationTask | None) -> None:
        await delete_or_leave(self._artifacts, self._held.task.video_path)

    return patch.object(Settlement, "discard_video", careless)


def one_file_for_all_epochs() -> AbstractContextManager[Any]:
    """A late loser overwrites the video of the winner."""
    return patch.object(GenerationTask, "video_path", property(lambda task: f"videos/{task.id}.mp4"))


def full_is_refused_and_recorded() -> AbstractContextManager[Any]:
    """A full queue is answered with a refusal, and a record is made all the same."""
    publish = Queueing.publish

    async def careless(self: Queueing, task: GenerationTask) -> Any:
        try:
            return await publish(self, task)
        except StreamFull:
            if task.route == "degraded":
                with contextlib.suppress(Exception):
                    await self._link.timers.set("admit", task.id, task.deadline_at, encode_task(task))
                    await self._link.entries.create(TASKS, task.id, encode_task(task))
            raise

    return patch.object(Queueing, "publish", careless)


def goes_on_blindly() -> AbstractContextManager[Any]:
    """A watch goes on after the last sequence that it received, whatever is there now."""
    return patch("ops.nats.stream_proof.judged", lambda **_: Verdict.SAME)


def proof_of_a_later_time() -> AbstractContextManager[Any]:
    """A write after a break counts as proof that nothing from before it is lost."""
    note = KnownStream.note
    return patch.object(KnownStream, "note", lambda self, mark, _: note(self, mark, self._cuts))


def doubts_forgotten() -> AbstractContextManager[Any]:
    """What was written between a break and the watch's look is not remembered when the next break comes first."""
    note = KnownStream.note

    def before(self: KnownStream, mark: Mark, cuts: int) -> None:
        if cuts == self._cuts:
            note(self, mark, cuts)

    return patch.object(KnownStream, "note", before)


def lost_timers_stay_lost() -> AbstractContextManager[Any]:
    """Nobody sets a timer again that the server lost after it had acked it."""

    async def never(_: Rearm) -> None:
        await asyncio.Event().wait()

    return patch.object(Rearm, "run", never)


# ── what the model found, put back as it was ─────────────────────────────────────────────────────────────────────────


def given_back_and_taken_again() -> AbstractContextManager[Any]:
    """A worker that gave a task up runs it again when its message comes again."""

    def before(queued: GenerationTask, record: GenerationTask | None, **rest: Any) -> Any:
        if record is not None and record.epoch == queued.epoch and record.owner == rest["owner"]:
            return Mine(record, rest["revision"])
        return claim_decision(queued, record, **rest)

    return patch.object(lane_worker.runtime.claiming, "claim_decision", before)


def renewed_after_it_was_given_back() -> AbstractContextManager[Any]:
    """The keeper of a lease renews it while the worker gives it back."""

    give_up = Settlement._give_up

    class Unstopped:
        async def stop(self) -> None:
            pass

    async def unstopped(self: Settlement, reason: str, **how: bool) -> None:
        keeper, self._keeper = self._keeper, cast(LeaseKeeper, Unstopped())
        try:
            await give_up(self, reason, **how)
        finally:
            self._keeper = keeper

    return patch.object(Settlement, "_give_up", unstopped)


def another_model() -> AbstractContextManager[Any]:
    """A lane takes the record of another model, whose request came with the same key."""

    def before(queued: GenerationTask, record: GenerationTask | None, **rest: Any) -> Any:
        if record is not None:
            queued = replace(queued, model=record.model)
        return claim_decision(queued, record, **rest)

    return patch.object(lane_worker.runtime.claiming, "claim_decision", before)


def forgotten_by_the_server() -> AbstractContextManager[Any]:
    """`queue_overloaded` although an earlier try was stored, so long ago that the server does not know it any more."""
    return patch("gateway.placing.queueing.DEGRADED_MAX_AGE_S", 1e9)


def acked_into_the_hand() -> AbstractContextManager[Any]:
    """A leader acks what it takes into its hand, as if that were a claim."""
    take = Hand._take

    def careless(self: Hand, message: Any) -> None:
        message._client.network.send("ack", message._ack, lane=f"ack {message.subject}")
        take(self, message)

    return patch.object(Hand, "_take", careless)


Plant = Callable[[], AbstractContextManager[Any]]
# the bug, the invariant that it breaks, and the first seed that shows it
PLANTS: Final[tuple[tuple[Plant, str, int], ...]] = (
    (ack_before_claim, "7", 256),
    (epoch_not_compared, "3", 26),
    (claim_without_compare_and_set, "3", 3),
    (settle_without_compare_and_set, "1", 26),
    (timer_acked_first, "1", 3),
    (record_before_timer, "1", 0),
    (no_timer_after_a_requeue, "1", 3),
    (same_epoch_after_a_requeue, "3", 7),
    (attempts_not_counted, "1", 132),
    (age_not_checked, "4", 46),
    (promise_forgotten, "1", 392),
    (message_of_the_refused_stays, "6", 65),
    (loser_deletes_the_video, "2", 204),
    (one_file_for_all_epochs, "2", 228),
    (full_is_refused_and_recorded, "6", 14),
    (goes_on_blindly, "8", 2),
    (acked_into_the_hand, "7", 0),
)
