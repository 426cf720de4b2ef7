"""`warmlane degraded`."""

import click
from msgspec.structs import replace

from contracts.order import OrderName
from contracts.topology import bucket_subject, is_token
from degraded_worker.worker import DegradedWorker
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.name import HeldName
from lane_worker.runtime.options import WorkerOptions, worker_options
from lane_worker.runtime.process import connected, run_to_end
from ops.commands.options import degraded_order_option
from ops.machine.placement import refuse_hidden
from ops.nats.link import NatsLink
from ops.nats.provisioning import require_degraded
from ops.telemetry.logs import configure_logging


@click.command(
    epilog="Examples:\n\n  warmlane degraded --slot cpu-2\n\n"
    "  warmlane degraded --slot cpu-2 --name degraded-1   (a hot standby on the same slot)"
)
@worker_options("degraded", name_help="Name of the worker, unique and stable. [default: degraded-SLOT]")
@degraded_order_option
def command(given: WorkerOptions, degraded_order: OrderName | None) -> None:
    """Run a degraded worker: every model on one slot, one at a time, until SIGTERM, which drains.

    Any number may run. One leads and serves the degraded queue; the others stand by and take over within seconds.
    """
    name = given.name or f"degraded-{given.slot}"
    configure_logging("degraded")
    refuse_hidden(given.slot)

    async def run() -> None:
        catalog = given.catalog()
        if degraded_order is not None:
            catalog = replace(catalog, degraded=replace(catalog.degraded, order=degraded_order))
        try:
            lock_path(given.data_dir, given.slot)
            bucket_subject("slots", given.slot)
            if not is_token(name):
                raise ValueError(f"not a name: {name!r}; letters, digits, - and _")
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slot or --name") from error

        async def require(link: NatsLink, _: HeldName) -> None:
            await require_degraded(link)

        async with connected(
            given.nats,
            role="degraded",
            name=name,
            data_dir=given.data_dir,
            require=require,
            artifacts=given.artifacts,
        ) as here:
            worker = DegradedWorker(given.setup(here, catalog, name=name))
            await worker.run(here.stop)

    run_to_end("degraded", run(), instance=name, listen=given.listen)
