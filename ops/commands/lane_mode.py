"""`warmlane lane-mode`: keep new requests off a model's lanes, or let routing decide again.

It asks the gateway, which knows the models and their aliases. Without a gateway, `nats kv put control lanes.MODEL
degraded` does the same.
"""

from typing import Literal
from urllib.parse import quote

import click

from contracts.api.admin import ModeView
from ops.commands.api.options import Gateway, gateway_options


@click.command(
    epilog="Examples:\n\n  warmlane lane-mode anisora   (shows the switch)\n\n  warmlane lane-mode anisora degraded\n\n"
    "  warmlane lane-mode anisora auto\n\n"
    "  nats kv put control lanes.anisora degraded   (does the same without a gateway)"
)
@click.argument("model")
@click.argument("mode", type=click.Choice(["auto", "degraded"]), required=False)
@gateway_options
def command(model: str, mode: Literal["auto", "degraded"] | None, gateway: Gateway) -> None:
    """Show or set the switch of a model's lanes.

    With `degraded`, new requests for MODEL go to the degraded worker, whatever state its lanes are in. With `auto`,
    routing decides. Every gateway obeys within a second. Tasks that are already queued stay where they are.
    """
    with gateway.client() as client:
        path = f"/admin/lanes/{quote(model, safe='')}/mode"
        known = client.get(path, ModeView) if mode is None else client.put(path, {"mode": mode}, ModeView)
    since = "" if known.since is None else f" since {known.since:%Y-%m-%d %H:%M:%S} UTC"
    click.echo(f"{known.model} is {known.mode}{since}")
