"""`warmlane up`: the whole system on one machine, on loopback unless `--host` says otherwise."""

import asyncio
import sys
from pathlib import Path
from typing import IO, cast

import click
from rich.console import Console

from contracts.order import OrderName
from contracts.settings import SettingsError, load_settings
from ops.artifact_place import ArtifactPlace
from ops.commands.addresses import published
from ops.commands.artifact_options import artifacts_option, links_option, require_links_possible
from ops.commands.behind import Behind, Network, behind_options, webhooks_allow_option
from ops.commands.images import ImageOptions, image_options
from ops.commands.option_types import ListenHost
from ops.commands.options import (
    cors_origins_option,
    data_dir_option,
    degraded_order_option,
    gpus_option,
    host_option,
    keep_option,
    lanes_option,
    load_seconds_option,
    log_size_option,
    nats_port_option,
    oom_snapshots_option,
    port_option,
    profile_option,
    quota_option,
    require_kept_long_enough,
    settings_option,
    step_seconds_option,
    tls_cert_option,
    tls_key_option,
)
from ops.commands.overload import OverloadOptions, overload_options
from ops.commands.up.screen import Screen
from ops.commands.up.setup import SystemSetup
from ops.commands.up.stack import Stack
from ops.commands.variables import option_or_variable
from ops.lanes.quota import QuotaError
from ops.machine.placement import wanted_lanes
from ops.machine.ports import require_distinct, require_free
from ops.machine.processes import asked_to_end, only_one
from ops.machine.tls import tls_of
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.provisioning import NoKeys, NotProvisioned
from ops.nats.server import NATS_HOST, NoNatsServer, find_nats_server
from ops.nats.store_lock import holding_store
from ops.telemetry.line_writer import SafeText
from ops.telemetry.logs import configure_logging


@click.command(
    epilog="Examples:\n\n  warmlane up\n\n  warmlane up --port 8080 --nats-port 4333 --lanes anisora=2,phr00t=1\n\n"
    "  warmlane up --lanes anisora=0,phr00t=0 --standbys 1   (degraded mode only)\n\n"
    "  warmlane up --gpus 2   (two slots: one lane is denied, and the degraded worker serves its requests)\n\n"
    "  warmlane up --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem   (after `warmlane keys add`)\n\n"
    "  warmlane up --step-seconds 1   (tiny pipelines as slow as a real card)"
)
@host_option
@port_option
@nats_port_option
@data_dir_option
@artifacts_option
@links_option
@lanes_option
@gpus_option
@quota_option
@option_or_variable(
    "--standbys",
    envvar="WARMLANE_STANDBYS",
    type=click.IntRange(0, 8),
    default=0,
    help="Hot standbys of the degraded worker: one takes over when it dies.",
)
@settings_option
@profile_option
@log_size_option
@step_seconds_option
@load_seconds_option
@degraded_order_option
@overload_options
@oom_snapshots_option
@keep_option
@cors_origins_option
@webhooks_allow_option
@image_options
@behind_options
@tls_cert_option
@tls_key_option
def command(
    host: ListenHost,
    port: int,
    nats_port: int,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    links_last_s: float | None,
    lanes: dict[str, int] | None,
    gpus: int | None,
    quota: Path | None,
    standbys: int,
    settings: Path | None,
    profile: str,
    log_max_bytes: int,
    step_seconds: float,
    load_seconds: float,
    degraded_order: OrderName | None,
    oom_snapshots: int,
    keep_s: float,
    cors_origins: tuple[str, ...],
    webhooks_allow: tuple[Network, ...],
    images: ImageOptions,
    tls_cert: Path | None,
    tls_key: Path | None,
    behind: Behind,
    overload: OverloadOptions,
) -> None:
    """Run the whole system on this machine: nats-server, gateway, warm lanes and degraded worker, on loopback.

    With another --host, it starts only if there is an API key.

    It runs until Ctrl-C, which drains it: the workers finish the tasks in hand, and no process is left running.
    """
    require_distinct({"--port": port, "--nats-port": nats_port})
    require_links_possible(links_last_s, artifacts)
    tls = tls_of(tls_cert, tls_key)
    configure_logging("up", level="warning")
    # a terminal or a disk that takes no text must not end the command
    console = Console(file=cast(IO[str], SafeText(sys.stdout)))
    try:
        catalog = load_settings(settings).catalog(profile)
        find_nats_server()
    except (SettingsError, NoNatsServer) as error:
        raise click.ClickException(str(error)) from error
    require_kept_long_enough(keep_s, catalog.windows)
    data_dir = data_dir.absolute()
    with only_one(data_dir, "up"), holding_store(data_dir, "up", nats_port=nats_port, port=port) as store_lock:
        require_free(host.address, port, option="--port")
        require_free(NATS_HOST, nats_port, option="--nats-port")
        setup = SystemSetup(
            catalog=catalog,
            host=host,
            port=port,
            tls=tls,
            cors_origins=cors_origins,
            webhooks_allow=webhooks_allow,
            images=images,
            behind=behind,
            nats_port=nats_port,
            data_dir=data_dir,
            artifacts=artifacts,
            links_last_s=links_last_s,
            lanes=wanted_lanes(lanes, catalog),
            gpus=gpus,
            quota_file=quota.absolute() if quota else None,
            standbys=standbys,
            settings=settings.absolute() if settings else None,
            keep_s=keep_s,
            log_max_bytes=log_max_bytes,
            step_seconds=step_seconds,
            load_seconds=load_seconds,
            degraded_order=degraded_order,
            overload=overload,
            oom_snapshots=oom_snapshots,
        )
        try:
            stack = Stack(setup, Screen(console), store_lock=store_lock)
        except QuotaError as error:
            raise click.ClickException(str(error)) from error

        async def run() -> None:
            with asked_to_end() as (stop, hurry), published(data_dir, stack.addresses):
                await stack.run(stop, hurry)

        try:
            asyncio.run(run())
        except* (TransportUnavailable, UnusableServer, NotProvisioned, NoKeys) as group:
            raise click.ClickException(str(group.exceptions[0])) from group
