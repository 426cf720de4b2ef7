"""`warmlane lane`."""

from pathlib import Path

import click

from contracts.settings import load_settings
from contracts.topology import lane_key
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.assembly import Setup
from lane_worker.runtime.cold_start import process_started_at
from lane_worker.runtime.name import SILENT_BEATS, HeldName, require_nobody
from lane_worker.runtime.process import connected, run_to_end
from lane_worker.worker import LaneWorker
from ops.artifact_place import ArtifactPlace
from ops.commands.artifact_options import artifacts_option, place_in
from ops.commands.nats_options import nats_options
from ops.commands.options import (
    data_dir_option,
    load_seconds_option,
    metrics_options,
    name_option,
    oom_snapshots_option,
    profile_option,
    settings_option,
    slot_option,
    step_seconds_option,
)
from ops.commands.variables import option_or_variable
from ops.machine.placement import given_slot, refuse_hidden
from ops.nats.access import NatsAccess
from ops.nats.link import NatsLink
from ops.nats.provisioning import require_lane
from ops.telemetry.export import Listen
from ops.telemetry.logs import configure_logging


@click.command(
    epilog="Examples:\n\n  warmlane lane --model anisora\n\n"
    "  warmlane lane --model phr00t --name phr00t-1 --slot cpu-3 --nats-url nats://127.0.0.1:4222"
)
@option_or_variable("--model", envvar="WARMLANE_MODEL", required=True, help="The model that this lane keeps warm.")
@name_option("Name of the lane, unique and stable. [default: the model and the slot]")
@slot_option
@nats_options("lane")
@data_dir_option
@artifacts_option
@settings_option
@profile_option
@step_seconds_option
@load_seconds_option
@oom_snapshots_option
@metrics_options
def command(
    model: str,
    name: str | None,
    slot: str,
    nats: NatsAccess,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    settings: Path | None,
    profile: str,
    step_seconds: float,
    load_seconds: float,
    oom_snapshots: int,
    listen: Listen | None,
) -> None:
    """Run one warm lane: load a model, keep it, and serve its queue until SIGTERM, which drains."""
    started_at = process_started_at()
    slot = given_slot(slot, profile)
    name = name or f"{model}-{slot}"
    data_dir = data_dir.absolute()
    configure_logging("lane")
    refuse_hidden(slot)

    async def run() -> None:
        catalog = load_settings(settings).catalog(profile)
        entry = catalog.resolve(model)
        if entry is None:
            known = ", ".join(sorted(catalog.models))
            raise click.BadParameter(f"no model is called {model}; there are {known}", param_hint="--model")
        try:
            lock_path(data_dir, slot)
            key = lane_key(entry.name, name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slot or --name") from error

        async def require(link: NatsLink, held: HeldName) -> None:
            await require_lane(link, entry.name)
            silent_s = SILENT_BEATS * catalog.windows.heartbeat_s
            await require_nobody(link, key, name, held.before, silent_s=silent_s)

        place = place_in(data_dir, artifacts)
        async with connected(
            nats, role="lane", name=name, data_dir=data_dir, require=require, slot=slot, artifacts=place
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
            worker = LaneWorker(setup, model=entry, started_at=started_at)
            await worker.run(here.stop, for_quota=here.for_quota)

    run_to_end("lane", run(), instance=name, listen=listen)
