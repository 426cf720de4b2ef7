"""`warmlane keys`: who may call the HTTP API. Every gateway watches the bucket `keys`, and obeys within a second."""

import contextlib
import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from contracts.keys import (
    ANONYMOUS,
    BURST_MAX_S,
    DEFAULT_BURST_S,
    DEFAULT_RATE_PER_S,
    SCOPES,
    SECRET_BYTES,
    ApiKey,
    Presented,
    Scope,
    is_caller,
    parse_presented,
    sha256_of,
)
from contracts.tasks import Priority
from contracts.topology import DAY_S, KEYS, bucket_stream
from ops.commands.nats_options import nats_options
from ops.nats.access import NatsAccess
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import API_KEYS
from ops.nats.call import on_nats
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import NotProvisioned

ID_BYTES: Final = 6
# A gateway remembers the time of every request in a burst.
BURST_MAX: Final = 100_000
# How long one can look up whose a revoked key was. A key whose entry is gone lets nobody in either.
REVOKED_KEPT_S: Final = 30 * DAY_S

T = TypeVar("T")


class NoSuchKey(Exception):
    """There is nothing to revoke. The text says why."""


class StoredKey(Struct, frozen=True):
    """What KV `keys` holds: the keys, oldest first, and the names of entries that cannot be read and let nobody in.

    *was_one_made*: a key was made once, so that even a gateway on the loopback stays closed when none is in force any
    more.
    """

    keys: tuple[ApiKey, ...]
    unreadable: tuple[str, ...]
    was_one_made: bool

    @property
    def in_force(self) -> tuple[ApiKey, ...]:
        """The keys that were not revoked."""
        return tuple(key for key in self.keys if key.revoked_at is None)

    @property
    def revoked(self) -> tuple[ApiKey, ...]:
        """The keys that were revoked."""
        return tuple(key for key in self.keys if key.revoked_at is not None)


async def read_keys(link: NatsLink) -> StoredKey:
    """Every key that was made. Raises NotProvisioned, TransportUnavailable."""
    entries = {entry.key: entry for entry in await (await _bucket(link)).entries()}
    keys = [entry.value for entry in entries.values() if entry.value is not None]
    unreadable = [name for name, entry in entries.items() if entry.value is None and not entry.is_deleted]
    keys.sort(key=lambda key: (key.created_at, key.id))
    return StoredKey(tuple(keys), tuple(sorted(unreadable)), bool(entries))


async def add(
    link: NatsLink,
    caller: str,
    scopes: tuple[Scope, ...],
    *,
    rate_per_s: float | None = DEFAULT_RATE_PER_S,
    burst_s: int = DEFAULT_BURST_S,
    highest_priority: Priority = Priority.INTERACTIVE,
    max_waiting: int | None = None,
    max_running: int | None = None,
    now: datetime,
) -> Presented:
    """Makes a key and returns the only copy of its secret. Raises NotProvisioned, TransportUnavailable."""
    bucket = await _bucket(link)
    while True:
        presented = Presented(secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES))
        key = ApiKey(
            id=presented.id,
            caller=caller,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            secret_sha256=sha256_of(presented.secret),
            created_at=now,
            rate_per_s=rate_per_s,
            burst_s=burst_s,
            highest_priority=highest_priority,
            max_waiting=max_waiting,
            max_running=max_running,
        )
        try:
            await bucket.create(key.id, key)
        except WrongRevision:
            continue  # the id is taken
        return presented


async def revoke(link: NatsLink, key_id: str, *, now: datetime) -> ApiKey:
    """Revokes the key: from now on it lets nobody in. Returns it as it was before; one that was revoked already stays
    as it is.

    Raises NoSuchKey, NotProvisioned, TransportUnavailable.
    """
    bucket = await _bucket(link)
    while True:
        entry: Versioned[ApiKey] | None = None
        with contextlib.suppress(ValueError):  # a text that cannot be an id
            entry = await bucket.get(key_id)
        if entry is None or entry.is_deleted:
            raise NoSuchKey(f"no key has the id {key_id!r}; `warmlane keys list` shows them")
        key = entry.value
        if key is None:
            raise NoSuchKey(
                f"the entry {key_id} cannot be read and lets nobody in; `nats kv del keys {key_id}` removes it"
            )
        if key.revoked_at is not None:
            return key
        try:
            await bucket.update(key_id, replace(key, revoked_at=now), revision=entry.revision)
        except WrongRevision:
            continue
        return key


async def forget_revoked(link: NatsLink, *, now: datetime) -> int:
    """Removes keys that were revoked REVOKED_KEPT_S ago, and returns how many. A marker stays, so that no gateway opens
    again.

    Raises NotProvisioned, TransportUnavailable.
    """
    bucket, removed = await _bucket(link), 0
    for key in (await read_keys(link)).revoked:
        entry = await bucket.get(key.id) if is_to_go(key, now) else None
        if entry is not None and not entry.is_deleted:
            with contextlib.suppress(WrongRevision):
                await bucket.delete(key.id, revision=entry.revision)
                removed += 1
    return removed


def is_to_go(key: ApiKey, now: datetime) -> bool:
    """Whether *key* was revoked REVOKED_KEPT_S ago. Pure."""
    return key.revoked_at is not None and (now - key.revoked_at).total_seconds() >= REVOKED_KEPT_S


def shown(key: ApiKey) -> dict[str, Any]:
    """What may be shown of *key*: neither its secret nor what is stored of it."""
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


async def _bucket(link: NatsLink) -> Bucket[ApiKey]:
    if not await link.streams.exists(bucket_stream(KEYS)):
        raise NotProvisioned("the server lacks the bucket keys; run `warmlane provision`")
    return Bucket(link, API_KEYS, reports=False)


@click.group(
    epilog="Examples:\n\n  warmlane keys add alice --scope submit --scope read\n\n  warmlane keys list\n\n"
    "  warmlane keys revoke 0f6a3c9d21be"
)
def command() -> None:
    """Make, list and revoke the API keys of every gateway on one nats-server.

    Without any key, a gateway on the loopback lets everybody do everything, and one on another address does not start.
    From the first key on, every request needs one.
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
    help="Seconds over which its requests are counted: it may make up at once for a pause of that length.",
)
@click.option(
    "--highest-priority",
    type=click.Choice([each.value for each in Priority]),
    default=Priority.INTERACTIVE.value,
    show_default=True,
    help="The strictest class that its requests may name; those that name none get `standard`, or this if it is lower.",
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
    """Make a key for CALLER and print it, this once: alone on standard output.

    Keys of the same caller see the same tasks: to change a key, add another, then revoke the first.
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
        f"key {presented.id} for {caller} ({', '.join(scopes)}) counts from now on. "
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
    """End a key: within a second no gateway lets it in. `keys list --all` shows it for 30 days.

    ID is the one that `warmlane keys list` shows. Revoking the last key opens nothing: every request is then refused.
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
