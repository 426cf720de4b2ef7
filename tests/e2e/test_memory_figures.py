"""What the pipeline host reports of memory, and what it leaves when a card is full, as far as that needs no card."""

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import torch
from torch.cuda import _memory_viz as viz

from contracts.memory import MemoryReading
from lane_worker.forking.allocator import NAMES, WANTED, AllocatorMisconfigured
from lane_worker.forking.fork_server import host_environment
from lane_worker.pipelines import oom_snapshots
from lane_worker.pipelines.allocation import check_allocator, require_expandable
from lane_worker.pipelines.cleanup import CUDA_FIGURES, begin, clean, cuda_figures
from lane_worker.pipelines.oom_snapshots import OomSnapshots, legible

MIB: Final = 1 << 20
ROOT: Final = Path(oom_snapshots.__file__).parents[2]


# Torch's figures, written down from its documentation: `torch.cuda.memory_stats` is empty without CUDA.
STATS: Final = {
    "allocated_bytes.all.current": 10,
    "allocated_bytes.all.peak": 90,
    "allocated_bytes.small_pool.current": 1,
    "inactive_split_bytes.all.current": 5,
    "num_alloc_retries": 2,
    "num_ooms": 1,
    "reserved_bytes.all.current": 20,
    "reserved_bytes.all.peak": 99,
}


def test_the_figures_of_torch() -> None:
    reading = MemoryReading(rss_bytes=0, cleanup_s=0.0, **cuda_figures(STATS))
    assert (reading.cuda_allocated_bytes, reading.cuda_reserved_bytes) == (10, 20)
    assert (reading.cuda_peak_allocated_bytes, reading.cuda_peak_reserved_bytes) == (90, 99)
    assert (reading.cuda_inactive_split_bytes, reading.cuda_alloc_retries, reading.cuda_ooms) == (5, 2, 1)


def test_figures_that_torch_does_not_report_are_none_and_not_zero() -> None:
    assert cuda_figures(torch.cuda.memory_stats() if not torch.cuda.is_available() else {}) == dict.fromkeys(
        CUDA_FIGURES
    )


def test_torch_documents_every_figure() -> None:
    documented = torch.cuda.memory_stats.__doc__ or ""
    for key in CUDA_FIGURES.values():
        kind, _, which = key.partition(".")
        pool, _, measure = which.partition(".")
        if not which:
            assert f'"{kind}"' in documented
            continue
        names = f'"{kind}.{{all,large_pool,small_pool}}.{{current,peak,allocated,freed}}"'
        assert names in documented, key
        assert pool == "all"
        assert measure in ("current", "peak")


def test_a_reading_of_an_earlier_version_is_still_one() -> None:
    """The records of tasks that ended before the update have such readings."""
    before = b'{"rss_bytes": 7, "cuda_allocated_bytes": 3, "cleanup_s": 0.5}'
    reading = msgspec.json.decode(before, type=MemoryReading)
    assert reading == MemoryReading(rss_bytes=7, cuda_allocated_bytes=3, cleanup_s=0.5)
    assert reading.device_used_bytes is None


# Resident memory


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_the_peak_counts_from_its_last_reset() -> None:
    begin("cpu")
    held = bytearray(os.urandom(128 * MIB))
    del held
    reading = clean("cpu")
    assert reading.rss_peak_bytes is not None
    assert reading.rss_peak_bytes > reading.rss_bytes + 100 * MIB
    begin("cpu")
    later = clean("cpu")
    assert later.rss_peak_bytes is not None
    assert later.rss_peak_bytes < reading.rss_peak_bytes - 100 * MIB


def test_a_peak_that_cannot_be_reset_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", _refuse)
    begin("cpu")
    assert clean("cpu").rss_peak_bytes is None


def _refuse(*_: object) -> int:
    raise PermissionError


# The allocator


def test_the_allocator_setting_is_read_back_from_torch() -> None:
    """In a process of its own, because torch reads the variables only once; with a name that torch does not know.

    The CPU build accepts such a name and ignores it; the CUDA build refuses it. Both end in Warmlane's own error.
    """
    environment = host_environment(os.environ) | dict.fromkeys(NAMES, "expandable_segment:True")
    code = "from lane_worker.pipelines.allocation import check_allocator; check_allocator('cpu')"
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    said = asked.stderr.splitlines()[-1]
    assert said.startswith("lane_worker.forking.allocator.AllocatorMisconfigured: torch ")
    assert "expandable_segment:True" in said
    assert WANTED in said


def test_a_setting_that_torch_does_not_understand_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = str(torch._C._accelerator_getAllocatorSettings())

    def ask() -> str:
        try:
            torch._C._accelerator_setAllocatorSettings("expandable_segments:yes")
        finally:
            torch._C._accelerator_setAllocatorSettings(before)
        return before

    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", ask)
    with pytest.raises(AllocatorMisconfigured, match=r"torch does not understand .*Expected 'True' or 'False'"):
        check_allocator("cpu")


def test_a_setting_that_was_changed_later_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "expandable_segments:False")
    with pytest.raises(AllocatorMisconfigured, match="runs with the allocator setting"):
        check_allocator("cpu")


