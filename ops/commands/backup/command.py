"""`warmlane backup` and `warmlane restore`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from contracts.settings import SettingsError, load_settings
from ops.commands.backup.layout import BackupError, BackupManifest, OnBytes
from ops.commands.backup.restoring import restore
from ops.commands.backup.saving import backup
from ops.commands.nats_options import nats_options
from ops.commands.options import profile_option, replicas_option, settings_option
from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import wanted

T = TypeVar("T")


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

    DIR must be new or empty. The backup holds no videos and no images: copy the artifact store afterwards. It still
    holds tasks that are forgotten later.
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

    The server must hold none of these streams and buckets; start gateways and workers afterwards. Tasks that were
    forgotten since the backup come back: forget them once more.
    """
    begun_s = time.monotonic()
    manifest, unended = _run(
        nats, "restoring", lambda link, on_bytes: restore(link, folder.absolute(), on_bytes, replicas=replicas)
    )
    click.echo(
        f"restored {_size(manifest)}, as of {manifest.begun_at:%Y-%m-%d %H:%M:%S} UTC, in "
        f"{time.monotonic() - begun_s:.1f} s; {unended} tasks had not ended and go on. "
        "Tasks that were forgotten since the backup are back: `warmlane tasks forget` removes them once more"
    )
