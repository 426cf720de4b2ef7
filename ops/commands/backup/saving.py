"""Saves every stream and bucket, while tasks go on."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts.topology import TASKS, Topology, bucket_stream
from ops.commands.backup.layout import (
    CHUNK_BYTES,
    FORMAT,
    MANIFEST,
    META,
    UNENDED,
    BackupError,
    BackupManifest,
    OnBytes,
    SavedStream,
    snapshot_order,
)
from ops.commands.backup.server import SILENCE_S, ask, unended_tasks
from ops.nats.errors import TransportUnavailable, translated
from ops.nats.link import NatsLink


async def backup(link: NatsLink, want: Topology, folder: Path, on_bytes: OnBytes) -> BackupManifest:
    """Saves every stream and bucket of *want* into *folder*, which appears when all of it is written.

    It calls *on_bytes* with a stream's name, the number of bytes received, and about how many there are. Raises
    BackupError, TransportUnavailable.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackupError(f"{folder} is not empty; name a new folder")
    part = folder.with_name(folder.name + ".part")
    begun_at = datetime.now(UTC)
    try:
        part.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise BackupError(f"{part} is there: another backup runs, or one was cut off; then remove it") from error
    try:
        streams: list[SavedStream] = []
        unended = b""
        for name in snapshot_order(want):
            if name == bucket_stream(TASKS):
                unended = msgspec.json.encode(await unended_tasks(link))
                _write(part / UNENDED, unended)
            streams.append(await _save(link, name, part, on_bytes))
        manifest = BackupManifest(
            format=FORMAT,
            server=link.connection.server_version,
            begun_at=begun_at,
            ended_at=datetime.now(UTC),
            streams=tuple(streams),
            unended_sha256=hashlib.sha256(unended).hexdigest(),
        )
        _write(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part)
        raise
    return manifest


async def _save(link: NatsLink, name: str, folder: Path, on_bytes: OnBytes) -> SavedStream:
    inbox, chunks = await link.core.inbox(about=name)
    try:
        # consumers too: what is acked stays acked
        request = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES, "jsck": True}
        saved = await ask(link, f"$JS.API.STREAM.SNAPSHOT.{name}", request)
        (folder / name).mkdir(mode=0o700)
        _write(
            folder / name / META, json.dumps({"config": saved["config"], "state": saved["state"]}, indent=2).encode()
        )
        arriving = folder / name / "stream.part"
        total = saved["state"]["bytes"]
        begins, sha256 = await _receive(chunks, name, arriving, lambda came: on_bytes(name, came, total))
    finally:
        with contextlib.suppress(Exception):
            await chunks.unsubscribe()
    # as the NATS CLI names it: nats-server 2.15 writes archives of its own, older ones write tar
    file = f"{name}/stream.{'arc' if b'NATSARC' in begins else 'tar'}.s2"
    arriving.rename(folder / file)
    return SavedStream(
        name=name,
        file=file,
        bytes=(folder / file).stat().st_size,
        sha256=sha256,
        messages=saved["state"]["messages"],
    )


async def _receive(chunks: Subscription, name: str, path: Path, on_bytes: Callable[[int], None]) -> tuple[bytes, str]:
    """Writes the snapshot to *path*, and returns its first bytes and its SHA-256."""
    digest, begins, came = hashlib.sha256(), b"", 0
    with _private(path) as file:
        while chunk := await _next(chunks, name):
            begins = begins or chunk.data[:64]
            digest.update(chunk.data)
            file.write(chunk.data)
            came += len(chunk.data)
            on_bytes(came)
            if chunk.reply:
                with translated(name):
                    await chunk.respond(b"")  # without an answer, the server stops after a few chunks
        file.flush()
        os.fsync(file.fileno())
    return begins, digest.hexdigest()


async def _next(chunks: Subscription, name: str) -> Msg | None:
    """The next chunk; None at the end."""
    with translated(name):
        chunk = await chunks.next_msg(timeout=SILENCE_S)
    headers = chunk.headers or {}
    if headers.get("Status", "204") != "204":
        raise TransportUnavailable(f"{name}: the server broke off: {headers.get('Description', headers['Status'])}")
    return chunk if chunk.data else None


def _private(path: Path) -> BinaryIO:
    """A new file for its owner alone, whatever the umask: a backup holds prompts."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _write(path: Path, content: bytes) -> None:
    with _private(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
