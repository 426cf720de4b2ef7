"""What lay on the card when it ran out of memory: a file for torch's viewer, written where an operator asks for it.

It holds sizes, addresses and stack frames (file, line, function), and nothing else: no tensor, no value, no argument,
no folder of this machine.
"""

import contextlib
import fcntl
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

# How many of the allocator's newest events are kept: a load of 14B parameters and some steps. An entry takes some
# kilobytes.
HISTORY_MAX: Final = 20_000
PREFIX: Final = "oom-"
_SEGMENT: Final = [
    *("device", "address", "total_size", "stream", "segment_type", "segment_pool_id"),
    *("allocated_size", "active_size", "requested_size", "is_expandable"),
]
_BLOCK: Final = ["address", "size", "requested_size", "state"]
_EVENT: Final = ["action", "addr", "size", "stream", "time_us", "device_free", "pool_id"]
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_PACKAGES: Final = re.compile(r"^.*/(?:site|dist)-packages/")
_ROOT: Final = Path(__file__).parents[2]


class OomSnapshots:
    """At most *kept* files in *folder*, the newest ones, whichever process wrote them. 0 means no file and no cost."""

    def __init__(self, folder: Path, *, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def record(self) -> None:
        """From now on torch keeps the newest events and where they came from. Call it once, with CUDA started.

        Never raises: the load reports a device that is broken.
        """
        if not self._kept:
            return
        with contextlib.suppress(Exception):
            torch.cuda.memory._record_memory_history("all", context="all", stacks="python", max_entries=HISTORY_MAX)

    def dump(self, model: str, take: Callable[[], Mapping[str, Any]] | None = None) -> str:
        """Writes a file about *model*, readable by its owner alone, and returns its path; "" where nothing was written.

        Call it while the error and what it holds are still alive. Never raises: there is another error to report.
        """
        if not self._kept:
            return ""
        with contextlib.suppress(Exception):
            return str(self._write(model, legible((take or torch.cuda.memory._snapshot)())))
        return ""

    def _write(self, model: str, snapshot: dict[str, Any]) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path_now(model).with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            pickle.dump(snapshot, file)
            path = self._path_now(model)
            part.rename(path)
        # by name, so by age; also what a killed process left half written, but not what a process is writing now
        for old in sorted(self._folder.glob(f"{PREFIX}*"))[: -self._kept]:
            if not _is_being_written(old):
                old.unlink(missing_ok=True)
        return path

    def _path_now(self, model: str) -> Path:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return self._folder / f"{PREFIX}{moment}-{_UNSAFE.sub('_', model)}-{os.getpid()}.pickle"


def _is_being_written(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def legible(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """What torch's viewer needs of *snapshot* (as of `torch.cuda.memory._snapshot`), and no more. Pure.

    What a later torch adds is left out until it is known here: torch has added metadata of the user's before.
    """
    frames = _Frames()
    settings = snapshot.get("allocator_settings", {})
    return {
        "segments": [
            _only(segment, _SEGMENT)
            | {"frames": frames.of(segment)}
            | {"blocks": [_only(block, _BLOCK) | {"frames": frames.of(block)} for block in segment["blocks"]]}
            for segment in snapshot["segments"]
        ],
        "device_traces": [
            [_only(event, _EVENT) | {"frames": frames.of(event)} for event in events]
            for events in snapshot["device_traces"]
        ],
        "allocator_settings": {key: value for key, value in settings.items() if isinstance(value, bool | int | float)},
        "external_annotations": [],
    }


class _Frames:
    """Stacks, each made once: all events of a place share one object in torch, and in the file."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, list[dict[str, Any]]]] = {}

    def of(self, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        given: Sequence[Mapping[str, Any]] = entry.get("frames") or ()
        known = self._made.get(id(given))
        if known is None:
            stack = [
                {"filename": _short(str(frame["filename"])), "line": frame["line"], "name": frame["name"]}
                for frame in given
            ]
            known = self._made[id(given)] = (given, stack)  # keeping `given` keeps its id from another object
        return known[1]


def _short(filename: str) -> str:
    """*filename* below its package's folder, or ours: the file must not show where that folder is on this machine."""
    below = _PACKAGES.sub("", filename)
    if below == filename and Path(filename).is_relative_to(_ROOT):
        return str(Path(filename).relative_to(_ROOT))
    return below if below != filename else Path(filename).name


def _only(entry: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: entry[key] for key in keys if key in entry}
