"""Which process owns a folder in `scratch`: locks of living processes decide, whatever the folder's age."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lane_worker.runtime.scratch import LOCK, Scratch
from tests.kit.support import clean_environment

SLOT = "cpu-0"
HOLDS = (
    "import sys; from pathlib import Path; from lane_worker.runtime.scratch import Scratch\n"
    f"Scratch(Path(sys.argv[1]), slot='{SLOT}', owner='another').ensure(); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def mine(tmp_path: Path) -> Scratch:
    scratch = Scratch(tmp_path, slot=SLOT, owner="mine")
    scratch.ensure()
    return scratch


@pytest.fixture
def another(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a folder, which it made long ago."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        grow_old(tmp_path / "scratch" / SLOT / "another")
        yield process
        process.kill()


def grow_old(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (0, 0))


def test_a_folder_is_somebodys_until_its_process_ends(mine: Scratch, another: subprocess.Popen[bytes]) -> None:
    folder = mine.folder.with_name("another")
    (folder / "video.mp4").write_bytes(b"x")
    mine.remove_what_others_left()
    assert (folder / "video.mp4").exists()
    another.kill()
    another.wait()
    mine.remove_what_others_left()
    assert not folder.exists()
    assert mine.folder.exists()


def test_a_folder_that_was_removed_is_made_again_and_held(mine: Scratch, tmp_path: Path) -> None:
    for removed in (mine.folder, tmp_path / "scratch"):
        shutil.rmtree(removed)
        mine.remove_what_others_left()  # also where there is no folder of any worker
        mine.ensure()
        grow_old(mine.folder)
        Scratch(tmp_path, slot=SLOT, owner="third").remove_what_others_left()
        assert mine.folder.exists()


def test_a_folder_whose_lock_alone_was_removed_is_held_again(mine: Scratch, tmp_path: Path) -> None:
    (mine.folder / LOCK).unlink()
    mine.ensure()
    Scratch(tmp_path, slot=SLOT, owner="third").remove_what_others_left()
    assert (mine.folder / LOCK).exists()


def test_a_folder_without_a_lock_is_left_alone(mine: Scratch) -> None:
    """The folder may belong to a living worker of an earlier version, or to a worker that is about to lock it."""
    folder = mine.folder.with_name("earlier")
    folder.mkdir()
    grow_old(folder)
    mine.remove_what_others_left()
    assert folder.exists()


def test_nothing_is_left_when_its_owner_leaves(mine: Scratch) -> None:
    mine.remove()
    assert list(mine.folder.parent.iterdir()) == []
