"""A backup: every stream and bucket as files, in the layout of the NATS CLI, and the order in which saving them is
safe.

Each stream is a snapshot of its own, taken a moment after the one before, while tasks go on. Their order makes what
lies between harmless (`snapshot_order`): queues, then records, then the other buckets.

- Records are saved after queues. So a message is never ahead of its record, for which a worker would wait; a message
  that is behind its record is dropped, as always. A pending record whose message is not in the backup is overdue when
  it comes back, and is moved or ended by the gateway that looks at it.
- A snapshot takes time, and holds only what is still there when its turn comes: of a key that moves on more often
  than its history is long, nothing or an old revision. So the records of tasks that have not ended are read before
  the snapshot of their bucket, and `restore` puts those forward that it brought back older or not at all. Records that
  have ended move no more. Other buckets may lack what changed just then; their owners write it again.
- A backup of an earlier version holds the timers of its tasks, too. They are passed over: a gateway reads the deadline
  of each task from its record (ADR 0037).

What is restored then goes on by the usual rules: a task that was running loses its lease and is queued again; one that
waited too long for the degraded worker ends as `queue_overloaded`, for a lane it is rerouted. What was accepted after
the backup is not known any more. Videos, their thumbnails and images are files of the artifact store: copied after the
backup, so that everything that a record names is there.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from contracts.nesting import decode_json
from contracts.topology import TASKS, Topology, bucket_stream

MANIFEST: Final = "manifest.json"
UNENDED: Final = "unended.json"
META: Final = "backup.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 128 * 1024
OnBytes = Callable[[str, int, int], None]


class BackupError(Exception):
    """The backup or the restore failed. The text says what to do."""


class SavedStream(Struct, frozen=True, kw_only=True):
    """One stream of a backup: where its messages lie, below the folder of the backup."""

    name: str
    file: str
    bytes: int
    sha256: str
    messages: int


class Record(Struct, frozen=True):
    """The record of a task that had not ended, at its revision."""

    task_id: str
    revision: int
    value: bytes


class BackupManifest(Struct, frozen=True, kw_only=True):
    """What a backup holds; written last, so that a folder with one is whole."""

    format: int
    server: str
    begun_at: datetime
    ended_at: datetime
    streams: tuple[SavedStream, ...]
    unended_sha256: str


def snapshot_order(want: Topology) -> list[str]:
    """The streams of *want* in the order in which they must be saved (see above). Pure."""
    first = [*(stream.name for stream in want.streams), bucket_stream(TASKS)]
    return first + [name for name in want.names if name not in first]


def restore_order(names: list[str]) -> list[str]:
    """*names* in the order in which they must come back: what acts on records after them. Pure."""
    return sorted(names, key=lambda name: (not name.startswith(bucket_stream("")), name))


def read_manifest(folder: Path) -> BackupManifest:
    """What the backup in *folder* holds. Raises BackupError."""
    try:
        manifest = decode_json((folder / MANIFEST).read_bytes(), BackupManifest)
    except FileNotFoundError as error:
        raise BackupError(f"{folder} is no whole backup: it has no {MANIFEST}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise BackupError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise BackupError(f"{folder} has format {manifest.format}; this version of Warmlane reads {FORMAT}")
    return manifest
