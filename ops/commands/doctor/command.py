"""`warmlane doctor`: what this machine has, what is missing, and what to do about it."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from contracts.settings import SettingsError, load_settings
from ops.artifact_place import ArtifactPlace, BucketPlace
from ops.commands.addresses import find
from ops.commands.artifact_options import artifacts_option
from ops.commands.doctor.artifacts import bucket
from ops.commands.doctor.findings import Finding, table_of
from ops.commands.doctor.machine import HOST, RUNNING, look
from ops.commands.doctor.server import queue
from ops.commands.doctor.verdicts import judge_model
from ops.commands.options import data_dir_option, nats_port_option, port_option, profile_option, settings_option
from ops.commands.variables import option_or_variable
from ops.machine.nvml import DriverUnusable, survey
from ops.machine.ports import require_distinct
from ops.machine.visible_cards import AmbiguousOrder
from ops.nats.access import access


def models_of(models_dir: Path, settings: Path | None, profile: str) -> Iterator[Finding]:
    """A finding for each model of *profile* that is loaded from a prepared folder in *models_dir*."""
    try:
        entries = load_settings(settings).catalog(profile).models.values()
    except SettingsError as error:
        yield Finding(what="settings", level="missing", found=str(error), advice="correct the file, or --profile")
        return
    try:
        gpus = survey().gpus
    except (DriverUnusable, AmbiguousOrder):  # the line about the cards reports it
        gpus = ()
    for entry in entries:
        if entry.checkpoint.random_weights is None:
            yield judge_model(entry, models_dir.absolute(), gpus)


@click.command(
    epilog="Examples:\n\n  warmlane doctor\n\n  warmlane doctor --port 8080 --nats-port 4333 --data-dir /srv/warmlane"
    "\n\n  warmlane doctor --profile production"
)
@data_dir_option
@artifacts_option
@port_option
@nats_port_option
@settings_option
@profile_option
@option_or_variable(
    "--nats-url",
    envvar="WARMLANE_NATS_URL",
    help="A running nats-server to compare clocks with. [default: the one of the data folder, or at --nats-port]",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    port: int,
    nats_port: int,
    settings: Path | None,
    profile: str,
    nats_url: str | None,
) -> None:
    """Report what this machine has, what it lacks, and what to do about that.

    Exit status 0 when `warmlane up` can run with these options, or already runs on this folder; otherwise 1. It changes
    nothing.
    """
    require_distinct({"--port": port, "--nats-port": nats_port})
    running_here = find(data_dir, is_named=True).addresses
    here = f"nats://{HOST}:{nats_port}" if running_here is None else running_here.nats_url
    server = access("operator", nats_url or here, data_dir=data_dir)
    findings = [
        *look(data_dir, port, nats_port, server, profile=profile),
        *([bucket(artifacts)] if isinstance(artifacts, BucketPlace) else []),
        *queue(server, settings, profile),
        *models_of(data_dir / "models", settings, profile),
    ]
    Console().print(table_of(findings))
    missing = [finding.what for finding in findings if finding.level == "missing"]
    if missing:
        click.echo(f"`warmlane up` cannot run yet: see {', '.join(missing)}")
        ctx.exit(1)
    running = next((finding.found for finding in findings if finding.what == RUNNING), None)
    click.echo("`warmlane up` can run" if running is None else f"running: {running}")
