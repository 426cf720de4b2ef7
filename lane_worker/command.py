"""`warmlane lane`."""

import click

from contracts.topology import lane_key
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.cold_start import process_started_at
from lane_worker.runtime.name import SILENT_BEATS, HeldName, require_nobody
from lane_worker.runtime.options import WorkerOptions, worker_options
from lane_worker.runtime.process import connected, run_to_end
from lane_worker.worker import LaneWorker
from ops.commands.variables import option_or_variable
from ops.machine.placement import refuse_hidden
from ops.nats.link import NatsLink
from ops.nats.provisioning import require_lane
from ops.telemetry.logs import configure_logging


@click.command(
    epilog="Examples:\n\n  warmlane lane --model anisora\n\n"
    "  warmlane lane --model phr00t --name phr00t-1 --slot cpu-3 --nats-url nats://127.0.0.1:4222"
)
@option_or_variable("--model", envvar="WARMLANE_MODEL", required=True, help="The model that this lane keeps warm.")
@worker_options("lane", name_help="Name of the lane, unique and stable. [default: MODEL-SLOT]")
def command(model: str, given: WorkerOptions) -> None:
    """Run one warm lane: load a model, keep it, and serve its queue until SIGTERM, which drains."""
    started_at = process_started_at()
    name = given.name or f"{model}-{given.slot}"
    configure_logging("lane")
    refuse_hidden(given.slot)

    async def run() -> None:
        catalog = given.catalog()
        entry = catalog.resolve(model)
        if entry is None:
            known = ", ".join(sorted(catalog.models))
            raise click.BadParameter(f"no model is called {model}; there are {known}", param_hint="--model")
        try:
            lock_path(given.data_dir, given.slot)
            key = lane_key(entry.name, name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slot or --name") from error

        async def require(link: NatsLink, held: HeldName) -> None:
            await require_lane(link, entry.name)
            silent_s = SILENT_BEATS * catalog.windows.heartbeat_s
            await require_nobody(link, key, name, held.before, silent_s=silent_s)

        async with connected(
            given.nats,
            role="lane",
            name=name,
            data_dir=given.data_dir,
            require=require,
            slot=given.slot,
            artifacts=given.artifacts,
        ) as here:
            worker = LaneWorker(given.setup(here, catalog, name=name), model=entry, started_at=started_at)
            await worker.run(here.stop, for_quota=here.for_quota)

    run_to_end("lane", run(), instance=name, listen=given.listen)
