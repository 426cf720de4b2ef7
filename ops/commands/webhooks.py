"""`warmlane webhooks`: the endpoints that are notified of tasks, and what became of each delivery."""

from collections.abc import Iterable
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contracts.api.webhooks import DeliveryView, EndpointSecret, EndpointView
from contracts.webhooks import OVERLAP_MAX_S, OVERLAP_S, WebhookEvent
from ops.commands.api.options import Gateway, gateway_options
from ops.commands.api.problems import Refused
from ops.commands.durations import Duration
from ops.commands.tasks import plain

# `rotate` takes this instead of an ID, for the secret that signs to addresses that requests name.
REQUESTS: Final = "requests"
_json_option = click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers.")


@click.group(
    epilog="Examples:\n\n  warmlane webhooks add https://example.com/warmlane\n\n  warmlane webhooks list\n\n"
    "  warmlane webhooks deliveries --status dead"
)
def command() -> None:
    """Be notified of tasks: register addresses, test them, and see what was delivered.

    Each message is signed as Standard Webhooks says; docs/use/webhooks.md has receivers that check the signature.
    """


@command.command(
    name="add",
    epilog="Examples:\n\n  warmlane webhooks add https://example.com/warmlane\n\n"
    "  secret=$(warmlane webhooks add https://example.com/warmlane --json | jq -r .secret)\n\n"
    "  warmlane webhooks add https://example.com/warmlane --event task.done --event task.failed",
)
@click.argument("address", metavar="URL")
@click.option(
    "--event",
    "events",
    type=click.Choice([event.value for event in WebhookEvent]),
    multiple=True,
    help="Which events to be notified of. May be repeated. [default: task.claimed, task.done and task.failed]",
)
@_json_option
@gateway_options
def add_command(address: str, events: tuple[str, ...], as_json: bool, gateway: Gateway) -> None:
    """Register URL: the gateway notifies it of every task of yours from now on. Prints its secret, only this once.

    Without --json, standard output holds only the secret.
    """
    with gateway.client() as client:
        _show_secret(client.webhooks.add(address, events), "registered", as_json=as_json)


@command.command(
    name="list",
    epilog="Examples:\n\n  warmlane webhooks list\n\n  warmlane webhooks list --json | jq '.endpoints[].id'",
)
@_json_option
@gateway_options
def list_command(as_json: bool, gateway: Gateway) -> None:
    """Show the registered endpoints; never a secret."""
    with gateway.client() as client:
        page = client.webhooks.endpoints()
    if as_json:
        _print(page)
    elif page.endpoints:
        Console().print(endpoints_table(page.endpoints))
    else:
        click.echo("no endpoint yet; `warmlane webhooks add URL` registers one", err=True)


@command.command(name="test", epilog="Examples:\n\n  warmlane webhooks test ep_0f6a3c9d21be4455")
@click.argument("endpoint", metavar="ID")
@_json_option
@gateway_options
@click.pass_context
def test_command(ctx: click.Context, /, endpoint: str, as_json: bool, gateway: Gateway) -> None:
    """Send `webhook.test` to the endpoint now, and show what it answers. Exit status 1 when it did not accept it.

    A disabled endpoint that accepts the message is enabled again.
    """
    with gateway.client() as client:
        answer = client.webhooks.test(endpoint)
    if as_json:
        _print(answer)
    else:
        what = f"{endpoint} answered {answer.status}" if answer.status else f"{endpoint}: {plain(answer.error)}"
        click.echo(f"{what} after {answer.took_s:.3f} s", err=not answer.delivered)
    ctx.exit(0 if answer.delivered else 1)


@command.command(
    name="rotate",
    epilog="Examples:\n\n  warmlane webhooks rotate ep_0f6a3c9d21be4455\n\n"
    "  warmlane webhooks rotate ep_0f6a3c9d21be4455 --overlap 1s   (a secret has leaked)\n\n"
    "  warmlane webhooks rotate requests   (the secret for addresses that requests name)",
)
@click.argument("endpoint", metavar="ID")
@click.option(
    "--overlap",
    "overlap_s",
    type=Duration(),
    default=f"{OVERLAP_S / 3_600:g}h",
    show_default=True,
    help=f"How long the earlier secrets sign as well; at most {OVERLAP_MAX_S / 86_400:g} days.",
)
@_json_option
@gateway_options
def rotate_command(endpoint: str, overlap_s: float, as_json: bool, gateway: Gateway) -> None:
    """Give an endpoint a new secret, and print it, only this once."""
    with gateway.client() as client:
        if endpoint == REQUESTS:
            made = client.webhooks.rotate_secret(overlap_s)
            if as_json:
                _print(made)
            else:
                click.echo(made.secret)
            return
        _show_secret(client.webhooks.rotate(endpoint, overlap_s), "has a new secret", as_json=as_json)


