"""`warmlane slots`: what is resident on which card, and lifting a quarantine."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contracts.lanes import SlotState, VideoPipelineSlot
from ops.commands.nats_options import nats_access, nats_options
from ops.nats.access import NatsAccess
from ops.nats.call import on_nats
from ops.nats.shown_slots import NotQuarantined, lift, read_slots

COLOURS: Final = {SlotState.RESIDENT: "green", SlotState.QUARANTINED: "red", SlotState.EMPTY: "dim"}


def table_of(slots: Iterable[VideoPipelineSlot]) -> Table:
    """The slots, a row each."""
    table = Table(show_header=True)
    for heading in ("slot", "worker", "pid", "model", "state", "since (UTC)", "detail"):
        table.add_column(heading, overflow="fold")
    for slot in slots:
        colour = COLOURS.get(slot.state, "yellow")
        since = slot.since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        state = f"[{colour}]{slot.state.value}[/]"
        row = (escape(slot.slot), escape(slot.worker), str(slot.pid), slot.model or "-", state, since)
        table.add_row(*row, escape(slot.detail))
    return table


@click.group(
    invoke_without_command=True,
    epilog="Examples:\n\n  warmlane slots\n\n  warmlane slots lift cpu-2\n\n"
    "  nats kv del slots cpu-2   (lifts it as well)",
)
@nats_options("admin", asks_for_folder=True)
@click.pass_context
def command(ctx: click.Context, /, nats: NatsAccess) -> None:
    """Show every slot: which worker holds it, which model is resident, and its state.

    A worker quarantines a slot whose memory it could not prove free. No model is loaded there until the quarantine is
    lifted.
    """
    ctx.obj = nats
    if ctx.invoked_subcommand is not None:
        return
    slots = on_nats(nats, lambda link: read_slots(link, now=datetime.now(UTC)), name="slots", shown=(NotQuarantined,))
    if slots:
        Console().print(table_of(slots))
    else:
        click.echo("no worker shows a slot, and none is quarantined")


@command.command(
    name="lift",
    epilog="Examples:\n\n  warmlane slots lift cpu-2\n\n"
    "  warmlane slots lift GPU-8f6d2b1c-3a4e-4c5d-9e7f-0a1b2c3d4e5f --nats-url nats://127.0.0.1:4222",
)
@click.argument("slot")
@click.option("--nats-url", help="Where the nats-server listens, as for `warmlane slots`.")
@click.pass_obj
def lift_command(group: NatsAccess, /, slot: str, nats_url: str | None) -> None:
    """Lift the quarantine of SLOT, so that its worker loads on it again.

    First find the process that holds the card's memory (`nvidia-smi`), and end it. Otherwise the next release cannot
    be proven either.
    """
    nats = group if nats_url is None else nats_access("admin", nats_url, ca=group.ca)
    try:
        was = on_nats(nats, lambda link: lift(link, slot, now=datetime.now(UTC)), name="slots", shown=(NotQuarantined,))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SLOT") from error
    click.echo(f"lifted: slot {slot} was quarantined since {was.since:%Y-%m-%d %H:%M:%S} UTC ({was.detail})")
