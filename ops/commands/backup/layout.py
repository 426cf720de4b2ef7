"""A backup: every stream and bucket as files, in the layout of the NATS CLI, and the order in which saving them is
safe.

Each stream is a snapshot of its own, taken a moment after the previous one, while tasks go on. Their order
(`snapshot_order`) makes the changes in between harmless: queues, then records, then the other buckets.

- Records are saved after queues. So no message is ahead of its record; a worker would wait for that record. A worker
  drops a message that is behind its record, as always. A pending record whose message is not in the backup is overdue
  after the restore: the gateway that looks at it reroutes or ends the task.
- A snapshot takes time, and holds only what is still there when its turn comes. Of a key that changes more often than
  its history is long, it holds nothing or an old revision. So `backup` reads the records of tasks that have not ended
  before it takes the snapshot of their bucket. `restore` then updates each of them that came back older or not at all.
  Records of ended tasks no longer change. Other buckets may lack what changed just then; their owners write it again.
- A backup of an earlier version also holds the timers of its tasks. `restore` skips them: a gateway reads the deadline
  of each task from its record (ADR 0037).

After a restore, tasks go on by the usual rules. A task that was running loses its lease and is queued again. A task
that waited too long for the degraded worker ends as `queue_overloaded`; one that waited too long for a lane is
rerouted. Tasks that were accepted after the backup are unknown. Videos, thumbnails and images are files of the artifact
store. They are copied after the backup, so that everything that a record names is there.
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
    """What a backup holds. It is written last, so that a folder with a manifest is whole."""

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
    """*names* in the order in which they must come back: buckets, then the queues that act on their records. Pure."""
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
