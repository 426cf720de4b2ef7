"""Degraded workers with tiny pipelines, in processes of their own, on a real server."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from contracts.lanes import SlotState, VideoPipelineSlot
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, Priority, TaskStatus
from contracts.topology import DEGRADED, SLOTS, WORK_CONSUMER
from degraded_worker.worker import DegradedWorker
from lane_worker.forking.slot import lock_path, read_note
from lane_worker.residence.residence import Residence
from lane_worker.runtime.scratch import LOCK, Scratch
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.shown_slots import lift
from tests.kit.degraded import DegradedProcess, becomes, leader_of, leading, leads, place, setup_of, shown, task_of
from tests.kit.patient import connected
from tests.kit.records import NOW
from tests.kit.stuck_card import StuckCard
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, eventually, is_running, shared_forks

pytestmark = pytest.mark.usefixtures("forks")

SLOT = "cpu-0"
MODELS = ("anisora", "phr00t")


@pytest.fixture
async def link(link: NatsLink, nats_server: NatsServer) -> AsyncIterator[NatsLink]:
    """The test's own connection: a worker is a process of its own, and nothing here is about an answer that is late."""
    own = await connected(nats_server.url)
    yield own
    await own.close()


class Pair:
    """A server, and two degraded workers for one slot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nats").mkdir()
        self.nats = NatsServer(folder / "nats")
        self.nats.start()
        asyncio.run(self._provision())
        self.first = self.worker("first")
        self.second = self.worker("second")

    async def _provision(self) -> None:
        link = await connected(self.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await link.close()

    def worker(self, name: str) -> DegradedProcess:
        options = ("--step-seconds", "0.05", "--degraded-order", "fifo")
        return DegradedProcess(self.nats.address, self.folder, name, SLOT, *options, **shared_forks())

    async def roles(self, link: NatsLink) -> tuple[DegradedProcess, DegradedProcess]:
        """The leader, and the standby."""
        leadership = await eventually(lambda: leader_of(link), within_s=60)
        assert leadership is not None
        return (self.first, self.second) if leadership.worker == "first" else (self.second, self.first)

    def stop(self) -> None:
        for worker in (self.first, self.second):
            worker.kill()
        self.nats.stop()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.stop()


@pytest.fixture
async def pair_link(pair: Pair) -> AsyncIterator[NatsLink]:
    link = await connected(pair.nats.url)
    yield link
    await link.close()


async def test_models_alternate_on_one_slot_with_a_receipt_each(pair: Pair, pair_link: NatsLink) -> None:
    leader, standby = await pair.roles(pair_link)
    tasks: list[GenerationTask] = []
    for number in range(6):
        if number > 1:  # two wait at a time: a task may wait for 29.5 s, and a busy machine may need that for six
            await becomes(pair_link, tasks[number - 2], TaskStatus.DONE, TaskStatus.FAILED)
        tasks.append(await place(pair_link, task_of(MODELS[number % 2], number)))
    done = [await becomes(pair_link, task, TaskStatus.DONE, TaskStatus.FAILED) for task in tasks]
    assert [task.status for task in done] == ["done"] * 6, done
    assert {task.worker for task in done} == {leader.name}
    receipts = [task.swap for task in done]
    assert all(receipt is not None for receipt in receipts)
    released = [receipt.released_model for receipt in receipts if receipt is not None]
    assert released == [None, *(MODELS[number % 2] for number in range(5))]
    assert {receipt.how for receipt in receipts[1:] if receipt is not None} == {"unloaded"}
    for task in done:
        assert task.video is not None
        assert (pair.folder / "artifacts" / task.video.path).stat().st_size == task.video.bytes
    now = await shown(pair_link, SLOT)
    assert now is not None
    assert (now.worker, now.pid, now.model, now.state) == (leader.name, leader.pid, "phr00t", SlotState.RESIDENT)
    assert standby.hosts == []
    again = await becomes(pair_link, await place(pair_link, task_of("phr00t", 6)), TaskStatus.DONE)
    assert again.swap is None, "what is resident is not loaded again"
    memory = leader.log_lines("memory_after_cleanup")
    assert [line["task_id"] for line in memory][-7:] == [task.id for task in [*done, again]]


async def test_sigterm_finishes_the_task_in_hand_and_hands_over(pair: Pair, pair_link: NatsLink) -> None:
    """The standby's folder still exists then, however long it stood by, and whatever folders its leader removed."""
    leader, standby = await pair.roles(pair_link)
    await eventually(lambda: asyncio.sleep(0, bool(standby.log_lines("stands_by"))), within_s=60)
    await opens_a_new_host_among_old_folders(pair, leader)
    task = await place(pair_link, task_of("anisora", 10))
    await becomes(pair_link, task, TaskStatus.PROCESSING, TaskStatus.DONE)  # it runs for less than a second
    leader.signal(signal.SIGTERM)
    done = await becomes(pair_link, task, TaskStatus.DONE)
    assert (done.attempt, done.worker) == (1, leader.name)
    assert leader.stop() == 0
    await leads(pair_link, standby.name)
    after = await becomes(pair_link, await place(pair_link, task_of("anisora", 11)), TaskStatus.DONE)
    assert after.worker == standby.name
    if leader is pair.first:
        pair.first = pair.worker("first")
    else:
        pair.second = pair.worker("second")
    # after a slot was given back, no host has to be put aside
    assert standby.log_lines("pipeline_host_put_aside") == []


