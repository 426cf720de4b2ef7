"""Hosts that die, loads that fail, and leaders that follow one another on one slot (FR-001)."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from contracts.lanes import SlotState
from lane_worker.forking.host_messages import SlotNote
from lane_worker.forking.outcome import HostLost, LoadFailed, LoadTimedOut, SlotTaken
from lane_worker.forking.slot import lock_path, process_start
from tests.kit.support import eventually, is_running
from tests.kit.yard import CATALOG, SLOT, Yard, changed, kill, rss

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_dead_host_is_started_again(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    await kill(slot.host)
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.released_model, receipt.after_bytes) == ("killed", "anisora", 0)
    assert receipt.reason == "the host had ended before"
    await slot.generate(CATALOG.models["anisora"])


async def test_renewing_starts_a_fresh_host(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    receipt = (await slot.residence.ready("anisora", renew_because="it ran out of memory")).receipt
    assert (receipt.how, receipt.reason) == ("killed", "it ran out of memory")
    assert slot.model == "anisora"
    assert slot.host.pid != pid


async def test_after_a_failed_load_another_model_loads(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load"))
    await slot.residence.open()
    await slot.ready("anisora")
    with pytest.raises(LoadFailed) as failure:
        await slot.residence.ready("phr00t")
    assert failure.value.failure.code == "out_of_memory"
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.released_model) == ("unloaded", None)  # the release covers what the failed load left
    await slot.generate(CATALOG.models["anisora"])


async def test_a_model_that_is_not_in_the_settings_does_not_load(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    with pytest.raises(LoadFailed, match="no model wan") as refused:
        await slot.residence.ready("wan")
    assert refused.value.receipt is None
    assert slot.model == "anisora"


async def test_a_load_that_hangs_ends_the_host(yard: Yard, tmp_path: Path) -> None:
    models = changed("phr00t", "hang-in-load", load_s=0.3)
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    await slot.residence.open()
    with pytest.raises(LoadTimedOut):
        await slot.residence.ready("phr00t")
    assert slot.host.pid is None
    await slot.ready("anisora")


async def test_a_caller_cancelled_in_mid_swap_leaves_no_pipeline(yard: Yard, tmp_path: Path) -> None:
    loading = asyncio.Event()

    def on_state(state: SlotState, _model: str | None, _detail: str) -> None:
        if state is SlotState.LOADING:
            loading.set()

    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "hang-in-load"), on_state=on_state)
    await slot.residence.open()
    swap = asyncio.create_task(slot.residence.ready("phr00t"))
    await loading.wait()
    swap.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swap
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert receipt.how == "killed"
    await slot.generate(CATALOG.models["anisora"])


async def test_a_new_leader_ends_the_host_of_a_stopped_leader(yard: Yard, tmp_path: Path) -> None:
    old, new = (yard.slot(tmp_path, probe=rss()) for _ in range(2))
    await old.residence.open(term=4)
    await old.ready("anisora")
    pid = old.host.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # stopped like its worker, it would hold the card for ever

    await new.residence.open(term=9)
    assert not is_running(pid)
    await new.ready("phr00t")
    await eventually(lambda: asyncio.sleep(0, old.host.pid is None))
    assert old.residence.resident is None
    with pytest.raises(HostLost, match="is held by process"):  # it does not end the new leader's host in turn
        await old.residence.ready("anisora")
    assert new.model == "phr00t"
    await new.generate(CATALOG.models["phr00t"])


@pytest.mark.parametrize(("role", "term"), [("degraded", 9), ("degraded", 10), ("lane", 0)])
async def test_a_leader_ends_no_lane_and_no_leader_of_its_own_or_a_later_term(
    yard: Yard, tmp_path: Path, role: str, term: int
) -> None:
    shown: list[SlotState] = []
    holder = yard.slot(tmp_path, probe=rss(), role=role)
    rival = yard.slot(tmp_path, probe=rss(), on_state=lambda state, *_: shown.append(state))
    await holder.residence.open(term=term)
    with pytest.raises(SlotTaken):
        await rival.residence.open(term=9)
    await rival.residence.close()
    assert shown == []  # a worker reports nothing about a slot that another one holds
    await holder.ready("phr00t")


async def test_a_process_with_the_pid_of_a_dead_host_survives(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    bystander = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    started = process_start(bystander.pid)
    assert started is not None
    note = SlotNote(bystander.pid, started - 1, "degraded", 1)
    lock_path(tmp_path, SLOT).write_bytes(msgspec.json.encode(note) + b"\n")
    await slot.residence.open(term=2)
    assert is_running(bystander.pid)
    bystander.kill()
    await bystander.wait()
