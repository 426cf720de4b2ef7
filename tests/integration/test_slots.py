"""KV `slots` on a real server: what workers show, and a quarantine that only a lift ends (ADR 0010)."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts.lanes import SlotState, VideoPipelineSlot
from contracts.settings import Catalog
from contracts.topology import LANES, SLOTS, SLOTS_SHOWN_S, bucket_stream, lane_key
from lane_worker.runtime.slot_display import SlotDisplay
from ops.ending import end
from ops.lanes.left_behind import forget_the_dead
from ops.machine.processes import warmlane_command
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.shown_slots import lift, read_slots
from tests.kit.behind import js_of
from tests.kit.degraded import shown
from tests.kit.records import lane_report
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, clean_environment, eventually

SLOT = "cpu-7"
DEAD = 1 << 22 | 7  # no process has this number


class Shown(SlotDisplay):
    """A display with its task, as a worker runs it."""

    def __init__(self, link: NatsLink, worker: str) -> None:
        super().__init__(link, slot=SLOT, worker=worker)
        self.running: asyncio.Task[None] | None = None


@pytest.fixture
async def display(link: NatsLink) -> AsyncIterator[Callable[[str], "asyncio.Future[Shown]"]]:
    """A function that makes the display of a worker. It runs until the test ends."""
    async with AsyncExitStack() as stack:

        async def make(worker: str) -> Shown:
            shown = Shown(link, worker)
            await shown.start()
            shown.running = asyncio.create_task(shown.run())
            stack.push_async_callback(end, shown.running)
            return shown

        yield lambda worker: asyncio.ensure_future(make(worker))


async def entry(link: NatsLink) -> VideoPipelineSlot | None:
    return await shown(link, SLOT)


async def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        warmlane_command(*arguments),
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=clean_environment() | {"COLUMNS": "200"},
        check=False,
    )


async def test_the_latest_state_wins_and_is_written_once(
    link: NatsLink, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    shown = await display("degraded-0")
    shown.take()
    for state in (SlotState.EMPTY, SlotState.LOADING, SlotState.RESIDENT):
        shown.show(state, "anisora", "first")
    await shown.settled()
    now = await entry(link)
    assert now is not None
    assert (now.slot, now.worker, now.model, now.state, now.detail) == (
        SLOT,
        "degraded-0",
        "anisora",
        SlotState.RESIDENT,
        "first",
    )
    stored = await link.entries.get(SLOTS, SLOT)
    assert stored is not None
    shown.show(SlotState.RELEASING, "anisora")
    await shown.settled()
    again = await link.entries.get(SLOTS, SLOT)
    assert again is not None
    assert again.revision == stored.revision + 1


async def test_a_quarantine_reaches_the_server_however_long_it_is_away(
    link: NatsLink, nats_server: NatsServer, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    shown = await display("degraded-0")
    nats_server.kill()
    await eventually(lambda: asyncio.sleep(0, not link.connection.is_connected))
    shown.take()
    shown.show(SlotState.QUARANTINED, None, "3 GiB are still held")
    shown.show(SlotState.EMPTY, None)  # the end of the host lifts nothing
    assert shown.quarantine is not None
    settled = asyncio.create_task(shown.settled())
    usable = asyncio.create_task(shown.usable())
    nats_server.start()
    await asyncio.wait_for(settled, BOUND_S)
    now = await entry(link)
    assert now is not None
    assert (now.state, now.detail) == (SlotState.QUARANTINED, "3 GiB are still held")
    assert not usable.done()
    await end(usable)


@pytest.mark.parametrize("how", ["command", "kv del"])
async def test_a_quarantine_stands_until_an_operator_lifts_it(
    how: str, link: NatsLink, nats_server: NatsServer, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    """No worker's display overwrites it, every worker stays away, and all of them notice the lift."""
    first, second = await display("degraded-0"), await display("degraded-1")
    first.take()
    first.show(SlotState.QUARANTINED, None, "3 GiB are still held")
    await first.settled()
    unaware = SlotDisplay(link, slot=SLOT, worker="degraded-2")  # it checked a moment too early
    running = asyncio.create_task(unaware.run())
    unaware.take()
    unaware.show(SlotState.LOADING, "anisora")
    await unaware.settled()
    await end(running)
    assert unaware.quarantine is not None
    restarted = await display("degraded-0")
    waiting = [asyncio.create_task(it.usable()) for it in (first, second, restarted)]
    await eventually(lambda: asyncio.sleep(0, all(it.quarantine is not None for it in (first, second, restarted))))
    now = await entry(link)
    assert now is not None
    assert now.state is SlotState.QUARANTINED
    assert not any(task.done() for task in waiting)
    if how == "command":
        listed = await command("slots", "--nats-url", nats_server.url)
        assert "quarantined" in listed.stdout
        assert "3 GiB are still held" in listed.stdout
        lifted = await command("slots", "lift", SLOT, "--nats-url", nats_server.url)
        assert lifted.returncode == 0, lifted.stderr
        assert "3 GiB are still held" in lifted.stdout
    else:
        # as `nats kv del slots cpu-7`
        await link.messages.publish(f"$KV.{SLOTS}.{SLOT}", b"", headers={"KV-Operation": "DEL"})
    await asyncio.wait_for(asyncio.gather(*waiting), BOUND_S)
    second.take()
    second.show(SlotState.LOADING, "anisora")
    await second.settled()
    now = await entry(link)
    assert now is not None
    assert (now.worker, now.state) == ("degraded-1", SlotState.LOADING)


