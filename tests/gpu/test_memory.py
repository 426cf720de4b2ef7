"""What torch and NVML report on a real card, and the snapshot that a full card leaves. Skipped without a card."""

import asyncio
import os
import pickle
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from contracts.settings import load_settings
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate
from lane_worker.forking.outcome import LoadFailed
from lane_worker.residence.patience import PatientProbe
from ops.machine.nvml import NvmlProbe, list_gpus
from ops.machine.readings import GIB
from tests.bench.peers.heavy import heavy_models, parameters_of

PHR00T = load_settings().catalog("tiny").models["phr00t"]
CONTEXT_MAX_BYTES = 2 * GIB
# Takes all but 64 MB of the free memory, until its input ends.
HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.gpu


@pytest.fixture
def card() -> str:
    """The UUID of a card, or MIG instance, that this machine has and this torch can use."""
    cards = list_gpus()
    if not cards:
        pytest.skip("no NVIDIA card")
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    return cards[0].uuid


@asynccontextmanager
async def host_on(card: str, folder: Path, models_dir: Path) -> AsyncIterator[Host]:
    """A started pipeline host that keeps two snapshots. Its start has checked torch's allocator (FR-010)."""
    host = Host(slot=card, lock_dir=folder, models_dir=models_dir, oom_dir=folder / "oom", oom_snapshots=2)
    try:
        await host.start()
        yield host
    finally:
        await host.close()


async def test_every_figure_is_reported(card: str, tmp_path: Path) -> None:
    async with host_on(card, tmp_path, tmp_path) as host:
        loaded = (await host.load(PHR00T)).memory
        request = Generate("task", 1, parameters_of(PHR00T, "a lighthouse"), str(tmp_path / "video.mp4"))
        done = await host.generate(request, lambda _: None)
    assert isinstance(done, Finished), done
    for memory in (loaded, done.memory):
        assert memory.cuda_allocated_bytes
        assert memory.cuda_reserved_bytes is not None
        assert memory.cuda_peak_allocated_bytes is not None
        assert memory.cuda_peak_reserved_bytes is not None
        assert memory.cuda_inactive_split_bytes is not None
        assert memory.cuda_allocated_bytes <= memory.cuda_peak_allocated_bytes <= memory.cuda_peak_reserved_bytes
        assert memory.cuda_allocated_bytes + memory.cuda_inactive_split_bytes <= memory.cuda_reserved_bytes
        assert (memory.cuda_alloc_retries, memory.cuda_ooms) == (0, 0)


async def test_nvml_reports_the_card_and_who_is_on_it(card: str, tmp_path: Path) -> None:
    async with host_on(card, tmp_path, tmp_path) as host:
        probe = PatientProbe(NvmlProbe(card))
        reading = await probe.read(host.pid)
        holders = {holder.pid: holder for holder in await probe.holders()}
        pid = host.pid
    assert reading is not None
    assert reading.used_bytes > 0
    assert reading.free_bytes > 0
    if pid not in holders:
        pytest.skip("the driver counts processes otherwise than they are counted here: this is a container")
    used_bytes = holders[pid].used_bytes
    assert used_bytes is None or 0 < used_bytes < CONTEXT_MAX_BYTES


async def test_a_load_that_finds_the_card_full_leaves_a_snapshot(card: str, tmp_path: Path, heavy_folder: Path) -> None:
    model = heavy_models(heavy_folder)["phr00t"]
    async with host_on(card, tmp_path, heavy_folder) as host:
        hog = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HOG),
            env=os.environ | {"CUDA_VISIBLE_DEVICES": card},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert hog.stdout is not None
            assert await hog.stdout.readline() == b"held\n"
            with pytest.raises(LoadFailed) as refused:
                await host.load(model)
        finally:
            hog.kill()
            await hog.wait()
    failure = refused.value.failure
    assert failure.code == "out_of_memory"
    assert failure.memory.cuda_ooms
    path = Path(failure.snapshot)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    for folder in (tmp_path, heavy_folder, Path(sys.prefix)):
        assert str(folder).encode() not in content
    snapshot = pickle.loads(content)
    assert any(event["action"] == "oom" for events in snapshot["device_traces"] for event in events)
    assert snapshot["allocator_settings"]["expandable_segments"] is True
