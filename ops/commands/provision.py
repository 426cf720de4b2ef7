"""`warmlane provision`: makes a nats-server hold what Warmlane needs, or reports where it differs."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click

from contracts.settings import SettingsError, load_settings
from ops.commands.nats_options import nats_options
from ops.commands.options import keep_option, profile_option, replicas_option, require_kept_long_enough, settings_option
from ops.commands.variables import option_or_variable
from ops.nats.access import NatsAccess
from ops.nats.api_keys import add, read_keys
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import Difference, ProvisioningRefused, differences, provision, wanted
from ops.nats.retired import Retired, retire, retired

# A cluster that has just started, or lost its leader, elects one within this time.
ELECTION_S: Final = 15.0
FIRST_CALLER: Final = "first"


@click.command(
    epilog="Examples:\n\n  warmlane provision\n\n  warmlane provision --check --nats-url nats://127.0.0.1:4222\n\n"
    "  warmlane provision --first-key /var/lib/warmlane/first.key\n\n"
    "  warmlane provision --replicas 3 --nats-url nats://127.0.0.1:4222,nats://127.0.0.1:4223"
)
@nats_options("admin", asks_for_folder=True)
@settings_option
@profile_option
@keep_option
@replicas_option
@option_or_variable(
    "--first-key",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="WARMLANE_FIRST_KEY",
    help="Where no API key was ever made: make one of the scope admin, and write it into this file, which its owner "
    "alone may read.",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when the server differs.")
def command(
    nats: NatsAccess,
    settings: Path | None,
    profile: str,
    keep_s: float,
    replicas: int | None,
    first_key: Path | None,
    check: bool,
) -> None:
    """Create or update Warmlane's streams, consumers and buckets on the nats-server.

    It also removes what only an earlier version needed, once no process of that version uses it.
    """

    async def run() -> tuple[list[Difference], list[Retired]]:
        catalog = load_settings(settings).catalog(profile)
        require_kept_long_enough(keep_s, catalog.windows)
        link = await NatsLink.connect(nats, name="provision")
        try:
            want = wanted(catalog, keep_s=keep_s, replicas=replicas)
            found = await _patiently(partial(differences if check else provision, link, want))
            if first_key is not None and not check:
                await make_first_key(link, first_key)
            return found, await (retired if check else retire)(link)
        finally:
            await link.close()

    try:
        found, old = asyncio.run(run())
    except (SettingsError, TransportUnavailable, UnusableServer, ProvisioningRefused) as error:
        raise click.ClickException(str(error)) from error
    for difference in found:
        click.echo(f"{'differs' if check else 'mended '}  {difference}")
    for stream in old:
        done = "differs" if check else "kept   " if stream.used_by else "removed"
        click.echo(f"{done}  {stream}")
    if check and (found or old):
        raise click.exceptions.Exit(1)
    if not (found or old):
        click.echo("nothing to do: the server matches")


async def make_first_key(link: NatsLink, file: Path) -> None:
    """Makes a key of the scope admin, and writes it into *file*, but only if no key was ever made.

    Raises click.ClickException if the file exists already or cannot be written; then it makes no key.
    """
    if (await read_keys(link)).was_one_made:
        return
    try:
        opened = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii")
    except FileExistsError:
        advice = "it may be of another server; remove it, and run this again"
        raise click.ClickException(
            f"--first-key {file} is there, and no key was made on this server: {advice}"
        ) from None
    except OSError as error:
        raise click.ClickException(
            f"--first-key {file} cannot be written: {error.strerror}; no key was made"
        ) from error
    with opened:
        try:
            key = await add(link, FIRST_CALLER, ("admin",), now=datetime.now(UTC))
        except TransportUnavailable:
            file.unlink()
            raise
        opened.write(f"{key.text}\n")
    click.echo(f"made     the first API key, of the scope admin; it is in {file}")


async def _patiently(call: Callable[[], Awaitable[list[Difference]]]) -> list[Difference]:
    until_s = time.monotonic() + ELECTION_S
    while True:
        try:
            return await call()
        except TransportUnavailable as error:
            if time.monotonic() > until_s:
                raise TransportUnavailable(f"{error}; a cluster needs most of its servers") from error
            await asyncio.sleep(0.2)