async def opens_a_new_host_among_old_folders(pair: Pair, leader: DegradedProcess) -> None:
    """Returns when the folder of a dead worker is gone. Those of the living workers are just as old."""
    await eventually(lambda: asyncio.sleep(0, bool(leader.log_lines("serves"))), within_s=60)
    folders = list((pair.folder / "scratch" / SLOT).iterdir())
    assert len(folders) == 2
    dead = Scratch(pair.folder, slot=SLOT, owner="dead")
    dead.folder.mkdir()
    (dead.folder / LOCK).touch()
    for folder in (*folders, dead.folder):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (0, 0))
    (host,) = leader.hosts
    os.kill(host, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, not dead.folder.exists()), within_s=60)
    assert all(folder.exists() for folder in folders)


async def test_a_stopped_leader_loses_the_slot_and_changes_nothing_when_it_wakes(
    pair: Pair, pair_link: NatsLink
) -> None:
    """The old leader's child keeps the card, whatever KV says: the new leader kills that child before it loads (design
    §7)."""
    await eventually(lambda: asyncio.sleep(0, len(pair.first.hosts) + len(pair.second.hosts) == 1), within_s=60)
    leader, standby = await pair.roles(pair_link)
    await eventually(lambda: asyncio.sleep(0, bool(standby.log_lines("stands_by"))), within_s=60)
    await becomes(pair_link, await place(pair_link, task_of("phr00t", 20)), TaskStatus.DONE)
    await becomes(pair_link, await place(pair_link, task_of("anisora", 21)), TaskStatus.DONE)
    (host,) = leader.hosts
    leader.signal(signal.SIGSTOP)
    try:
        task = await place(pair_link, task_of("phr00t", 22))
        done = await becomes(pair_link, task, TaskStatus.DONE)
        assert done.worker == standby.name
        assert not is_running(host)
        note = read_note(lock_path(pair.folder / "locks", SLOT))
        assert note is not None
        assert [note.pid] == standby.hosts
        before = await shown(pair_link, SLOT)
    finally:
        leader.signal(signal.SIGCONT)
    await eventually(lambda: asyncio.sleep(0, bool(leader.log_lines("leads_no_more"))))
    last = await becomes(pair_link, await place(pair_link, task_of("phr00t", 23)), TaskStatus.DONE)
    assert (last.worker, last.swap) == (standby.name, None)
    for folder in ("scratch", "locks"):  # as a person does who tidies up, and does not know whose they are
        shutil.rmtree(pair.folder / folder)
    last = await becomes(pair_link, await place(pair_link, task_of("phr00t", 24)), TaskStatus.DONE, TaskStatus.FAILED)
    assert (last.status, last.error) == (TaskStatus.DONE, None)
    note = await eventually(lambda: asyncio.sleep(0, read_note(lock_path(pair.folder / "locks", SLOT))))
    assert note is not None
    assert [note.pid] == standby.hosts, "the card is still its own"
    assert await shown(pair_link, SLOT) == before
    assert leader.hosts == []