async def test_one_that_lost_the_slot_changes_nothing(
    link: NatsLink, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    """A resumed ex-leader's host is gone, and its probe sees the new leader's pipeline: its verdict means nothing."""
    old, new = await display("degraded-0"), await display("degraded-1")
    old.take()
    old.show(SlotState.RESIDENT, "anisora")
    await old.settled()
    new.take()
    new.show(SlotState.RESIDENT, "phr00t")
    await new.settled()
    for state in (SlotState.EMPTY, SlotState.QUARANTINED, SlotState.EMPTY):
        old.show(state, None, "too late")
        await old.settled()
    now = await entry(link)
    assert now is not None
    assert (now.worker, now.state) == ("degraded-1", SlotState.RESIDENT)
    assert old.quarantine is None
    await asyncio.wait_for(old.usable(), BOUND_S)


async def test_what_is_shown_is_written_again_and_removed_by_who_leaves(
    link: NatsLink, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    """A reader knows by this which workers are gone: no other process may rewrite or remove the entry."""
    old, new = await display("degraded-0"), await display("degraded-1")
    old.take()
    old.show(SlotState.RESIDENT, "anisora", "first")
    await old.settled()
    first = await link.entries.get(SLOTS, SLOT)
    await old.refresh()
    second = await link.entries.get(SLOTS, SLOT)
    assert first is not None
    assert second is not None
    assert (second.revision, second.value) == (first.revision + 1, first.value)
    new.take()
    new.show(SlotState.RESIDENT, "phr00t")
    await new.settled()
    third = await link.entries.get(SLOTS, SLOT)
    await old.refresh()
    await old.leave()
    assert await link.entries.get(SLOTS, SLOT) == third
    await new.leave()
    assert await entry(link) is None


async def test_a_quarantine_is_neither_written_again_nor_removed(
    link: NatsLink, display: Callable[[str], "asyncio.Future[Shown]"]
) -> None:
    """Otherwise a worker that writes or leaves at that moment would undo what an operator did."""
    shown = await display("degraded-0")
    shown.take()
    shown.show(SlotState.QUARANTINED, None, "held")
    await shown.settled()
    stored = await link.entries.get(SLOTS, SLOT)
    await shown.refresh()
    await shown.leave()
    assert await link.entries.get(SLOTS, SLOT) == stored
    await lift(link, SLOT, now=datetime.now(UTC))
    await eventually(lambda: asyncio.sleep(0, shown.quarantine is None))
    await shown.refresh()
    await shown.leave()
    now = await entry(link)
    assert now is not None
    assert now.state is SlotState.EMPTY


async def test_a_new_system_forgets_who_is_dead(link: NatsLink, nats_server: NatsServer) -> None:
    """Entries of lanes and slots whose processes are gone are removed; a quarantine stays, and so do living
    processes."""
    now = datetime.now(UTC)
    for slot, pid, state in (
        ("cpu-1", DEAD, SlotState.RESIDENT),
        ("cpu-2", DEAD, SlotState.QUARANTINED),
        ("cpu-3", os.getpid(), SlotState.RESIDENT),
    ):
        shown = VideoPipelineSlot(slot=slot, worker="w", pid=pid, model="anisora", state=state, since=now)
        await link.entries.put(SLOTS, slot, msgspec.json.encode(shown))
    await link.entries.put(SLOTS, "cpu-4", b"no slot")
    for worker, pid in (("anisora-0", DEAD), ("anisora-1", os.getpid())):
        report = lane_report(worker, slot="cpu-1", pid=pid, started_at=now)
        await link.entries.put(LANES, lane_key("anisora", worker), msgspec.json.encode(report))
    other = await NatsLink.connect(nats_server.url, name="up")
    try:
        assert await forget_the_dead(other, is_alive=lambda pid: pid != DEAD) == 2
    finally:
        await other.close()
    assert [slot.slot for slot in await read_slots(link, now=now)] == ["cpu-2", "cpu-3"]
    later = now + timedelta(seconds=SLOTS_SHOWN_S + 60)
    assert [slot.slot for slot in await read_slots(link, now=later)] == ["cpu-2"]
    for worker, is_left in (("anisora-0", False), ("anisora-1", True)):
        found = await link.entries.get(LANES, lane_key("anisora", worker))
        assert (found is not None and found.value is not None) is is_left


@pytest.mark.parametrize("state", [SlotState.RESIDENT, SlotState.QUARANTINED])
async def test_what_a_worker_shows_stands_in_a_bucket_that_was_made_anew_too(
    link: NatsLink, catalog: Catalog, display: Callable[[str], "asyncio.Future[Shown]"], state: SlotState
) -> None:
    """A quarantine is not lifted when the server loses it."""
    shown = await display("degraded-0")
    shown.take()
    shown.show(state, "anisora", "first")
    await shown.settled()
    await js_of(link).delete_stream(bucket_stream(SLOTS))
    await provision(link, wanted(catalog, keep_s=KEEP_S))

    async def stands() -> bool:
        now = await entry(link)
        return now is not None and now.state is state

    await eventually(stands)
    assert (shown.quarantine is not None) is (state is SlotState.QUARANTINED)


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["slots", "lift", "cpu-9"], 1, "no worker has shown a slot cpu-9"),
        (["slots", "lift", SLOT], 1, f"slot {SLOT} is resident, not quarantined"),
        (["slots", "lift", "a slot"], 2, "not usable in a subject"),
        (["slots", "drop"], 2, "No such command 'drop'"),
    ],
)
async def test_what_cannot_be_lifted_is_reported(
    arguments: list[str], status: int, expected: str, link: NatsLink, nats_server: NatsServer
) -> None:
    resident = VideoPipelineSlot(
        slot=SLOT, worker="degraded-0", pid=1, model="anisora", state=SlotState.RESIDENT, since=datetime.now(UTC)
    )
    await link.entries.put(SLOTS, SLOT, msgspec.json.encode(resident))
    result = await command(arguments[0], "--nats-url", nats_server.url, *arguments[1:])
    assert (result.returncode, expected in result.stderr) == (status, True), result.stderr
    assert "Traceback" not in result.stderr
    now = await entry(link)
    assert now == resident


async def test_no_slots_yet(link: NatsLink, nats_server: NatsServer) -> None:
    result = await command("slots", "--nats-url", nats_server.url)
    assert (result.returncode, result.stdout) == (0, "no worker shows a slot, and none is quarantined\n")
