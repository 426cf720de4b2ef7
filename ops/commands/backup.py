"""`warmlane backup` and `warmlane restore`: every stream and bucket as files, in the layout of the NATS CLI.

Each stream is a snapshot of its own, taken a moment after the one before, while tasks go on. Their order makes what
lies between harmless (`snapshot_order`): queues, then records, then timers, then the other buckets.

- Records are younger than queues. So a message is never ahead of its record, which a worker would wait for; one that
  is behind is dropped, as ever. A pending record whose message is not in the backup gets a new one from the sweeper.
- A snapshot takes time, and holds only what is still there when its turn comes: of a key that moves on more often
  than its history is long, nothing or an old revision. So the records of tasks that have not ended are read before
  the snapshot of their bucket, and `restore` puts those forward that it brought back older or not at all. Records that
  have ended move no more. Other buckets may lack what changed just then; their owners write it again.
- Timers are younger than records, so a task that was accepted between the two has no record: its timer ends it as
  refused, under an id that the backup does not know otherwise.
- A timer that was replaced, or had done its work, between the two is missing, and with it what would end its task. So
  `restore` stores a timer for every task that has not ended, due at once: the sweeper looks at each, and goes on from
  what its record says.

What is restored then goes on by the usual rules: a task that was running loses its lease and is queued again; one that
waited too long for the degraded worker ends as `queue_overloaded`, for a lane it is rerouted. What was accepted after
the backup is not known any more. Videos and images are files of the artifact store: copied after the backup, so that
everything that a record names is there.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import click
import msgspec
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import NotFoundError
from rich.console import Console
from rich.progress import Progress

from contracts.nesting import decode_json, loads
from contracts.settings import SettingsError, load_settings
from contracts.tasks import TaskStatus, UnreadableTask, decode_task
from contracts.topology import DEADLINES, TASKS, TimerKind, Topology, bucket_stream
from ops.commands.options import nats_options, profile_option, replicas_option, settings_option
from ops.nats.access import NatsAccess
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable, UnusableServer, translated
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted

MANIFEST: Final = "manifest.json"
UNENDED: Final = "unended.json"
META: Final = "backup.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 128 * 1024
# The server gives up on a client that is silent for 5 s; so do we on a server, with something to spare.
SILENCE_S: Final = 10.0
# It answers the end of a restore when it has read the whole stream again.
REBUILD_S: Final = 120.0

T = TypeVar("T")
OnBytes = Callable[[str, int, int], None]


class BackupError(Exception):
    """It did not succeed. The text says what to do."""


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
    first = [stream.name for stream in want.streams if stream.name != DEADLINES]
    first += [bucket_stream(TASKS), DEADLINES]
    return first + [name for name in want.names if name not in first]


def restore_order(names: list[str]) -> list[str]:
    """*names* in the order in which they must come back: what acts on records after them, timers last. Pure."""
    return sorted(names, key=lambda name: (name == DEADLINES, not name.startswith(bucket_stream("")), name))


# ── backup ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def backup(link: NatsLink, want: Topology, folder: Path, on_bytes: OnBytes) -> BackupManifest:
    """Saves every stream and bucket of *want* into *folder*, which appears when all of it is written.

    *on_bytes* is told a stream, the bytes that came, and about how many there are. Raises BackupError,
    TransportUnavailable.
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
                unended = msgspec.json.encode(await _unended(link))
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
        told = await _ask(link, f"$JS.API.STREAM.SNAPSHOT.{name}", request)
        (folder / name).mkdir(mode=0o700)
        _write(folder / name / META, json.dumps({"config": told["config"], "state": told["state"]}, indent=2).encode())
        arriving = folder / name / "stream.part"
        total = told["state"]["bytes"]
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
        messages=told["state"]["messages"],
    )


async def _receive(chunks: Subscription, name: str, path: Path, on_bytes: Callable[[int], None]) -> tuple[bytes, str]:
    """Writes the snapshot to *path*; how it begins, and its SHA-256."""
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
                    await chunk.respond(b"")  # it sends no more than a few without
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


# ── restore ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def restore(
    link: NatsLink, folder: Path, on_bytes: OnBytes, *, replicas: int | None
) -> tuple[BackupManifest, int]:
    """Brings back every stream of the backup in *folder*, on *replicas* servers each (None: as they were), and stores
    a timer for every task that has not ended; how many those are.

    It touches no stream that exists, and leaves none behind when it fails. Raises BackupError, TransportUnavailable.
    """
    manifest = read_manifest(folder)
    saved = {stream.name: stream for stream in manifest.streams}
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
        return manifest, await _store_timers(link)
    except BaseException:
        for name in begun:
            with contextlib.suppress(NotFoundError, TransportUnavailable):
                await link.streams.remove(name)
        raise


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
    """Where the server expects the messages of *name* from now on."""
    request = loads(meta.read_bytes())
    if replicas is not None:
        request["config"]["num_replicas"] = replicas
    told = await _ask(link, f"$JS.API.STREAM.RESTORE.{name}", request)
    return str(told["deliver_subject"])


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
        _told(name, answer.data)


