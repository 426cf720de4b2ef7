"""The folder `NAME.part` beside the target: what it was begun from, and which of its files are finished.

A later run uses it to resume one that was cut off. A lock keeps a second process out.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from contracts.nesting import decode_json
from lane_worker.checkpoints.folder import MANIFEST, PART, Manifest, PreparedFile
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.pipelines.preparing.planning import Plan

STATE: Final = "progress.json"
LOCK: Final = "lock"
# Configurations, the tokenizer, indexes and the manifest: 20 MB and something to spare.
SMALL_FILES_BYTES: Final = 64_000_000


class Stamp(Struct, frozen=True):
    """A file that has the same stamp was not written to in between."""

    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


class PublishedFile(Struct, frozen=True):
    """A published file whose SHA-256 is known, and its stamp at that time."""

    name: str
    stamp: Stamp
    sha256: str


class FolderState(Struct, frozen=True):
    """The state of a work folder: from what and how it is made, and which files are finished."""

    source: str
    way: str
    sources: tuple[PublishedFile, ...] = ()
    files: tuple[PreparedFile, ...] = ()


def free_bytes_at(folder: Path) -> int:
    """The free space of the disk that *folder* is or will be on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def held(part: Path, planned: Plan, *, restart: bool, free_bytes: Callable[[Path], int]) -> Iterator[FolderState]:
    """Holds the work folder against a second process, and yields its state. A refusal leaves no new folder behind."""
    if part.exists():
        with _locked(part, planned, restart=restart, free_bytes=free_bytes) as state:
            yield state
        return
    _require_space(part, planned.size_bytes + SMALL_FILES_BYTES, free_bytes)
    part.mkdir(parents=True, exist_ok=True)
    with _locked(part, planned, restart=restart, free_bytes=free_bytes) as state:
        try:
            yield state
        except CheckpointRefused:
            shutil.rmtree(part)  # while it is held: one that another process holds is that process's
            raise


@contextlib.contextmanager
def _locked(part: Path, planned: Plan, *, restart: bool, free_bytes: Callable[[Path], int]) -> Iterator[FolderState]:
    try:
        lock = FileLock(part / LOCK, fallback_to_soft=False).acquire(blocking=False)
    except Timeout as error:
        raise CheckpointRefused(f"another process is writing {part}; wait for it") from error
    with lock:
        state, way = None if restart else _read_state(part), planned.way()
        if state is not None and state.way != way:
            raise begun_from_others(part, state)
        if state is None:
            state = FolderState(str(planned.source), way)
            write(part / STATE, msgspec.json.encode(state))
        finished_bytes = sum(file.bytes for file in state.files)
        _require_space(part, planned.size_bytes - finished_bytes + SMALL_FILES_BYTES, free_bytes)
        yield state


def begun_from_others(part: Path, state: FolderState) -> CheckpointRefused:
    """The error where the work folder *part* was begun from other files, or with another way to make shards of them."""
    return CheckpointRefused(
        f"{part} was begun from other files ({state.source}) or by another version of Warmlane; give the same --from, "
        "or --restart to begin anew"
    )


def stamp_of(path: Path) -> Stamp:
    """The stamp of the file at *path* now. Raises OSError."""
    stat = path.stat()
    return Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _require_space(part: Path, needed_bytes: int, free_bytes: Callable[[Path], int]) -> None:
    free = free_bytes(part)
    if free < needed_bytes:
        raise CheckpointRefused(
            f"{part.parent} has {free / 1e9:,.1f} GB free and {needed_bytes / 1e9:,.1f} GB are needed; make room, or "
            "name another --to"
        )


def _read_state(part: Path) -> FolderState | None:
    try:
        return decode_json((part / STATE).read_bytes(), FolderState)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def remove_strays(part: Path, manifest: Manifest) -> None:
    """Removes what a run that was killed in the middle of a file left in *part*."""
    wanted = {file.path for file in manifest.files} | {MANIFEST, STATE, LOCK}
    for path in part.rglob("*"):
        if path.is_file() and str(path.relative_to(part)) not in wanted:
            path.unlink()


def write(path: Path, content: bytes) -> None:
    """Writes *content* to *path* atomically: all of it is there, or the earlier file stays."""
    arriving = path.with_name(path.name + PART)
    with arriving.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(arriving, path)


def sync(path: Path) -> None:
    """The content of the file at *path* is on the disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in *folder* are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
