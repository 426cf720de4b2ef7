"""`warmlane keys`: who may call the HTTP API. Every gateway watches the bucket `keys`, and obeys within a second."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from contracts.keys import (
    ANONYMOUS,
    BURST_MAX_S,
    DEFAULT_BURST_S,
    DEFAULT_RATE_PER_S,
    SCOPES,
    ApiKey,
    Presented,
    Scope,
    is_caller,
    parse_presented,
)
from contracts.tasks import Priority
from ops.commands.nats_options import nats_options
from ops.nats.access import NatsAccess
from ops.nats.api_keys import BURST_MAX, NoSuchKey, StoredKey, add, forget_revoked, read_keys, revoke
from ops.nats.call import on_nats
from ops.nats.link import NatsLink
from ops.nats.provisioning import NotProvisioned


def shown(key: ApiKey) -> dict[str, Any]:
    """The fields of *key* that may be shown: all but the hash of its secret."""
    fields: dict[str, Any] = msgspec.to_builtins(key)
    del fields["secret_sha256"]
    return fields


def table_of(keys: Iterable[ApiKey]) -> Table:
    """The keys, a row each."""
    table = Table(show_header=True)
    table.add_column("id", no_wrap=True)  # to be copied
    table.add_column("state", no_wrap=True)
    for heading in ("caller", "scopes", "rate", "highest class", "at most", "created (UTC)", "revoked (UTC)"):
        table.add_column(heading, overflow="fold")
    for key in keys:
        rate = "no limit" if key.rate_per_s is None else f"{key.rate_per_s:g}/s in {key.burst_s} s"
        moments = [key.created_at, key.revoked_at]
        times = [at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if at else "" for at in moments]
        state = "[red]revoked[/]" if key.revoked_at else "[green]in force[/]"
        table.add_row(
            key.id,
            state,
            key.caller,
            " ".join(key.scopes),
            rate,
            key.highest_priority.value,
            bounds_of(key),
            *times,
            style="dim" if key.revoked_at else None,
        )
    return table


def bounds_of(key: ApiKey) -> str:
    """How many tasks may wait and run for *key*."""
    bounds = ((key.max_waiting, "waiting"), (key.max_running, "running"))
    return ", ".join(f"{most} {what}" for most, what in bounds if most is not None) or "no bound"


@click.group(
    epilog="Examples:\n\n  warmlane keys add alice --scope submit --scope read\n\n  warmlane keys list\n\n"
    "  warmlane keys revoke 0f6a3c9d21be"
)
def command() -> None:
    """Make, list and revoke the API keys of every gateway on one nats-server.

    Without any key, a gateway on the loopback lets everybody do everything, and one on another address waits for the
    first key. From the first key on, every request needs one.
    """


def _caller(_: click.Context, __: click.Parameter, value: str) -> str:
    if not is_caller(value):
        raise click.BadParameter(f"{value!r}: 1 to 64 letters, digits and . _ @ -, and not {ANONYMOUS}")
    return value


@command.command(
    name="add",
    epilog="Examples:\n\n  key=$(warmlane keys add alice --scope submit --scope read)\n\n"
    "  warmlane keys add dashboard --scope read --rate 2\n\n"
    "  warmlane keys add prometheus --scope metrics\n\n  warmlane keys add operator --scope admin --rate 0",
)
@click.argument("caller", callback=_caller)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    required=True,
    help="What it may do: submit (generate, cancel), read (tasks, videos), metrics (GET /metrics alone, for a "
    "Prometheus), admin (everything). May be repeated.",
)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(0, 100_000),
    default=DEFAULT_RATE_PER_S,
    show_default=True,
    help="Requests a second that it may make of each gateway; 0 is no limit.",
)
@click.option(
    "--burst",
    "burst_s",
    type=click.IntRange(1, BURST_MAX_S),
    default=DEFAULT_BURST_S,
    show_default=True,
    help="Seconds over which its requests are counted: after a pause of that length, CALLER may send the "
    "missed requests at once.",
)
@click.option(
    "--highest-priority",
    type=click.Choice([each.value for each in Priority]),
    default=Priority.INTERACTIVE.value,
    show_default=True,
    help="The highest class that its requests may name; those that name none get `standard`, or this if it is lower.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    help="While so many tasks of CALLER wait, each further request is a 429. [default: no bound]",
)
@click.option(
    "--max-running",
    type=click.IntRange(1),
    help="While so many tasks of CALLER run, each further request is a 429. [default: no bound]",
)
@nats_options("admin", asks_for_folder=True)
def add_command(
    caller: str,
    scopes: tuple[Scope, ...],
    rate_per_s: float,
    burst_s: int,
    highest_priority: str,
    max_waiting: int | None,
    max_running: int | None,
    nats: NatsAccess,
) -> None:
    """Make a key for CALLER and print it, only this once. Standard output holds the key and nothing else.

    Keys of the same caller see the same tasks. To change a key, add another, then revoke the first.
    """
    if 0 < rate_per_s * burst_s < 1:
        raise click.UsageError(
            f"--rate {rate_per_s:g} is less than one request in --burst {burst_s} s; "
            f"use --burst {-int(-1 // rate_per_s)}, or a higher rate"
        )
    if rate_per_s * burst_s > BURST_MAX:
        raise click.UsageError(
            f"--rate {rate_per_s:g} in --burst {burst_s} s is more than {BURST_MAX} requests, each of which is "
            "remembered; use a shorter --burst, or --rate 0 for no limit"
        )

    async def make(link: NatsLink) -> Presented:
        now = datetime.now(UTC)
        await forget_revoked(link, now=now)
        return await add(
            link,
            caller,
            scopes,
            rate_per_s=rate_per_s or None,
            burst_s=burst_s,
            highest_priority=Priority(highest_priority),
            max_waiting=max_waiting,
            max_running=max_running,
            now=now,
        )

    presented = on_nats(nats, make, name="keys", shown=(NotProvisioned, NoSuchKey))
    click.echo(
        f"key {presented.id} for {caller} ({', '.join(scopes)}) is in force from now on. "
        "Keep what follows: it is stored nowhere and cannot be shown again.",
        err=True,
    )
    click.echo(presented.text)
    click.echo("For warmlane submit and the like: export WARMLANE_API_KEY=… or --api-key-file FILE", err=True)


@command.command(name="list", epilog="Examples:\n\n  warmlane keys list\n\n  warmlane keys list --all --json")
@click.option("--all", "with_revoked", is_flag=True, help="Revoked ones too, which are kept for 30 days.")
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")
@nats_options("admin", asks_for_folder=True)
def list_command(with_revoked: bool, as_json: bool, nats: NatsAccess) -> None:
    """Show the keys that are in force; never a secret."""
    stored = on_nats(nats, read_keys, name="keys", shown=(NotProvisioned, NoSuchKey))
    keys = stored.keys if with_revoked else stored.in_force
    if as_json:
        click.echo(json.dumps([shown(key) for key in keys]))
    elif keys:
        Console().print(table_of(keys))
    elif stored.was_one_made:
        click.echo("no API key is in force; `warmlane keys add CALLER --scope submit --scope read` makes one")
    else:
        click.echo("no API key yet; `warmlane keys add CALLER --scope submit --scope read` makes one")
    if stored.revoked and not with_revoked:
        click.echo(f"revoked: {len(stored.revoked)}; --all shows them too", err=True)
    for name in stored.unreadable:
        click.echo(
            f"the entry {name} cannot be read and lets nobody in; `nats kv del keys {name}` removes it", err=True
        )


@command.command(name="revoke", epilog="Examples:\n\n  warmlane keys revoke 0f6a3c9d21be")
@click.argument("key_id", metavar="ID")
@nats_options("admin", asks_for_folder=True)
def revoke_command(key_id: str, nats: NatsAccess) -> None:
    """Revoke a key: within a second no gateway accepts it. `keys list --all` shows it for 30 days.

    ID is the one that `warmlane keys list` shows. Revoking the last key opens nothing: gateways then refuse every
    request.
    """
    presented = parse_presented(key_id)
    if presented is not None:
        key_id = presented.id  # somebody may have nothing but the text of a key that leaked

    async def end(link: NatsLink) -> tuple[ApiKey, StoredKey]:
        now = datetime.now(UTC)
        await forget_revoked(link, now=now)
        return await revoke(link, key_id, now=now), await read_keys(link)

    was, stored = on_nats(nats, end, name="keys", shown=(NotProvisioned, NoSuchKey))
    if was.revoked_at is not None:
        click.echo(f"key {was.id} of {was.caller} was revoked already, at {was.revoked_at:%Y-%m-%d %H:%M:%S} UTC")
    else:
        click.echo(f"revoked: key {was.id} of {was.caller}")
    if not stored.in_force:
        click.echo(
            "no key is in force now: gateways refuse every request until `warmlane keys add` makes one", err=True
        )