async def _put_forward(link: NatsLink, unended: list[Record]) -> None:
    """Stores those records that came back older than they were known to be, or not at all."""
    for record in unended:
        entry = await link.entries.get(TASKS, record.task_id)
        revision = entry.revision if entry is not None else 0
        if revision < record.revision:
            await link.entries.update(TASKS, record.task_id, record.value, revision=revision)


async def _store_timers(link: NatsLink) -> int:
    """Stores a timer for every task that has not ended, and returns how many those are."""
    unended = await _unended(link)
    for record in unended:
        kind: TimerKind = "admit" if decode_task(record.value).status is TaskStatus.PENDING else "lease"
        await link.timers.set(kind, record.task_id, datetime.now(UTC), record.value)
    return len(unended)


async def _unended(link: NatsLink) -> list[Record]:
    """The last records of all tasks that have not ended."""
    found: dict[str, Record] = {}

    def note(entry: Entry) -> None:
        found.pop(entry.key, None)
        with contextlib.suppress(UnreadableTask):
            if entry.value is not None and not decode_task(entry.value).status.is_terminal:
                found[entry.key] = Record(entry.key, entry.revision, entry.value)

    await (await link.watches.start(TASKS, note)).wait()
    return list(found.values())


# ── the server's words ───────────────────────────────────────────────────────────────────────────────────────────────


async def _ask(link: NatsLink, subject: str, request: dict[str, Any]) -> dict[str, Any]:
    name = subject.rpartition(".")[2]
    answer = await link.core.request(subject, json.dumps(request).encode(), timeout_s=SILENCE_S, about=name)
    return _told(name, answer.data)


def _told(name: str, answer: bytes) -> dict[str, Any]:
    told: dict[str, Any] = loads(answer)
    if "error" in told:
        raise BackupError(f"{name}: {told['error'].get('description', told['error'])}")
    return told


def _private(path: Path) -> BinaryIO:
    """A new file for its owner alone, whatever the umask: a backup holds prompts."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _write(path: Path, content: bytes) -> None:
    with _private(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(nats: NatsAccess, text: str, work: Callable[[NatsLink, OnBytes], Awaitable[T]]) -> T:
    async def run() -> T:
        link = await NatsLink.connect(nats, name="backup")
        try:
            with Progress(console=Console(stderr=True), transient=True) as progress:
                bar = progress.add_task(text)

                def on_bytes(name: str, came: int, total: int) -> None:
                    progress.update(bar, description=f"{text} {name}", completed=came, total=max(came, total))

                return await work(link, on_bytes)
        finally:
            await link.close()

    try:
        return asyncio.run(run())
    except (BackupError, TransportUnavailable, UnusableServer, SettingsError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _size(manifest: BackupManifest) -> str:
    size_bytes = sum(stream.bytes for stream in manifest.streams)
    messages = sum(stream.messages for stream in manifest.streams)
    return f"{len(manifest.streams)} streams and buckets, {messages} messages, {size_bytes:,} bytes"


@click.command(
    epilog="Examples:\n\n  warmlane backup backups/monday\n\n"
    "  warmlane backup /srv/backups/today --nats-url nats://127.0.0.1:4222"
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@nats_options("admin", asks_for_folder=True)
@settings_option
@profile_option
def backup_command(folder: Path, nats: NatsAccess, settings: Path | None, profile: str) -> None:
    """Save every stream and bucket into DIR, while tasks go on.

    DIR must be new or empty. Videos are not in it: copy the artifact store afterwards.
    """

    async def work(link: NatsLink, on_bytes: OnBytes) -> BackupManifest:
        want = wanted(load_settings(settings).catalog(profile), keep_s=0)
        return await backup(link, want, folder.absolute(), on_bytes)

    begun_s = time.monotonic()
    manifest = _run(nats, "saving", work)
    click.echo(f"saved {_size(manifest)} in {time.monotonic() - begun_s:.1f} s: {folder}")


@click.command(
    epilog="Examples:\n\n  warmlane restore backups/monday\n\n"
    "  warmlane restore backups/monday --replicas 3 --nats-url nats://127.0.0.1:4222,nats://127.0.0.1:4223"
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@nats_options("admin", asks_for_folder=True)
@replicas_option
def restore_command(folder: Path, nats: NatsAccess, replicas: int | None) -> None:
    """Bring back what `warmlane backup` saved in DIR.

    The server must hold none of it; start gateways and workers afterwards.
    """
    begun_s = time.monotonic()
    manifest, unended = _run(
        nats, "restoring", lambda link, on_bytes: restore(link, folder.absolute(), on_bytes, replicas=replicas)
    )
    click.echo(
        f"restored {_size(manifest)}, as of {manifest.begun_at:%Y-%m-%d %H:%M:%S} UTC, in "
        f"{time.monotonic() - begun_s:.1f} s; {unended} tasks had not ended and go on"
    )
