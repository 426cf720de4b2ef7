"""Runs of `prepare` that are killed, find a full disk or changed files, or share a folder with another process."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lane_worker.checkpoints.folder import MANIFEST
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.verifying import verify
from lane_worker.pipelines.preparing.writing import prepare
from tests.kit.published import (
    DIT,
    NOW,
    PHR00T,
    add,
    changed,
    drop,
    load_all,
    prepared,
    stopped,
)
from tests.kit.small_checkpoints import (
    SHARD_BYTES,
    SMALL_LAYOUTS,
)
from tests.kit.support import clean_environment

ROOT = Path(__file__).parents[2]
Accident = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def accident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accident]:
    """Runs a process that has one of the accidents of `tests/kit/small_checkpoints.py`."""
    program = [sys.executable, "-m", "tests.kit.small_checkpoints"]
    with subprocess.Popen(
        program, cwd=ROOT, env=clean_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as forks:

        def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            folder = tmp_path_factory.mktemp("accident")
            texts = [folder / "output", folder / "errors"]
            assert forks.stdin is not None
            assert forks.stdout is not None
            print(json.dumps([*map(str, (*texts, *arguments))]), file=forks.stdin, flush=True)
            status = int(forks.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, *(text.read_text() for text in texts))

        yield run
        forks.kill()


def test_a_disk_that_fills_up_is_reported_and_the_work_resumes_when_there_is_room(
    accident: Accident, phr00t: Path, tmp_path: Path
) -> None:
    alone = ("unshare", "--mount", "--propagation", "private")
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    done = accident("full", phr00t, tmp_path, "400k")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    vae = f"{tmp_path}/made.part/vae/diffusion_pytorch_model.safetensors.part"
    assert (first["code"], first["output"].strip()) == (
        1,
        f"Error: {vae}: No space left on device; what is finished is kept in {tmp_path}/made.part: "
        "run the same command again",
    )
    assert not any(path.startswith(("made/", "made.part/vae/diffusion")) for path in first["files"])
    assert second["code"] == 0, second["output"]
    kept = "transformer/diffusion_pytorch_model.safetensors"
    assert second["files"][f"made/{kept}"] == first["files"][f"made.part/{kept}"]


def test_a_run_killed_within_a_write_is_resumed(accident: Accident, phr00t: Path, tmp_path: Path) -> None:
    source, target, part = phr00t / "aio.safetensors", tmp_path / "made", tmp_path / "made.part"
    shards = [shard.path for each in plan(PHR00T, source, shard_bytes=SHARD_BYTES).shards for shard in each]
    killed = accident("killed", source, target, shards[2])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(tmp_path.iterdir()) == [part]
    assert (part / f"{shards[2]}.part").is_file()  # half of it
    assert not (part / shards[2]).exists()
    (part / "vae" / "of-another-version.safetensors").parent.mkdir(exist_ok=True)
    (part / "vae" / "of-another-version.safetensors").write_bytes(b"")
    first, second = ((part / path).stat() for path in shards[:2])
    damaged = (part / shards[1]).read_bytes()
    (part / shards[1]).write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))

    begun = []
    planned = plan(PHR00T, source, shard_bytes=SHARD_BYTES)
    manifest = prepare(planned, target, now=NOW, on_progress=lambda _done, _total, file: begun.append(file))
    assert begun[0] == "aio.safetensors"  # its SHA-256 is known, and it is not read again
    assert set(begun[1:]) == set(shards)
    assert (target / shards[0]).stat().st_ino == first.st_ino  # kept
    assert (target / shards[1]).stat().st_ino != second.st_ino  # it was damaged, and is written again
    assert (target / shards[1]).read_bytes() == damaged
    assert sorted(tmp_path.iterdir()) == [target]
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        *(file.path for file in manifest.files),
        MANIFEST,
    }
    assert verify(target, SMALL_LAYOUTS, lambda _: None) == (manifest, [])


def test_a_source_that_changed_between_two_runs_is_refused(phr00t: Path, tmp_path: Path) -> None:
    """Even if size and time are the same. A copy elsewhere with the same content is accepted once it was read."""
    source = changed(phr00t, tmp_path, drop())
    stopped(source, tmp_path / "made")
    shutil.move(source.parent, tmp_path / "moved")
    source = tmp_path / "moved" / "aio.safetensors"
    os.utime(source, ns=(0, 0))
    seen = stopped(source, tmp_path / "made")
    assert "SHA-256 of aio.safetensors" in seen
    before, whole = source.stat(), source.read_bytes()
    with source.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([whole[-1] ^ 1]))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CheckpointRefused, match="was begun from other files"):
        prepared(PHR00T, source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("during", ["SHA-256 of", "vae/"])
def test_a_source_written_to_during_a_run_is_refused(during: str, phr00t: Path, tmp_path: Path) -> None:
    """For example a download that is not complete yet."""
    source = changed(phr00t, tmp_path, drop())

    def on_progress(done_bytes: int, total_bytes: int, file: str) -> None:
        if file.startswith(during):
            with source.open("r+b") as opened:
                opened.seek(-1, os.SEEK_END)
                opened.write(b"x")

    with pytest.raises(CheckpointRefused, match=r"aio\.safetensors was written to while it was read"):
        prepared(PHR00T, source, tmp_path / "made", on_progress=on_progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_a_work_folder_of_other_files_is_left_alone(phr00t: Path, tmp_path: Path) -> None:
    target, part = tmp_path / "made", tmp_path / "made.part"
    stopped(phr00t, target)
    before = {path: path.read_bytes() for path in part.rglob("*") if path.is_file()}
    other = changed(phr00t, tmp_path, add(f"{DIT}head.head.bias", torch.zeros(64)))
    with pytest.raises(CheckpointRefused, match=r"was begun from other files \(.*--restart to begin anew"):
        prepared(PHR00T, other, target)
    with pytest.raises(CheckpointRefused, match="or by another version of Warmlane"):  # with other shards
        prepared(PHR00T, phr00t, target, shard_bytes=SHARD_BYTES)
    assert {path: path.read_bytes() for path in part.rglob("*") if path.is_file()} == before
    prepared(PHR00T, other, target, restart=True)
    assert torch.equal(load_all(target / "transformer")["proj_out.bias"], torch.zeros(64, dtype=torch.bfloat16))


def test_two_processes_do_not_write_the_same_folder(phr00t: Path, tmp_path: Path) -> None:
    stopped(phr00t, tmp_path / "made")
    with (tmp_path / "made.part" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointRefused, match="another process is writing"):
            prepared(PHR00T, phr00t, tmp_path / "made")
    prepared(PHR00T, phr00t, tmp_path / "made")


def test_a_second_process_does_not_delete_the_work_of_the_first(phr00t: Path, tmp_path: Path) -> None:
    """Both processes saw no work folder, and one of them was faster."""
    begun = tmp_path / "made.part" / "model-00001-of-00002.safetensors"
    with contextlib.ExitStack() as held:

        def is_overtaken(_: Path) -> int:
            begun.parent.mkdir()
            begun.write_bytes(b"hours of work")
            lock = held.enter_context((begun.parent / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            return 1 << 40

        with pytest.raises(CheckpointRefused, match="another process is writing"):
            prepared(PHR00T, phr00t, tmp_path / "made", free_bytes=is_overtaken)
    assert begun.read_bytes() == b"hours of work"
