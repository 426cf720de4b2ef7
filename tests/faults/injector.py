"""Faults: a seed decides which, when and to which target (`plan`, pure); `Injector` does them."""

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, get_args

import nats.errors
from msgspec import Struct

from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DEGRADED,
    FALLBACKS,
    LEADER,
    TASKS,
    WORK_CONSUMER,
    bucket_stream,
    lane_stream,
)
from contracts.topology import LANES as LANES_BUCKET
from contracts.topology import SLOTS as SLOTS_BUCKET
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.pull import FETCH_TIMEOUT_S
from ops.nats.write_health import HEARD_S, REFUSES_AFTER_S
from tests.faults.fleet import GATEWAYS, LANES, SLOTS, Fleet, Member, send
from tests.faults.history import Fault, FaultKind, HostWatcher, Watcher
from tests.kit.behind import js_of
from tests.kit.support import eventually

ALL_KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)
# Not the bucket of records: without it nothing from before could be proven. Other faults lose records.
BUCKETS: Final = (LANES_BUCKET, SLOTS_BUCKET, LEADER, CONTROL, FALLBACKS, COLD_STARTS)
# No fault begins within this time of the start or of the end of a run.
QUIET_S: Final = 2.0
# How long the injector waits for a target that does not exist at the moment.
AWAITED_S: Final = 10.0
# By then the keeper has restarted a server whose disk has room again, even if another restart came just before.
TAKES_WRITES_WITHIN_S: Final = 60.0
EVERY: Final = "*"
CONSUMERS: Final = (
    # the consumers of all watches of a bucket
    *((bucket_stream(bucket), EVERY) for bucket in (TASKS, LANES_BUCKET, SLOTS_BUCKET, LEADER, CONTROL, COLD_STARTS)),
    *((lane_stream(model), WORK_CONSUMER) for model in LANES),
    (DEGRADED, WORK_CONSUMER),
)
# How long a fault lasts, in seconds; for a kill, the time until the injector restarts the process. Workers are stopped
# for longer than their lease.
LASTS_S: Final[dict[FaultKind, tuple[float, float]]] = {
    "kill-gateway": (0.2, 3.0),
    "stop-gateway": (1.0, 5.0),
    "restart-gateway": (0.0, 0.5),
    "kill-lane": (0.0, 0.0),
    "stop-lane": (3.5, 6.0),
    "kill-host": (0.0, 0.0),
    "stop-host": (1.0, 5.0),
    "kill-leader": (0.2, 4.0),
    "stop-leader": (3.5, 6.0),
    "restart-leader": (0.0, 0.5),
    "kill-supervisor": (0.2, 2.0),
    "stop-supervisor": (1.0, 5.0),
    "kill-nats": (0.2, 3.0),
    "stop-nats": (0.5, 4.0),
    "restart-nats": (0.0, 0.5),
    "store-full": (1.5, 3.0),
    "store-unwritable": (1.5, 3.0),
    "scratch-gone": (0.0, 0.0),
    "nats-disk-full": (5.0, 5.0),
    "consumer-deleted": (0.0, 0.0),
    "tail-lost": (0.5, 2.0),
    "bucket-recreated": (0.0, 0.0),
}


class Planned(Struct, frozen=True, kw_only=True):
    """A fault to come. *pick*, from 0 to 1, chooses among the targets that exist by then."""

    at_s: float
    kind: FaultKind
    for_s: float
    pick: float


def plan(seed: int, *, seconds: float, count: int, kinds: Sequence[FaultKind] = ALL_KINDS) -> list[Planned]:
    """*count* faults over *seconds*, every kind as often as any other, give or take one; the same for the same seed."""
    dice = random.Random(f"faults {seed}")
    deck: list[FaultKind] = []
    planned = []
    gap_s = max(0.0, seconds - 2 * QUIET_S) / max(1, count)
    for number in range(count):
        if not deck:
            deck = list(kinds)
            dice.shuffle(deck)
        kind = deck.pop()
        at_s = QUIET_S + gap_s * (number + dice.random())
        planned.append(Planned(at_s=at_s, kind=kind, for_s=dice.uniform(*LASTS_S[kind]), pick=dice.random()))
    return planned


