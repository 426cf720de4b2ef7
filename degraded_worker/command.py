"""`warmlane degraded`."""

from pathlib import Path

import click
from msgspec.structs import replace

from contracts.order import OrderName
from contracts.settings import load_settings
from contracts.topology import bucket_subject, is_token
from degraded_worker.worker import DegradedWorker
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.assembly import Setup
from lane_worker.runtime.name import HeldName
from lane_worker.runtime.process import connected, run_to_end
from ops.artifact_place import ArtifactPlace
from ops.commands.artifact_options import artifacts_option, place_in
from ops.commands.nats_options import nats_options
from ops.commands.options import (
    data_dir_option,
    degraded_order_option,
    load_seconds_option,
    metrics_options,
    name_option,
    oom_snapshots_option,
    profile_option,
    settings_option,
    slot_option,
    step_seconds_option,
)
from ops.machine.placement import given_slot, refuse_hidden
from ops.nats.access import NatsAccess
from ops.nats.link import NatsLink
from ops.nats.provisioning import require_degraded
from ops.telemetry.export import Listen
from ops.telemetry.logs import configure_logging


@click.command(
    epilog="Examples:\n\n  warmlane degraded --slot cpu-2\n\n"
    "  warmlane degraded --slot cpu-2 --name degraded-1   (a hot standby on the same slot)"
)
@slot_option
@name_option("Name of the worker, unique and stable. [default: degraded and the slot]")
@nats_options("degraded")
@data_dir_option
@artifacts_option
@settings_option
@profile_option
@step_seconds_option
@load_seconds_option
@degraded_order_option
@oom_snapshots_option
@metrics_options
def command(
    slot: str,
    name: str | None,
    nats: NatsAccess,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    settings: Path | None,
    profile: str,
    step_seconds: float,
    load_seconds: float,
    degraded_order: OrderName | None,
    oom_snapshots: int,
    listen: Listen | None,
) -> None:
    """Run a degraded worker: every model on one slot, one at a time, until SIGTERM, which drains.

    Any number may run. One leads and serves the degraded queue; the others stand by and take over within seconds.
    """
    slot = given_slot(slot, profile)
    name = name or f"degraded-{slot}"
    data_dir = data_dir.absolute()
    configure_logging("degraded")
    refuse_hidden(slot)

    async def run() -> None:
        catalog = load_settings(settings).catalog(profile)
        if degraded_order is not None:
            catalog = replace(catalog, degraded=replace(catalog.degraded, order=degraded_order))
        try:
            lock_path(data_dir, slot)
            bucket_subject("slots", slot)
            if not is_token(name):
                raise ValueError(f"not a name: {name!r}; letters, digits, - and _")
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slot or --name") from error

        async def require(link: NatsLink, _: HeldName) -> None:
            await require_degraded(link)

        place = place_in(data_dir, artifacts)
        async with connected(
            nats, role="degraded", name=name, data_dir=data_dir, require=require, artifacts=place
        ) as here:
            setup = Setup(
                here.link,
                here.artifacts,
                catalog,
                name=name,
                slot=slot,
                data_dir=data_dir,
                step_seconds=step_seconds,
                load_seconds=load_seconds,
                oom_snapshots=oom_snapshots,
            )
            worker = DegradedWorker(setup)
            await worker.run(here.stop)

    run_to_end("degraded", run(), instance=name, listen=listen)
