"""Swaps of pipelines big enough to show in resident memory, and the time of each part of a swap (FR-002, SC-009)."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from contracts.lanes import SlotState
from lane_worker.forking.fork_server import FORK_SERVER
from ops.machine.memory import RssProbe
from tests.bench.peers.heavy import heavy_models
from tests.drills import swap_parts
from tests.drills.swap import alternate, judge
from tests.kit.support import fork_server_at
from tests.kit.yard import CATALOG, SLOT, Yard, figures, rss

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1_000_000


async def test_every_swap_releases_a_heavy_pipeline(heavy_folder: Path) -> None:
    """FR-002: `make swap`, shortened."""
    shared = fork_server_at(FORK_SERVER)
    alternations = await alternate(heavy_folder, count=3, leak=False, console=Console(quiet=True), shared=shared)
    assert [verdict.passed for verdict in judge(alternations)[:2]] == [True, True]


async def test_two_heavy_pipelines_take_turns(yard: Yard, heavy_folder: Path, tmp_path: Path) -> None:
    """SC-009 on a CPU: resident memory shows each release, and one process runs both pipelines."""
    models = heavy_models(heavy_folder)
    shown: list[tuple[SlotState, str | None]] = []
    slot = yard.slot(
        tmp_path,
        probe=RssProbe(),
        models=models,
        models_dir=heavy_folder,
        on_state=lambda state, model, _: shown.append((state, model)),
    )
    await slot.residence.open()
    pid = slot.host.pid
    first = await slot.ready("anisora")
    assert (first.how, first.released_model, first.loaded_model) == ("nothing_resident", None, "anisora")
    held = sum(path.stat().st_size for path in (heavy_folder / "heavy-anisora").rglob("*.safetensors"))
    assert first.probe == "rss"
    assert first.needed_bytes == pytest.approx(held, rel=0.001)  # counted in the folder: not `expected_bytes`
    assert first.samples >= 2
    await slot.generate(models["anisora"])
    resident = "anisora"
    for following in ("phr00t", "anisora"):
        receipt = await slot.ready(following)
        assert (receipt.how, receipt.alive, receipt.reason) == ("unloaded", (), "")
        assert (receipt.released_model, receipt.loaded_model) == (resident, following)
        base, before, after, tolerance = figures(receipt)
        assert before - base > 300 * MB
        assert after <= base + tolerance
        assert tolerance == 48 * MB
        assert receipt.samples >= 2
        assert receipt.free_bytes is not None
        assert receipt.free_bytes >= receipt.needed_bytes > 300 * MB
        await slot.generate(models[following])
        resident = following
    assert slot.host.pid == pid
    assert slot.model == "anisora"
    loaded = slot.residence.resident
    assert await slot.residence.ready("anisora") is loaded  # it is not loaded a second time
    assert shown[:3] == [
        (SlotState.EMPTY, None),
        (SlotState.LOADING, "anisora"),
        (SlotState.RESIDENT, "anisora"),
    ]
    assert shown[3:6] == [
        (SlotState.RELEASING, "anisora"),
        (SlotState.LOADING, "phr00t"),
        (SlotState.RESIDENT, "phr00t"),
    ]


async def test_swap_parts_measures_each_part_of_a_swap(yard: Yard) -> None:
    """`make swap-parts` with tiny pipelines: each part of each swap, beside its physical limit where it has one."""
    models = {name: CATALOG.models[name] for name in ("anisora", "phr00t")}
    warmed = yard.slot(yard.folder / "locks", probe=rss())  # makes the pipelines unless another test has
    await warmed.residence.open()
    for name in models:
        await warmed.ready(name)
    await warmed.residence.close()
    found = await swap_parts.swaps(models, yard.folder, yard.good, slot=SLOT, count=1)
    assert {cache: len(receipts) for cache, receipts in found.items()} == dict.fromkeys(swap_parts.CACHES, 1)
    for (receipt,) in found.values():
        assert receipt.how == "unloaded"
        assert receipt.read_s
        assert receipt.first_step_s
    limits = swap_parts.limits_of(yard.folder / models["phr00t"].checkpoint.folder, slot=SLOT)
    assert min(limits.cold_read, limits.warm_read) > 0
    lines = swap_parts.beside_limits(found, limits, weights_bytes=1, poll_s=0.1)
    page = Console(record=True, width=200, file=io.StringIO())
    for table in swap_parts.tables(found, lines):
        page.print(table)
    text = page.export_text()
    assert all(part in text for part in ("release", "proof", "read", "copy", "first step", "no card"))