class Injector:
    """Does what was planned, and notes what was really done."""

    def __init__(self, fleet: Fleet, link: NatsLink, watcher: Watcher, hosts: HostWatcher) -> None:
        self._fleet = fleet
        self._link = link
        self._watcher = watcher
        self._hosts = hosts
        self.faults: list[Fault] = []
        self.skipped: list[Planned] = []
        # a server that started while its store is being replaced would have two stores
        self._nats_turn = asyncio.Lock()

    async def run(self, planned: Sequence[Planned]) -> None:
        """Does all that is *planned*; returns when the last fault is undone."""
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in planned:
                await asyncio.sleep(max(0.0, begun_s + fault.at_s - time.monotonic()))
                group.create_task(self._do(fault))

    async def _do(self, planned: Planned) -> None:
        what, _, whom = planned.kind.partition("-")
        match whom:
            case "full" | "unwritable":
                await self._break_store(planned)
            case "disk-full":
                async with self._nats_turn:
                    await self._fill_disk(planned)
            case "deleted":
                await self._delete_consumer(planned)
            case "gone":
                await self._remove_scratch(planned)
            case "lost":
                async with self._nats_turn:
                    await self._lose_tail(planned)
            case "recreated":
                async with self._nats_turn:
                    await self._recreate_bucket(planned)
            case "nats":
                async with self._nats_turn:
                    await self._member(planned, what, self._fleet.nats)
            case "lane":
                model = LANES[int(planned.pick * len(LANES))]
                await self._worker(planned, f"{model}-0", lambda: self._newest(model))
            case "host":
                slot = SLOTS[int(planned.pick * len(SLOTS))]
                await self._worker(planned, slot, lambda: self._hosts.look().holders.get(slot))
            case "gateway":
                await self._member(planned, what, self._fleet.members[GATEWAYS[int(planned.pick * len(GATEWAYS))]])
            case "leader":
                leader = self._watcher.leader
                await self._member(planned, what, None if leader is None else self._fleet.members[leader.worker])
            case _:
                await self._member(planned, what, self._fleet.members[whom])

    def _newest(self, model: str) -> int | None:
        pids = self._fleet.lane_pids(model)
        return pids[-1] if pids else None

    async def _worker(self, planned: Planned, target: str, find: Callable[[], int | None]) -> None:
        deadline_s = time.monotonic() + AWAITED_S
        while (pid := await asyncio.to_thread(find)) is None:
            if time.monotonic() > deadline_s:
                self.skipped.append(planned)
                return
            await asyncio.sleep(0.1)
        at = datetime.now(UTC)
        if planned.kind.startswith("kill"):
            send(pid, signal.SIGKILL)
        else:
            send(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(planned.for_s)
            finally:
                send(pid, signal.SIGCONT)
        self._note(planned, target, at, workers=(target,) if planned.kind == "kill-lane" else ())

    async def _member(self, planned: Planned, what: str, member: Member | None) -> None:
        pid = None if member is None else member.pid
        if member is None or pid is None:  # another fault has it down just now
            self.skipped.append(planned)
            return
        at = datetime.now(UTC)
        match what:
            case "kill":
                member.kill()
                await asyncio.sleep(planned.for_s)
                member.start()
            case "restart":
                member.ask_to_end()
                send(pid, signal.SIGCONT)
                await member.ended(within_s=30)
                await asyncio.sleep(planned.for_s)
                member.start()
            case _:
                send(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(planned.for_s)
                finally:
                    send(pid, signal.SIGCONT)
        self._note(planned, member.name, at, workers=(member.name,) if planned.kind == "kill-leader" else ())

    async def _break_store(self, planned: Planned) -> None:
        store = self._fleet.store
        at = datetime.now(UTC)
        if planned.kind == "store-full":
            begin, undo = store.fill, store.empty
        else:
            begin, undo = store.deny, store.allow
        await asyncio.to_thread(begin)
        try:
            await asyncio.sleep(planned.for_s)
        finally:
            await asyncio.to_thread(undo)
        self._note(planned, "store", at)

    async def _fill_disk(self, planned: Planned) -> None:
        """The fault lasts until every stream accepts writes again: `ops/nats/store_keeper.py` restarts the server when
        there is room."""
        disk, at = self._fleet.nats_disk, datetime.now(UTC)
        if disk is None:
            self.skipped.append(planned)
            return
        await asyncio.to_thread(disk.fill)
        try:
            await asyncio.sleep(planned.for_s)
        finally:
            await asyncio.to_thread(disk.empty)
        await asyncio.sleep(REFUSES_AFTER_S + HEARD_S)  # by then every process that was refused has reported it
        with contextlib.suppress(AssertionError):
            await eventually(self._takes_writes, within_s=TAKES_WRITES_WITHIN_S)
        self._note(planned, "nats", at)

    async def _takes_writes(self) -> bool:
        return not self._fleet.refusals.now(time.monotonic())

    async def _delete_consumer(self, planned: Planned) -> None:
        stream, consumer = CONSUMERS[int(planned.pick * len(CONSUMERS))]
        at = datetime.now(UTC)
        try:
            every = await js_of(self._link).consumers_info(stream) if consumer == EVERY else []
            for name in [info.name for info in every] or [consumer]:
                await js_of(self._link).delete_consumer(stream, name)
        except (nats.errors.Error, TimeoutError):  # the server is away, or the consumer was not made anew yet
            self.skipped.append(planned)
            return
        # the server ends a waiting fetch at once, and the next fetch comes within 2 s
        await asyncio.sleep(FETCH_TIMEOUT_S)
        self._note(planned, f"{stream}/{consumer}", at)

    async def _remove_scratch(self, planned: Planned) -> None:
        at = datetime.now(UTC)
        await asyncio.to_thread(shutil.rmtree, self._fleet.data_dir / "scratch", ignore_errors=True)
        self._note(planned, "scratch", at)

    async def _lose_tail(self, planned: Planned) -> None:
        """A power cut: kill -9, and nothing that came in the last seconds is on the disk."""
        nats, store = self._fleet.nats, self._fleet.nats_store
        copy, had = self._fleet.data_dir / "nats-copy", self._fleet.data_dir / "nats-had"
        since = datetime.now(UTC)
        if nats.pid is None:
            self.skipped.append(planned)
            return
        nats.signal(signal.SIGSTOP)
        await asyncio.to_thread(shutil.copytree, store, copy)
        nats.signal(signal.SIGCONT)
        await asyncio.sleep(planned.for_s)
        nats.kill()
        await nats.ended(within_s=10)
        had.mkdir()
        await asyncio.to_thread(shutil.move, store, had)
        await asyncio.to_thread(shutil.move, copy, store)
        await self._watcher.went_back(since, had)
        await asyncio.to_thread(shutil.rmtree, had)
        nats.start()
        self._note(planned, "nats", since, lost_since=since)

    async def _recreate_bucket(self, planned: Planned) -> None:
        at, bucket = datetime.now(UTC), BUCKETS[int(planned.pick * len(BUCKETS))]
        try:
            await self._fleet.recreate(bucket)
        except TransportUnavailable:
            self.skipped.append(planned)
            return
        self._note(planned, bucket, at)

    def _note(
        self,
        planned: Planned,
        target: str,
        at: datetime,
        *,
        workers: tuple[str, ...] = (),
        lost_since: datetime | None = None,
    ) -> None:
        self.faults.append(
            Fault(
                kind=planned.kind,
                target=target,
                at=at,
                until=datetime.now(UTC),
                workers=workers,
                lost_since=lost_since,
            )
        )