@command.command(name="secret", epilog="Examples:\n\n  warmlane webhooks secret")
@_json_option
@gateway_options
def secret_command(as_json: bool, gateway: Gateway) -> None:
    """Print the secret that signs messages to the addresses that your requests name themselves."""
    with gateway.client() as client:
        made = client.webhooks.secret()
    if as_json:
        _print(made)
    else:
        click.echo(made.secret)


@command.command(name="remove", epilog="Examples:\n\n  warmlane webhooks remove ep_0f6a3c9d21be4455")
@click.argument("endpoint", metavar="ID")
@gateway_options
def remove_command(endpoint: str, gateway: Gateway) -> None:
    """Remove an endpoint. Deliveries to it that are still pending become dead."""
    with gateway.client() as client:
        client.webhooks.remove(endpoint)
    click.echo(f"removed {endpoint}")


@command.command(
    name="deliveries",
    epilog="Examples:\n\n  warmlane webhooks deliveries --status dead\n\n"
    "  warmlane webhooks deliveries --endpoint ep_0f6a3c9d21be4455 --json",
)
@click.option("--status", type=click.Choice(["pending", "delivered", "dead"]), help="Only those.")
@click.option("--endpoint", metavar="ID", help="Only those to this endpoint.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="How many.")
@_json_option
@gateway_options
def deliveries_command(status: str | None, endpoint: str | None, limit: int, as_json: bool, gateway: Gateway) -> None:
    """Show past and pending deliveries, newest first."""
    with gateway.client() as client:
        page = client.webhooks.deliveries(status=status, endpoint=endpoint, limit=limit)
    if as_json:
        _print(page)
        return
    for each in page.deliveries:
        click.echo(line_of(each))
    if not page.deliveries:
        click.echo("no delivery" if status is endpoint is None else "no delivery matches", err=True)
    if page.more:
        click.echo("there are more: a larger --limit shows them", err=True)


@command.command(
    name="redeliver",
    epilog="Examples:\n\n  warmlane webhooks redeliver 019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55_done_ep_0f6a\n\n"
    "  warmlane webhooks redeliver --dead   (after a receiver was away for days)",
)
@click.argument("deliveries", metavar="[ID]...", nargs=-1)
@click.option("--dead", "all_dead", is_flag=True, help="All dead deliveries, 1000 at most.")
@click.option("--endpoint", metavar="ID", help="With --dead: only those to this endpoint.")
@gateway_options
@click.pass_context
def redeliver_command(
    ctx: click.Context, /, deliveries: tuple[str, ...], all_dead: bool, endpoint: str | None, gateway: Gateway
) -> None:
    """Deliver again what the gateway gave up or a receiver lost: the same message, with the full number of attempts.

    Exit status 1 when a delivery does not exist; the others are delivered all the same.
    """
    if bool(deliveries) == all_dead:
        raise click.UsageError("name deliveries, or use --dead; `warmlane webhooks deliveries` shows them")
    failed = False
    with gateway.client() as client:
        if all_dead:
            page = client.webhooks.deliveries(status="dead", endpoint=endpoint, limit=1_000)
            deliveries = tuple(each.id for each in page.deliveries)
        for delivery in deliveries:
            try:
                client.webhooks.redeliver(delivery)
            except Refused as error:
                click.echo(f"{delivery}: {error.message}", err=True)
                failed = True
            else:
                click.echo(f"queued again: {delivery}")
    if not deliveries:
        click.echo("no delivery is dead", err=True)
    ctx.exit(1 if failed else 0)


def _print(answer: msgspec.Struct) -> None:
    click.echo(msgspec.json.encode(answer).decode())


def _show_secret(made: EndpointSecret, what: str, *, as_json: bool) -> None:
    if as_json:
        _print(made)
        return
    click.echo(
        f"{made.endpoint.id} {what}: {made.endpoint.url} ({', '.join(made.endpoint.events)}). "
        "Keep what follows: it cannot be shown again.",
        err=True,
    )
    click.echo(made.secret)


def endpoints_table(endpoints: Iterable[EndpointView]) -> Table:
    """The endpoints, a row each."""
    table = Table(show_header=True)
    for heading in ("id", "state", "address", "events", "caller", "secrets"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for each in endpoints:
        state = (
            "[green]in force[/]" if each.disabled_at is None else f"[red]disabled[/]: {escape(each.disabled_why or '')}"
        )
        # an IPv6 address has brackets, and a caller may have any name: rich must not read them as markup
        url, caller = escape(each.url), escape(each.caller)
        table.add_row(each.id, state, url, " ".join(each.events), caller, str(each.secrets))
    return table


def line_of(delivery: DeliveryView) -> str:
    """*delivery* on one line. It is not cut, because people copy its ID into `redeliver`."""
    last = delivery.last
    came = "" if last is None else f", the last: {last.status or plain(last.error)}"
    following = "" if delivery.next_at is None else f", the next at {delivery.next_at:%Y-%m-%d %H:%M:%S} UTC"
    attempts = f"{delivery.attempts} attempt{'' if delivery.attempts == 1 else 's'}"
    return f"{delivery.id}  {delivery.status:<9}  {delivery.url}  {attempts}{came}{following}"
