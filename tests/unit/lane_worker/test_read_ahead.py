"""What is read ahead: the weights of a folder, complete and in order; and nothing where that cannot help."""

import os
import threading
from pathlib import Path

import pytest

from lane_worker.residence import read_ahead as module
from lane_worker.residence.read_ahead import PIECE_BYTES, ReadAhead, read_ahead
from tests.kit.support import eventually

SIZES = {"text_encoder/model.safetensors": 5, "transformer/a.safetensors": 2 * PIECE_BYTES + 7, "vae/b.safetensors": 9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size_bytes in SIZES.items():
        path = tmp_path / name
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(size_bytes)
    (tmp_path / "model_index.json").write_text("{}")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Name and offset of each piece that the system was asked for."""
    pieces: list[tuple[str, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (length, advice) == (PIECE_BYTES, os.POSIX_FADV_WILLNEED)
        pieces.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, offset))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return pieces


def test_every_byte_of_the_weights_in_the_order_of_the_load(folder: Path, asked: list[tuple[str, int]]) -> None:
    assert read_ahead(folder, threading.Event()) == sum(SIZES.values())
    in_a = [("a.safetensors", offset) for offset in (0, PIECE_BYTES, 2 * PIECE_BYTES)]
    assert asked == [("model.safetensors", 0), *in_a, ("b.safetensors", 0)]


def test_nothing_that_does_not_fit(folder: Path, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: sum(SIZES.values()) - 1)
    assert read_ahead(folder, threading.Event()) == 0
    assert asked == []


def test_nothing_after_a_stop(folder: Path, asked: list[tuple[str, int]]) -> None:
    stop = threading.Event()
    stop.set()
    assert read_ahead(folder, stop) == 0
    assert asked == []


def test_unreadable_files_are_left_for_the_load_to_report(tmp_path: Path, asked: list[tuple[str, int]]) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert read_ahead(tmp_path, threading.Event()) == 0
    assert read_ahead(tmp_path / "missing", threading.Event()) == 0


def test_without_such_a_call_nothing_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    assert read_ahead(folder, threading.Event()) == 0


async def test_what_is_expected_is_read_once_until_another_folder_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(module, "read_ahead", lambda path, _: begun.append(path.name))
    ahead = ReadAhead()
    for name in ("one", "one", "two", "one"):
        ahead.expect(folder / name)
    ahead.begin(folder / "one")  # the swap asks for it in any case

    async def all_of_them() -> bool:
        return sorted(begun) == ["one", "one", "one", "two"]

    await eventually(all_of_them)
    ahead.stop()
    ahead.expect(folder / "one")

    async def anew() -> bool:
        return len(begun) == 5

    await eventually(anew)


async def test_the_next_folder_ends_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Path, threading.Event]] = []
    monkeypatch.setattr(module, "read_ahead", lambda *arguments: begun.append(arguments))
    ahead = ReadAhead()
    for name in ("one", "two"):
        ahead.begin(folder / name)

    async def both() -> bool:
        return len(begun) == 2

    await eventually(both)
    stops = {path.name: stop.is_set() for path, stop in begun}
    assert stops == {"one": True, "two": False}
    ahead.stop()
    assert all(stop.is_set() for _, stop in begun)