def test_segments_that_the_driver_does_not_support_are_refused() -> None:
    require_expandable({"expandable_segments": True})
    with pytest.raises(AllocatorMisconfigured, match="this driver or platform has none"):
        require_expandable({"expandable_segments": False})


# Snapshots


def snapshot_of(*, size: int = 64 * MIB) -> dict[str, Any]:
    """A snapshot as torch makes it, with content that must not get into the file."""
    ours = {"filename": f"{ROOT}/lane_worker/pipelines/load.py", "line": 12, "name": "load_pipeline", "prompt": "a fox"}
    theirs = {"filename": f"{os.path.dirname(torch.__file__)}/nn/modules/linear.py", "line": 134, "name": "forward"}
    frames = [theirs, ours, {"filename": "/secret/place/run.py", "line": 1, "name": "<module>"}]
    block = {"size": size, "requested_size": size, "address": 4096, "state": "active_allocated", "frames": frames}
    segment = {
        "device": 0,
        "address": 4096,
        "total_size": size,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "allocated_size": size,
        "active_size": size,
        "blocks": [block | {"user_metadata": "a prompt: a red fox"}],
        "frames": frames,
    }
    event = {"action": "alloc", "addr": 4096, "size": size, "stream": 0, "time_us": 5, "frames": frames}
    oom = {
        "action": "oom",
        "size": 1 << 34,
        "stream": 0,
        "device_free": 9,
        "frames": frames,
        "user_metadata": "a red fox",
    }
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "/secret/place", "expandable_segments": True}
    return {
        "segments": [segment],
        "device_traces": [[event, oom]],
        "allocator_settings": settings,
        "external_annotations": [{"name": "a red fox"}],
        "something_new": "a red fox",
    }


def test_a_snapshot_holds_frames_and_sizes_and_nothing_of_the_machine() -> None:
    made = legible(snapshot_of())
    text = repr(made)
    for secret in ("fox", "secret", str(ROOT), sys.prefix, "prompt"):
        assert secret not in text
    (segment,) = made["segments"]
    assert [frame["filename"] for frame in segment["blocks"][0]["frames"]] == [
        "torch/nn/modules/linear.py",
        "lane_worker/pipelines/load.py",
        "run.py",
    ]
    assert made["device_traces"][0][1]["device_free"] == 9
    assert made["allocator_settings"] == {"expandable_segments": True}


def test_torch_reads_a_cleaned_snapshot() -> None:
    made = pickle.loads(pickle.dumps(legible(snapshot_of())))
    assert "total_allocated: 64.0MiB" in viz.segsum(made)
    assert "raise OutOfMemoryError # 16.0GiB requested" in viz.trace(made)


def test_a_stack_is_kept_once() -> None:
    """A history of 20,000 events has some hundred different stacks."""
    many = snapshot_of()
    one = many["device_traces"][0][0]
    many["device_traces"][0] = [one | {"addr": number} for number in range(2_000)]
    assert len(pickle.dumps(legible(many))) < 200_000


def test_the_newest_snapshots_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "oom"
    folder.mkdir()
    (folder / "oom-19990101T000000.000000Z-anisora-1.part").touch()  # left by a process that was killed
    (folder / "notes.txt").touch()
    snapshots = OomSnapshots(folder, kept=2)
    written = [Path(snapshots.dump("../ani sora", snapshot_of)) for _ in range(4)]
    left = sorted(folder.iterdir())
    assert left == sorted([*written[2:], folder / "notes.txt"])
    assert all(path.parent == folder for path in written)
    assert stat.S_IMODE(written[-1].stat().st_mode) == 0o600
    assert pickle.loads(written[-1].read_bytes())["segments"]


def test_a_snapshot_that_another_host_is_writing_is_let_be(tmp_path: Path) -> None:
    folder = tmp_path / "oom"
    snapshots, slow = OomSnapshots(folder, kept=1), OomSnapshots(folder, kept=1)
    faster: list[str] = []

    class Frames(list[object]):
        """Another host writes a snapshot while these frames are being written."""

        def __reduce__(self) -> tuple[type[list[object]], tuple[()]]:
            faster.append(snapshots.dump("phr00t", snapshot_of))
            return (list, ())

    written = slow._write("anisora", {"segments": Frames()})
    assert written.exists()
    assert [Path(path).exists() for path in faster] == [False]  # one is kept, the one that was finished last


def test_the_folder_is_its_owners(tmp_path: Path) -> None:
    assert OomSnapshots(tmp_path / "oom", kept=1).dump("anisora", snapshot_of)
    assert stat.S_IMODE((tmp_path / "oom").stat().st_mode) == 0o700


def test_without_the_option_there_is_none(tmp_path: Path) -> None:
    snapshots = OomSnapshots(tmp_path / "oom", kept=0)
    snapshots.record()
    assert snapshots.dump("anisora", lambda: pytest.fail("it must not be taken")) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_that_fails_is_no_second_error(tmp_path: Path) -> None:
    (tmp_path / "oom").touch()  # no folder can be made
    assert OomSnapshots(tmp_path / "oom", kept=1).dump("anisora", snapshot_of) == ""
    assert OomSnapshots(tmp_path / "there", kept=1).dump("anisora", lambda: {}) == ""
