"""The figures of a card prove a release (FR-002): hosts and pipelines are real, the card is `tests/kit/fake_nvml.c`."""

import asyncio
import threading
from pathlib import Path

import pynvml
import pytest
import structlog

from contracts.lanes import SlotState
from lane_worker.residence.patience import ANSWER_S, PatientProbe
from lane_worker.residence.quarantine import MemoryUnreadable, Quarantined
from tests.kit.fake_nvml import GIB, FakeNvml
from tests.kit.measured import Measured
from tests.kit.support import eventually, is_running
from tests.kit.yard import CATALOG, Yard, figures, kill, nvml, released

pytestmark = pytest.mark.asyncio(loop_scope="module")

FULL = 80 * GIB  # all that the fake card has


async def test_a_falling_figure_of_the_card_proves_the_release(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml(deadline_s=60))
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=61 * GIB, fall_bytes=10 * GIB, least_bytes=GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.probe) == ("unloaded", "nvml")
    assert figures(receipt) == (GIB, 61 * GIB, GIB, GIB // 2), "whatever was held"
    assert receipt.samples == 7


async def test_a_card_that_is_empty_after_the_kill_proves_the_release(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    card.set(used_bytes=FULL)
    swap = asyncio.create_task(slot.residence.ready("phr00t"))
    await eventually(lambda: asyncio.to_thread(lambda: pid is not None and not is_running(pid)))
    card.set(used_bytes=GIB)
    receipt = (await swap).receipt
    assert receipt.how == "killed"
    assert "more were in use" in receipt.reason
    assert slot.model == "phr00t"


async def test_a_card_that_stays_full_is_quarantined(
    yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured
) -> None:
    before = released(measured, "quarantined")
    shown: list[tuple[SlotState, str]] = []
    slot = yard.slot(tmp_path, probe=nvml(), on_state=lambda state, _, detail: shown.append((state, detail)))
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    with pytest.raises(Quarantined, match="lift the quarantine") as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.how, receipt.after_bytes, receipt.load_s) == ("killed", FULL, 0.0)
    assert slot.residence.quarantined
    assert slot.residence.resident is None
    assert slot.host.pid is None
    assert shown[-1] == (SlotState.QUARANTINED, refusal.value.detail)
    assert released(measured, "quarantined") == before + 1

    card.set(used_bytes=GIB)  # nothing loads all the same, until an operator lifts the quarantine
    for refused in (slot.residence.ready("phr00t"), slot.residence.ready("phr00t", renew_because="it failed")):
        with pytest.raises(Quarantined):
            await refused
    with pytest.raises(Quarantined):
        await slot.residence.open()
    assert slot.host.pid is None

    slot.residence.lift()
    assert shown[-1] == (SlotState.EMPTY, "")
    assert (await slot.ready("phr00t")).how == "nothing_resident"
    await slot.generate(CATALOG.models["phr00t"])


async def test_a_quarantine_names_the_processes_on_the_card(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """The proof does not change, although the driver says that these processes hold nothing."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    there = {f"process_{n}": 4_000_000_000 + n for n in range(7)} | {f"process_{n}_bytes": n for n in range(6)}
    card.set(used_bytes=FULL, processes=7, **there)
    with structlog.testing.capture_logs() as logs, pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    assert "process 4000000005 holds 0.00 GiB; process 4000000004 holds" in refusal.value.detail
    assert refusal.value.detail.count("holds 0.00 GiB") == 5
    assert "process" not in str(refusal.value)  # a client may read this text
    (line,) = (line for line in logs if line["event"] == "swap")
    assert len(line["holders"]) == 7
    assert line["holders"][-1] == "process 4000000006 holds an unknown amount"


async def test_other_processes_on_the_card_do_not_change_the_proof(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=GIB, processes=1, process_0=4_000_000_000, process_0_bytes=60 * GIB)
    assert (await slot.ready("phr00t")).how == "unloaded"


async def test_lifting_a_quarantine_reads_the_base_again(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """Memory that another program holds there for good is not left over from the worker."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    with pytest.raises(Quarantined):
        await slot.residence.ready("phr00t")
    card.set(used_bytes=21 * GIB)
    slot.residence.lift()
    assert (await slot.ready("phr00t")).base_bytes == 21 * GIB


async def test_a_hanging_driver_proves_no_release(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    slot.residence.memory._patient = patient = PatientProbe(probe)
    await slot.residence.open()
    await slot.ready("anisora")
    patient._answer_s = 0.1  # only while no answer comes
    card.set(hangs=1)
    try:
        with pytest.raises(MemoryUnreadable, match=r"did not answer within 0\.1 s"):
            await slot.residence.ready("phr00t")
        asked = [thread for thread in threading.enumerate() if thread.name == "memory-probe"]
        assert len(asked) == 1
    finally:
        card.set(used_bytes=GIB)
    assert (slot.residence.quarantined, slot.host.pid) == (False, None)
    for thread in asked:
        thread.join()
    patient._answer_s = ANSWER_S
    assert (await slot.ready("phr00t")).proof == "base"  # the worker asks the driver again, by itself


async def test_opening_waits_for_a_driver_that_wakes_up_slowly(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """A driver without persistence mode does so. If the worker did not read the base before the host starts, it would
    have nothing to compare with."""
    shown: list[str] = []

    def on_wait(text: str) -> None:
        shown.append(text)
        patient._answer_s = ANSWER_S
        card.set(used_bytes=GIB)

    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    patient = PatientProbe(probe, answer_s=0.1)
    slot.residence.memory._patient, slot.residence.memory._on_wait = patient, on_wait
    card.set(hangs=1)
    await slot.residence.open()
    assert shown == ["the memory could not be read (the driver did not answer within 0.1 s); it is asked for 30 s"]
    await slot.ready("anisora")
    await kill(slot.host)
    assert ((await slot.ready("anisora")).how, slot.residence.quarantined) == ("killed", False)


async def test_a_driver_that_fails_at_first_is_asked_again(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(used_bytes=GIB, first_fail=3, first_error=pynvml.NVML_ERROR_UNKNOWN)
    await slot.residence.open()
    assert (await slot.ready("anisora")).base_bytes == GIB


async def test_a_driver_that_never_answers_starts_neither_host_nor_quarantine(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    slot.residence.memory._first_answer_s = 0.05
    card.set(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(MemoryUnreadable, match="restart the machine"):
        await slot.residence.open()
    assert (slot.host.pid, slot.residence.quarantined) == (None, False)
    card.set(used_bytes=GIB)
    await slot.residence.open()


async def test_an_error_of_the_card_proves_no_release(
    yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured
) -> None:
    before = released(measured, "unreadable")
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(read_error=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(MemoryUnreadable, match="fallen off its bus") as unreadable:
        await slot.residence.ready("phr00t")
    assert unreadable.value.receipt is not None
    assert (unreadable.value.receipt.how, unreadable.value.receipt.after_bytes) == ("killed", None)
    assert (slot.residence.quarantined, slot.host.pid) == (False, None)
    assert released(measured, "unreadable") == before + 1
    with pytest.raises(MemoryUnreadable):
        await slot.residence.ready("phr00t")
    assert slot.residence.resident is None


async def test_the_base_is_read_after_the_memory_of_the_last_holder_is_gone(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """The slot's last holder was killed a moment ago: its lock is free before its memory is."""
    slot = yard.slot(tmp_path, probe=nvml(deadline_s=60))
    card.set(used_bytes=61 * GIB, fall_bytes=6 * GIB, least_bytes=GIB)
    await slot.residence.open()
    assert (await slot.ready("phr00t")).base_bytes == GIB


async def test_a_restart_does_not_raise_the_base(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """The memory of a dead host is not proven free: the base of a fresh host must not include it."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    await kill(slot.host)
    await slot.residence.open()
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("anisora")
    assert refusal.value.receipt.base_bytes == GIB


async def test_the_memory_of_a_dead_host_is_proven_free_before_the_next_load(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    await kill(slot.host)
    with pytest.raises(Quarantined):
        await slot.residence.ready("anisora")
    assert slot.host.pid is None


async def test_a_card_with_unified_memory_is_proven_by_system_memory(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(v2_error=pynvml.NVML_ERROR_NOT_SUPPORTED, read_error=pynvml.NVML_ERROR_NOT_SUPPORTED)
    await slot.residence.open()
    receipt = await slot.ready("anisora")
    assert (receipt.probe, receipt.free_bytes is not None) == ("unified", True)
    assert await slot.runner.accounts.device() is not None
