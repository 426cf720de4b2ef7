"""`warmlane degraded`."""

import asyncio
import signal
from pathlib import Path

import click
import uvloop

from contracts.settings import SettingsError, load_settings
from contracts.topology import bucket_subject
from degraded_worker.worker import DegradedWorker
from lane_worker.runtime.slot import lock_path
from ops.artifacts import Artifacts, StorageFailed
from ops.memory import DriverUnusable
from ops.nats_link import NatsLink, TransportUnavailable, UnusableServer
from ops.options import (
    data_dir_option,
    name_option,
    nats_url_option,
    profile_option,
    settings_option,
    slot_option,
    step_seconds_option,
)
from ops.provision import NotProvisioned, require_degraded
from ops.telemetry import configure_logging
from ops.tracing import tracing


@click.command(
    epilog="Examples:\n\n  warmlane degraded --slot cpu-2\n\n"
    "  warmlane degraded --slot cpu-2 --name degraded-1   (a hot standby on the same slot)"
)
@slot_option
@name_option("Name of the worker, unique and stable. [default: degraded and the slot]")
@nats_url_option
@data_dir_option
@settings_option
@profile_option
@step_seconds_option
def command(
    slot: str,
    name: str | None,
    nats_url: str,
    data_dir: Path,
    settings: Path | None,
    profile: str,
    step_seconds: float,
) -> None:
    """Run a degraded worker: every model on one slot, one at a time, until SIGTERM, which drains.

    Any number may run. One leads and serves the degraded queue; the others stand by and take over within seconds.
    """
    name = name or f"degraded-{slot}"
    data_dir = data_dir.absolute()
    configure_logging("degraded")

    async def run() -> None:
        catalog = load_settings(settings).catalog(profile)
        try:
            lock_path(data_dir, slot)
            bucket_subject("slots", slot)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slot") from error
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        artifacts = Artifacts.in_folder(data_dir / "artifacts")
        link = await NatsLink.connect(nats_url, name=f"degraded-{name}")
        try:
            await require_degraded(link)
            await link.require_clock()
            worker = DegradedWorker(
                link=link,
                artifacts=artifacts,
                models=catalog.models,
                windows=catalog.windows,
                name=name,
                slot=slot,
                data_dir=data_dir,
                step_seconds=step_seconds,
            )
            await worker.run(stop)
        finally:
            await link.close()

    try:
        with tracing("degraded"):
            uvloop.run(run())
    except (
        SettingsError,
        TransportUnavailable,
        UnusableServer,
        NotProvisioned,
        StorageFailed,
        DriverUnusable,
    ) as error:
        raise click.ClickException(str(error)) from error
