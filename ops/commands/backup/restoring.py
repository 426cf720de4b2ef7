"""Brings back what was saved, into a server that holds none of it."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nats.js.errors import NotFoundError

from contracts.nesting import decode_json, loads
from contracts.topology import RETIRED, TASKS
from ops.commands.backup.layout import (
    CHUNK_BYTES,
    META,
    UNENDED,
    BackupError,
    BackupManifest,
    OnBytes,
    Record,
    SavedStream,
    read_manifest,
    restore_order,
)
from ops.commands.backup.server import SILENCE_S, answered, ask, unended_tasks
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink

# The server answers the end of a restore only when it has read the whole stream again.
REBUILD_S: Final = 120.0


async def restore(
    link: NatsLink, folder: Path, on_bytes: OnBytes, *, replicas: int | None
) -> tuple[BackupManifest, int]:
    """Brings back every stream of the backup in *folder*, on *replicas* servers each (None: as they were). Returns the
    manifest, and how many tasks have not ended; those go on when a gateway runs.

    It touches no stream that exists, and leaves none behind when it fails. Raises BackupError, TransportUnavailable.
    """
    manifest = read_manifest(folder)
    saved = {stream.name: stream for stream in manifest.streams if stream.name not in RETIRED}
    _verify(folder / UNENDED, manifest.unended_sha256)
    for stream in manifest.streams:
        _verify(folder / stream.file, stream.sha256)
    unended = decode_json((folder / UNENDED).read_bytes(), list[Record])
    present = [name for name in saved if await _exists(link, name)]
    if present:
        raise BackupError(
            f"the server holds {', '.join(present)} already; restore into an empty one, or remove them first "
            "(nats stream rm NAME)"
        )
    begun: list[str] = []
    try:
        for name in restore_order(list(saved)):
            subject = await _begin(link, folder / name / META, name, replicas)
            begun.append(name)
            await _send_all(link, folder, saved[name], subject, on_bytes)
        await _put_forward(link, unended)
        return manifest, len(await unended_tasks(link))
    except BaseException:
        for name in begun:
            with contextlib.suppress(NotFoundError, TransportUnavailable):
                await link.streams.remove(name)
        raise


def _verify(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}; nothing was restored") from error
    if found != sha256:
        raise BackupError(f"{path} is not what was saved (its SHA-256 differs); nothing was restored")


async def _exists(link: NatsLink, name: str) -> bool:
    return await link.streams.exists(name)


async def _begin(link: NatsLink, meta: Path, name: str, replicas: int | None) -> str:
    """Begins the restore of *name*, and returns the subject on which the server now expects its messages."""
    request = loads(meta.read_bytes())
    if replicas is not None:
        request["config"]["num_replicas"] = replicas
    begun = await ask(link, f"$JS.API.STREAM.RESTORE.{name}", request)
    return str(begun["deliver_subject"])


async def _send_all(link: NatsLink, folder: Path, stream: SavedStream, subject: str, on_bytes: OnBytes) -> None:
    sent = 0
    for chunk in _chunks(folder / stream.file):
        await _send(link, stream.name, subject, chunk, SILENCE_S)
        sent += len(chunk)
        on_bytes(stream.name, sent, stream.bytes)
    await _send(link, stream.name, subject, b"", REBUILD_S)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _send(link: NatsLink, name: str, subject: str, chunk: bytes, within_s: float) -> None:
    answer = await link.core.request(subject, chunk, timeout_s=within_s, about=name)
    if answer.data:
        answered(name, answer.data)


async def _put_forward(link: NatsLink, unended: list[Record]) -> None:
    """Stores each of the *unended* records that came back older, or not at all."""
    for record in unended:
        entry = await link.entries.get(TASKS, record.task_id)
        revision = entry.revision if entry is not None else 0
        if revision < record.revision:
            await link.entries.update(TASKS, record.task_id, record.value, revision=revision)
