"""`warmlane supervisor`: the supervisor of this machine's lanes, as a process."""

import asyncio
import socket
from functools import partial
from pathlib import Path

import click

from contracts.settings import SettingsError, load_settings
from ops.artifact_place import ArtifactPlace
from ops.commands.artifact_options import artifacts_option
from ops.commands.kubernetes import lanes_in, provider_options
from ops.commands.nats_options import nats_options
from ops.commands.options import (
    Shared,
    data_dir_option,
    gpus_option,
    lanes_option,
    load_seconds_option,
    log_size_option,
    metrics_options,
    oom_snapshots_option,
    profile_option,
    quota_option,
    settings_option,
    slowed,
    snapshotting,
    step_seconds_option,
)
from ops.lanes.plan import in_turn
from ops.lanes.providers import ProcessProvider
from ops.lanes.quota import Quota, QuotaError
from ops.lanes.supervisor import Supervisor
from ops.machine.placement import slots, wanted_lanes
from ops.machine.processes import asked_to_end, only_one
from ops.nats.access import NatsAccess
from ops.nats.awaited import LeftWaiting, linked_once_there
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.link_health import reporting_on
from ops.nats.provisioning import require_lane
from ops.telemetry.export import Listen, exporting
from ops.telemetry.logs import configure_logging
from ops.telemetry.metrics import lane_deaths
from ops.telemetry.probes import ProcessHealth, judged_by
from ops.telemetry.service_manager import reporting_to_service_manager


@click.command(
    epilog="Examples:\n\n  warmlane supervisor --gpus 3\n\n"
    "  warmlane supervisor --lanes anisora=2,phr00t=1 --quota quota.json\n\n"
    "  warmlane supervisor --provider kubernetes --namespace video --release warmlane"
)
@nats_options("supervisor")
@data_dir_option
@artifacts_option
@settings_option
@profile_option
@lanes_option
@gpus_option
@quota_option
@provider_options
@log_size_option
@step_seconds_option
@load_seconds_option
@oom_snapshots_option
@metrics_options
def command(
    nats: NatsAccess,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    settings: Path | None,
    profile: str,
    lanes: dict[str, int] | None,
    gpus: int | None,
    quota: Path | None,
    provider: str,
    namespace: str | None,
    release: str | None,
    deletion_cost: bool,
    log_max_bytes: int,
    step_seconds: float,
    load_seconds: float,
    oom_snapshots: int,
    listen: Listen | None,
) -> None:
    """Keep the wanted lanes running until SIGTERM.

    It restarts a lane that dies, with backoff. It reports a lane that it cannot get as quota_denied or
    capacity_denied, and one that dies again and again as crash_looping.

    With the provider `process`, lanes are processes of this machine and end with their supervisor: SIGTERM drains them,
    a second SIGTERM kills them. With `kubernetes`, lanes are replicas of the chart's Deployments, and stay when the
    supervisor ends. It scales them if --lanes is given; otherwise it only reports their state.
    """
    configure_logging("supervisor")
    data_dir = data_dir.absolute()
    try:
        catalog = load_settings(settings).catalog(profile)
        limits = Quota(quota, catalog.models)
    except (SettingsError, QuotaError) as error:
        raise click.ClickException(str(error)) from error
    if provider == "kubernetes" and quota is not None and lanes is None:
        raise click.UsageError("--quota needs --lanes with --provider kubernetes: without it the replicas are not ours")
    if provider == "process" and ((namespace, release) != (None, None) or deletion_cost):
        raise click.UsageError("--namespace, --release and --deletion-cost are for --provider kubernetes")
    in_namespace = lanes_in(namespace, release, keeps_costs=deletion_cost) if provider == "kubernetes" else None
    counts = wanted_lanes(lanes, catalog)
    wanted = in_turn(counts)
    # a pod that supervises has no card
    places = slots(profile, lanes=len(wanted), gpus=gpus) if in_namespace is None else None
    shared = Shared(nats, data_dir, profile, settings.absolute() if settings else None, artifacts)

    async def run() -> None:
        with asked_to_end() as (stop, hurry):

            async def require_lanes(link: NatsLink) -> None:
                for model in {want.model for want in wanted}:
                    await require_lane(link, model)

            link = await linked_once_there(nats, name="supervisor", require=require_lanes, stop=stop)
            try:
                for model in catalog.models if provider == "kubernetes" else counts:
                    lane_deaths.begin(model)
                if in_namespace is not None:
                    kept = None if lanes is None else counts
                    async with reporting_on(link, "supervisor"):
                        await in_namespace.run(link, kept, limits, catalog.windows, stop)
                    return
                assert places is not None
                async with asyncio.TaskGroup() as group:
                    processes = ProcessProvider(
                        places.lanes,
                        arguments=[
                            *slowed(step_seconds, load_seconds),
                            *snapshotting(oom_snapshots),
                            *shared.arguments(),
                        ],
                        logs=data_dir / "logs",
                        group=group,
                        log_max_bytes=log_max_bytes,
                    )
                    drain_s = catalog.windows.drains_s(catalog.models.values())
                    supervisor = Supervisor(link, processes, wanted, limits, catalog.windows, drain_s=drain_s)
                    async with reporting_on(link, "supervisor"):
                        with judged_by(partial(_standing, link)):
                            await supervisor.run(stop, hurry)
            finally:
                await link.close()

    with only_one(data_dir, "supervisor"):
        try:
            with reporting_to_service_manager(), exporting("supervisor", instance=socket.gethostname(), listen=listen):
                asyncio.run(run())
        except* LeftWaiting:
            pass
        except* (TransportUnavailable, UnusableServer) as group:
            raise click.ClickException(str(group.exceptions[0])) from group


def _standing(link: NatsLink) -> ProcessHealth:
    is_connected = link.connection.is_connected
    return ProcessHealth(is_connected, "supervises", "" if is_connected else "it is not connected to nats-server")
