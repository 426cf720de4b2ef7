"""`warmlane replay`: a recorded day under another policy, beside what really happened."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from msgspec.structs import replace as changed
from rich.console import Console

from contracts.order import ORDER_NAMES, OrderName
from contracts.settings import InferenceSettings, SettingsError, load_settings
from contracts.topology import DEGRADED_MAX_MSGS
from gateway.replay.day import NoTasks, RecordedDay, recorded_day
from gateway.replay.records import Records, between, records_of_backup, records_of_server
from gateway.replay.replaying import ReplayTerms, accounts, replay
from gateway.replay.report import as_json, as_text, lines, replay_table
from ops.commands.backup.layout import BackupError
from ops.commands.durations import Duration
from ops.commands.nats_options import nats_options
from ops.commands.option_types import Lanes
from ops.commands.options import settings_option
from ops.nats.access import NatsAccess
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.server import NoNatsServer

WIDTH: Final = 110
MOMENTS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
SHARE: Final = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(
    epilog="Examples:\n\n  warmlane replay --degraded-order fifo\n\n"
    "  warmlane replay --backup backups/monday --lanes anisora=1,phr00t=2\n\n"
    "  warmlane replay --since 2026-11-26 --until 2026-11-27 --swap-share 0.1 --slice-max 5m\n\n"
    "  warmlane replay --json | jq .replayed.all"
)
@click.option(
    "--backup",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read the records of this backup, which `warmlane backup` wrote. [default: those of the nats-server]",
)
@click.option("--since", type=click.DateTime(MOMENTS), help="Only requests that came then or later (UTC).")
@click.option("--until", type=click.DateTime(MOMENTS), help="Only requests that came before (UTC).")
@click.option(
    "--degraded-order",
    type=click.Choice(ORDER_NAMES),
    help="The order of the degraded queue. [default: as the settings say]",
)
@click.option(
    "--swap-share",
    type=SHARE,
    help="The largest share of the card's time for swaps. [default: as the settings say]",
)
@click.option("--slice-max", "slice_max_s", type=Duration(), help="The longest slice. [default: as the settings say]")
@click.option(
    "--turn-share",
    type=SHARE,
    help="The smallest share of the card's time for each waiting class. [default: as the settings say]",
)
@click.option(
    "--lanes",
    type=Lanes(),
    help="This many warm lanes of each model, all the time, as in anisora=1,phr00t=2; a model that is not named has "
    "none. [default: those that routing saw then]",
)
@click.option(
    "--wait-limit", "wait_s", type=Duration(), help="How long a request may wait in a queue. [default: as it was then]"
)
@click.option(
    "--places",
    type=click.IntRange(1, 10_000),
    default=DEGRADED_MAX_MSGS,
    show_default=True,
    help="How many may wait for the degraded worker.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print everything as JSON, for programs.")
@settings_option
@nats_options("operator", asks_for_folder=True)
def command(
    folder: Path | None,
    since: datetime | None,
    until: datetime | None,
    degraded_order: OrderName | None,
    swap_share: float | None,
    slice_max_s: float | None,
    turn_share: float | None,
    lanes: dict[str, int] | None,
    wait_s: float | None,
    places: int,
    as_json_: bool,
    settings: Path | None,
    nats: NatsAccess,
) -> None:
    """Serve the requests of a recorded day again, in a simulation, under another policy.

    Routing and the order of the degraded queue are the product's own functions; each request takes as long as it took
    then. Prints what would have been served, swapped and refused beside what really was. Changes nothing anywhere.
    """
    try:
        known = load_settings(settings)
        records = _records(folder, nats)
        day = recorded_day(between(records, _utc(since), _utc(until)))
    except (BackupError, NoTasks, NoNatsServer, TransportUnavailable, UnusableServer, SettingsError, OSError) as error:
        raise click.ClickException(str(error)) from error
    shares: dict[str, Any] = {"swap_share": swap_share, "slice_max_s": slice_max_s, "turn_share": turn_share}
    lane_policy = changed(known.degraded, **{name: value for name, value in shares.items() if value is not None})
    policy = lane_policy if degraded_order is None else changed(lane_policy, order=degraded_order)
    terms = changed(
        terms_of(day, known, wait_s=wait_s), policy=policy, lane_policy=lane_policy, lanes=lanes, places=places
    )
    happened, replayed = accounts(day.fates), accounts(replay(day, terms))
    if as_json_:
        click.echo(as_text(as_json(day, terms, happened, replayed, unreadable=records.unreadable)))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)  # a file or a pipe has no width of its own
    for line in lines(day, terms, records.unreadable):
        console.print(line, highlight=False, markup=False)
    console.print(replay_table(happened, replayed))


def terms_of(day: RecordedDay, known: InferenceSettings, *, wait_s: float | None) -> ReplayTerms:
    """The terms of *day* as it was; a queue in which no request waited then gets the wait of the settings. *wait_s*
    replaces both."""
    windows = known.windows if wait_s is None else changed(known.windows, wait_limit_s=wait_s)
    lane_s, degraded_s = (day.lane_wait_s, day.degraded_wait_s) if wait_s is None else (None, None)
    return ReplayTerms(
        policy=known.degraded,
        lanes=None,
        lane_wait_s=windows.wait_s("lane") if lane_s is None else lane_s,
        degraded_wait_s=max(0.0, windows.wait_s("degraded")) if degraded_s is None else degraded_s,
    )


def _records(folder: Path | None, nats: NatsAccess) -> Records:
    return asyncio.run(records_of_server(nats) if folder is None else records_of_backup(folder.absolute()))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