async def test_models_take_turns_in_slices_and_the_record_says_why(
    link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    """What waits is in the hand of the leader, which serves the loaded model first; a higher class goes before."""
    options = ("--step-seconds", "0.05", "--load-seconds", "1")
    worker = DegradedProcess(nats_server.address, tmp_path, "degraded-0", "cpu-5", *options, **shared_forks())
    try:
        await leads(link, "degraded-0")
        first = await place(link, task_of("anisora", 1))
        await becomes(link, first, TaskStatus.PROCESSING, TaskStatus.DONE)
        async with none_is_given_out(link):  # the first may end before the last one is there
            waiting = [await place(link, task_of(MODELS[(number + 1) % 2], number)) for number in range(2, 6)]
            urgent = await place(link, replace(task_of("phr00t", 7), priority=Priority.INTERACTIVE))
        done = [await becomes(link, task, TaskStatus.DONE, TaskStatus.FAILED) for task in (first, *waiting, urgent)]
        assert {task.status for task in done} == {TaskStatus.DONE}
        in_turn = sorted(done, key=lambda task: task.claimed_at or NOW)
        assert [task.model for task in in_turn] == ["anisora", *["phr00t"] * 3, *["anisora"] * 2]
        assert in_turn[1].id == urgent.id
        assert [task.swap is not None for task in in_turn] == [True, True, False, False, True, False]
        assert in_turn[0].swap is not None
        assert in_turn[0].swap.load_s >= 1
        decision = in_turn[1].order
        assert decision is not None
        assert (decision.order, decision.rules, decision.loaded) == ("swap-aware", (4, 7), "anisora")
        assert {(group.model, group.priority.value, group.count) for group in decision.waiting} == {
            ("phr00t", "interactive", 1),
            ("phr00t", "standard", 2),
            ("anisora", "standard", 2),
        }
        assert worker.stop() == 0
    finally:
        worker.kill()


@asynccontextmanager
async def none_is_given_out(link: NatsLink) -> AsyncIterator[None]:
    """Until the block ends, the server keeps back what comes to the queue."""
    subject = f"$JS.API.CONSUMER.PAUSE.{DEGRADED}.{WORK_CONSUMER}"
    later = msgspec.json.encode({"pause_until": datetime.now(UTC) + timedelta(hours=1)})
    await link.core.request(subject, later, timeout_s=BOUND_S, about=DEGRADED)
    yield
    await link.core.request(subject, b"", timeout_s=BOUND_S, about=DEGRADED)


async def test_a_quarantined_slot_is_not_opened_until_an_operator_lifts_it(
    link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    """This holds also for a worker that was not there when the slot was quarantined."""
    quarantined = VideoPipelineSlot(
        slot="cpu-5",
        worker="degraded-0",
        pid=1,
        model=None,
        state=SlotState.QUARANTINED,
        since=NOW,
        detail="3 GiB are still held",
    )
    await link.entries.put(SLOTS, "cpu-5", msgspec.json.encode(quarantined))
    worker = DegradedProcess(nats_server.address, tmp_path, "degraded-0", "cpu-5", **shared_forks())
    try:
        await eventually(lambda: asyncio.sleep(0, bool(worker.log_lines("slot_quarantined"))))
        assert await leader_of(link) is None
        assert await shown(link, "cpu-5") == quarantined
        await lift(link, "cpu-5", now=NOW)
        await leads(link, "degraded-0")
        done = await becomes(link, await place(link, task_of("anisora", 1)), TaskStatus.DONE, TaskStatus.FAILED)
        assert done.status is TaskStatus.DONE
        assert worker.stop() == 0
        assert await shown(link, "cpu-5") is None, "who leaves shows nothing any more"
    finally:
        worker.kill()


async def test_a_card_that_keeps_its_memory_is_quarantined_and_left(
    link: NatsLink, nats_server: NatsServer, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standby leaves it too: it takes over the leadership but not the slot."""
    card = StuckCard()
    monkeypatch.setattr("lane_worker.runtime.assembly.probe_for", lambda *_: card)
    monkeypatch.setattr("lane_worker.runtime.assembly.Residence", partial(Residence, after_kill_s=0.2))
    worker = DegradedWorker(setup_of(link, catalog, tmp_path, "cpu-5"))
    async with leading(worker, link):
        standby = DegradedProcess(nats_server.address, tmp_path, "degraded-1", "cpu-5", **shared_forks())
        try:
            await place(link, task_of("anisora", 1))
            await eventually(partial(is_shown_as, link, SlotState.RESIDENT))
            await eventually(lambda: asyncio.sleep(0, bool(standby.log_lines("stands_by"))), within_s=60)
            card.used_bytes = 1 << 30
            await place(link, task_of("phr00t", 2))
            quarantined = await eventually(partial(is_shown_as, link, SlotState.QUARANTINED))
            assert quarantined is not None
            assert quarantined.worker == "degraded-0"
            assert "process 4711 (trainer) holds 1.00 GiB" in quarantined.detail
            await eventually(lambda: asyncio.sleep(0, bool(standby.log_lines("slot_quarantined"))))
            assert standby.log_lines("serves") == []
            assert await shown(link, "cpu-5") == quarantined
            card.used_bytes = 0
            # lifted by deletion, as `nats kv del slots cpu-5` does; test_slots.py lifts by the command
            await link.messages.publish(f"$KV.{SLOTS}.cpu-5", b"", headers={"KV-Operation": "DEL"})
            done = await becomes(link, await place(link, task_of("phr00t", 3)), TaskStatus.DONE, TaskStatus.FAILED)
            assert done.status is TaskStatus.DONE
        finally:
            standby.kill()


async def is_shown_as(link: NatsLink, state: SlotState) -> VideoPipelineSlot | None:
    """The entry of cpu-5, if it reads *state*."""
    now = await shown(link, "cpu-5")
    return now if now is not None and now.state is state else None
