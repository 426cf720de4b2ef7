"""A card that other programs use too, and pipelines that do not fit on it: what the worker blames for it (ADR 0027)."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.checkpoints import Checkpoint
from contracts.lanes import SlotState
from lane_worker.forking.host_messages import Ready
from lane_worker.forking.outcome import LoadFailed
from lane_worker.residence.quarantine import Quarantined
from lane_worker.runtime.outcome import Unsuccessful
from tests.kit.fake_nvml import GIB, UUID, FakeNvml
from tests.kit.yard import CATALOG, Slot, Yard, nvml

pytestmark = pytest.mark.asyncio(loop_scope="module")


def shows_hosts(slot: Slot, card: FakeNvml, *, own_bytes: int, **figures: int) -> None:
    """Once the host of *slot* starts, the driver names it, with *own_bytes*, and shows *figures*."""
    start = slot.host.start

    async def started(*, term: int = 0, rehearse: tuple[Checkpoint, ...] = ()) -> Ready:
        ready = await start(term=term, rehearse=rehearse)
        card.set(processes=1, process_0=ready.pid, process_0_bytes=own_bytes, **figures)
        return ready

    slot.host.start = started  # type: ignore[method-assign]


async def test_growth_of_another_process_is_not_blamed_on_a_host_that_the_driver_names(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    shows_hosts(slot, card, own_bytes=GIB, used_bytes=2 * GIB)
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid or 0
    card.set(used_bytes=62 * GIB, processes=1, process_0=pid, process_0_bytes=GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.proof, slot.host.pid) == ("unloaded", "own_figure", pid)
    assert (receipt.base_bytes, receipt.after_bytes) == (2 * GIB, 62 * GIB)
    assert (receipt.own_base_bytes, receipt.own_bytes) == (GIB, GIB)


async def test_memory_that_another_process_frees_does_not_hide_what_the_host_keeps(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """This holds after the kill, too: the driver reports that the host still holds memory, but the kernel that it has
    ended."""
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(used_bytes=40 * GIB)
    shows_hosts(slot, card, own_bytes=GIB, used_bytes=41 * GIB)
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=21 * GIB, processes=1, process_0=slot.host.pid or 0, process_0_bytes=20 * GIB)
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.how, receipt.base_bytes, receipt.own_base_bytes) == ("killed", 40 * GIB, 0)
    assert (receipt.own_bytes, receipt.free_bytes, receipt.proof) == (20 * GIB, 59 * GIB, "")


async def test_growth_of_an_unnamed_process_costs_the_host_but_not_the_slot(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """In a container or a MIG instance the driver names no process. A host that has ended holds nothing."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    card.set(used_bytes=6 * GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.proof, receipt.free_bytes) == ("killed", "no_pipeline", 74 * GIB)
    assert slot.host.pid not in {None, pid}
    receipt = await slot.ready("anisora")  # the base was read again
    assert (receipt.how, receipt.proof, receipt.base_bytes) == ("unloaded", "base", 6 * GIB)


async def test_growth_before_the_first_load_is_no_leftover(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    pid = slot.host.pid
    card.set(used_bytes=20 * GIB)
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.proof, slot.host.pid) == ("nothing_resident", "no_pipeline", pid)
    assert (await slot.ready("phr00t")).base_bytes == 20 * GIB


async def test_a_pipeline_that_does_not_fit_on_the_card_is_not_loaded(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """This holds at the start, too: the pipeline cannot use the memory that another program holds."""
    entry = CATALOG.models["phr00t"]
    large = replace(entry, checkpoint=replace(entry.checkpoint, activation_bytes=70 * GIB))
    slot = yard.slot(tmp_path, probe=nvml(), models={"phr00t": large})
    card.set(used_bytes=20 * GIB)
    await slot.residence.open()
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.released_model, receipt.free_bytes) == (None, 60 * GIB)
    assert receipt.needed_bytes >= 70 * GIB
    assert f"{receipt.needed_bytes:,} bytes are needed and {60 * GIB:,} are free" in refusal.value.detail


async def test_a_model_larger_than_the_card_is_reported_at_the_start_and_changes_nothing(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    entry = CATALOG.models["phr00t"]
    large = replace(entry, checkpoint=replace(entry.checkpoint, activation_bytes=81 * GIB))
    shown: list[tuple[SlotState, str]] = []
    slot = yard.slot(
        tmp_path,
        probe=nvml(),
        slot="cpu-0",
        models={**CATALOG.models, "phr00t": large},
        on_state=lambda state, _, detail: shown.append((state, detail)),
    )
    await slot.residence.open()
    state, detail = shown[-1]
    assert state is SlotState.EMPTY
    assert re.match(r"phr00t does not fit: with offload none it needs [\d,]+ bytes on the .*, which has", detail)
    await slot.ready("anisora")
    pid, count = slot.host.pid, len(shown)
    with pytest.raises(LoadFailed, match=rf"{80 * GIB:,} in all and {79 * GIB:,} free") as refusal:
        await slot.residence.ready("phr00t")
    assert refusal.value.failure.code == "out_of_memory"
    assert refusal.value.failure.memory.rss_bytes > 0
    assert (slot.model, slot.host.pid, len(shown)) == ("anisora", pid, count)
    assert isinstance(await slot.run("phr00t"), Unsuccessful)  # the second try changes nothing either
    assert (slot.model, slot.host.pid) == ("anisora", pid)


async def test_a_pipeline_that_does_not_fit_into_host_memory_is_not_loaded(
    yard: Yard, card: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that offloading moves between card and host are in the host's memory."""
    entry = CATALOG.models["phr00t"]
    moved = replace(entry, checkpoint=replace(entry.checkpoint, offload="model"))
    slot = yard.slot(tmp_path, probe=nvml(), models={**CATALOG.models, "phr00t": moved})
    await slot.residence.open()
    await slot.ready("anisora")
    slot.residence._slot = UUID  # the host stays on the CPU, and the need is that of a card
    monkeypatch.setattr("lane_worker.residence.fit.available_bytes", lambda: 1000)
    with pytest.raises(LoadFailed, match=r"of the host's memory, of which 1,000 are available") as refusal:
        await slot.residence.ready("phr00t")
    assert refusal.value.failure.code == "out_of_memory"
    assert slot.residence.resident is None  # the refused load released it
    await slot.ready("anisora")
