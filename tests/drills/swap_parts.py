"""`make swap-parts`: where the time of a swap goes, part by part, beside what the disk, the memory and the bus allow.

First it swaps in the product's own residence: weights that are in the page cache (warm), and weights that were dropped
from it before each swap (cold), with and without reading ahead. Then it tries other ways to load a transformer, each in
a new process. Of each kind the fastest counts, because other work of the machine only adds time.
"""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.memory import SwapReceipt
from contracts.settings import ModelEntry, load_settings
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate, StepFinished
from lane_worker.residence.read_ahead import ReadAhead
from lane_worker.residence.residence import Residence
from lane_worker.runtime.warm_up import with_picture
from ops.machine.memory import probe_for
from ops.telemetry.logs import configure_logging
from tests.bench.peers.heavy import LAYERS, NARROW, WIDE, Shape, make_pipelines, parameters_of
from tests.drills.load_variants import VARIANTS, Best, read_rate, throw_out, weights_of

Cache = Literal["warm", "cold", "cold, not read ahead"]
CACHES: Final[tuple[Cache, ...]] = ("warm", "cold", "cold, not read ahead")
PARTS: Final = ("release", "verify", "load", "read", "copy", "first_step")
WIDE_LAYERS: Final = {"anisora": 4, "phr00t": 9}
SHARD_BYTES: Final = 100_000_000  # so that a small transformer has several shards


class Limits(Struct, frozen=True, kw_only=True):
    """What the machine allows, in bytes a second. Without a card the copies to it are None."""

    cold_read: float
    warm_read: float
    pageable_copy: float | None = None
    pinned_copy: float | None = None


class Line(Struct, frozen=True, kw_only=True):
    """One part beside its limit, both in seconds."""

    what: str
    took_s: float
    limit_s: float | None
    limit_is: str

    @property
    def ratio(self) -> float | None:
        return None if not self.limit_s else self.took_s / self.limit_s


Swaps = Mapping[Cache, Sequence[SwapReceipt]]


class NoReading(ReadAhead):
    """Stands for `ReadAhead` in a worker without reading ahead."""

    def begin(self, folder: Path) -> None:
        pass


def limits_of(folder: Path, *, slot: str) -> Limits:
    """The limits, measured with *folder*'s own weights. No host may hold the card meanwhile."""
    throw_out(folder)
    cold_read, warm_read = read_rate(folder), read_rate(folder)
    if slot.startswith("cpu-"):
        return Limits(cold_read=cold_read, warm_read=warm_read)
    pageable, pinned = (copy_rate(slot, pinned=pinned) for pinned in (False, True))
    return Limits(cold_read=cold_read, warm_read=warm_read, pageable_copy=pageable, pinned_copy=pinned)


_COPY: Final = """
import sys, time, torch
source = torch.ones(1 << 30, dtype=torch.uint8, pin_memory=sys.argv[1] == "pinned")
target = torch.empty_like(source, device="cuda", pin_memory=False)
target.copy_(source); torch.cuda.synchronize()
begun_s = time.perf_counter()
for _ in range(4):
    target.copy_(source)
torch.cuda.synchronize()
print(4 * (1 << 30) / (time.perf_counter() - begun_s))
"""


def copy_rate(slot: str, *, pinned: bool) -> float:
    """Bytes a second from the host to the card *slot*, measured in a process of its own, which leaves no CUDA context
    behind."""
    command = [sys.executable, "-c", _COPY, "pinned" if pinned else "pageable"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": slot}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


async def swaps(
    models: Mapping[str, ModelEntry], models_dir: Path, fork_server: ForkServer, *, slot: str, count: int
) -> Swaps:
    """*count* swaps of each kind, in turns so that all see the same machine, each followed by a task."""
    found: dict[Cache, list[SwapReceipt]] = {cache: [] for cache in CACHES}
    names = list(models)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        host = Host(slot=slot, lock_dir=folder, models_dir=models_dir, fork_server=fork_server)
        ahead: dict[Cache, ReadAhead] = {cache: ReadAhead() for cache in CACHES}
        ahead["cold, not read ahead"] = NoReading()
        residence = Residence(host=host, slot=slot, models=models, probe=probe_for(slot), on_state=lambda *_: None)
        try:
            await residence.open()
            for name in (*names, names[0]):  # does all one-time work
                await _swap(residence, host, models[name], folder)
            turns = [cache for _ in range(count) for cache in CACHES]
            for number, cache in enumerate(turns, 1):
                name = names[number % len(names)]
                prepare = read_rate if cache == "warm" else throw_out
                prepare(host.folder_of(models[name]))
                residence.read_ahead = ahead[cache]
                found[cache].append(await _swap(residence, host, models[name], folder))
        finally:
            await residence.close()
    return found


async def _measure(models: Mapping[str, ModelEntry], models_dir: Path, *, slot: str, count: int) -> Swaps:
    fork_server = ForkServer()
    try:
        return await swaps(models, models_dir, fork_server, slot=slot, count=count)
    finally:
        await fork_server.close()


async def _swap(residence: Residence, host: Host, entry: ModelEntry, folder: Path) -> SwapReceipt:
    receipt = (await residence.ready(entry.name)).receipt
    steps: list[StepFinished] = []
    request = with_picture(Generate("parts", 0, parameters_of(entry), str(folder / "video.mp4")), entry, folder)
    outcome = await host.generate(request, steps.append)
    assert isinstance(outcome, Finished), outcome
    return msgspec.structs.replace(receipt, first_step_s=steps[1].at_s - steps[0].at_s)


def total_s(receipt: SwapReceipt) -> float:
    """Seconds from the request for another model to the end of its first step."""
    return receipt.release_s + receipt.verify_s + receipt.load_s + (receipt.first_step_s or 0.0)


def part_s(receipts: Sequence[SwapReceipt], part: str) -> float:
    """The seconds of *part* in the fastest swap, so that the parts of a column belong together. A part that was not
    measured counts as 0."""
    return getattr(min(receipts, key=total_s), f"{part}_s") or 0.0


def beside_limits(found: Swaps, limits: Limits, *, weights_bytes: int, poll_s: float) -> list[Line]:
    """The parts that have a limit. Whichever part touches a cold file first reads it: the load, the copy or the first
    step. So a cold file costs the time by which those three are longer than with a warm one."""

    def touching(cache: Cache) -> float:
        return sum(part_s(found[cache], part) for part in ("load", "first_step"))

    lines = [
        Line(
            what="proof",
            took_s=part_s(found["warm"], "verify"),
            limit_s=poll_s,
            limit_is="two samples in a row, one interval apart",
        ),
        Line(
            what="read, warm",
            took_s=part_s(found["warm"], "read"),
            limit_s=weights_bytes / limits.warm_read,
            limit_is=f"the same bytes out of the page cache, {limits.warm_read / 1e9:.2f} GB/s",
        ),
        *(
            Line(
                what=f"read, {cache}: load and first step, less those of a warm one",
                took_s=touching(cache) - touching("warm"),
                limit_s=weights_bytes / limits.cold_read,
                limit_is=f"the same bytes from the disk in sequence, {limits.cold_read / 1e9:.2f} GB/s",
            )
            for cache in CACHES[1:]
        ),
    ]
    copy_s = part_s(found["warm"], "copy")
    for name, rate in (("pageable", limits.pageable_copy), ("pinned", limits.pinned_copy)):
        limit_is = "no card" if rate is None else f"{name} memory to the card, {rate / 1e9:.2f} GB/s"
        limit_s = None if rate is None else weights_bytes / rate
        lines.append(Line(what=f"copy, beside {name}", took_s=copy_s, limit_s=limit_s, limit_is=limit_is))
    return lines


def tables(found: Swaps, lines: Sequence[Line]) -> Iterator[Table]:
    """The measurements as printed tables."""
    parts = Table("part", *CACHES, title="A swap by part, in seconds")
    for part in PARTS:
        inside = "  of it " if part in ("read", "copy") else ""
        name = {"verify": "proof", "first_step": "first step"}.get(part, part)
        parts.add_row(f"{inside}{name}", *(f"{part_s(found[cache], part):.3f}" for cache in CACHES))
    parts.add_row("all", *(f"{min(map(total_s, found[cache])):.3f}" for cache in CACHES))
    yield parts
    beside = Table("part", "took", "limit", "ratio", "the limit is", title="Beside what the machine allows")
    for line in lines:
        limit = "-" if line.limit_s is None else f"{line.limit_s:.3f} s"
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}"
        beside.add_row(line.what, f"{line.took_s:.3f} s", limit, ratio, line.limit_is)
    yield beside


def compare_variants(shapes: Mapping[str, Path], *, slot: str, rounds: int, names: Sequence[str] = VARIANTS) -> Table:
    """Loads the transformer in each of *shapes* in each way, each time in a process of its own."""
    device = "cpu" if slot.startswith("cpu-") else "cuda"
    environment = os.environ | ({} if device == "cpu" else {"CUDA_VISIBLE_DEVICES": slot})
    table = Table("weights", "way", "warm", "cold", "peak RSS", title="A transformer, loaded and copied, in seconds")
    for kind, folder in shapes.items():
        for name in names:
            command = [sys.executable, "-m", "tests.drills.load_variants", name, str(folder), device, str(rounds)]
            printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
            best = msgspec.json.decode(printed, type=Best)
            times = (f"{each.read_s:.2f} + {each.copy_s:.2f}" for each in (best.warm, best.cold))
            table.add_row(kind, name, *times, f"{best.peak_bytes / 1e6:.0f} MB")
    return table


@click.command(
    epilog="Examples:\n\n  python -m tests.drills.swap_parts --count 3 --no-variants\n\n"
    "  python -m tests.drills.swap_parts --slot GPU-5c1f... --settings settings.json --profile production "
    "--models-dir models"
)
@click.option("--slot", default="cpu-0", show_default=True, help="A CPU slot, or the UUID of a card.")
@click.option("--count", type=click.IntRange(1), default=5, show_default=True, help="How many swaps of each kind.")
@click.option("--settings", type=click.Path(path_type=Path, exists=True), help="Settings that name other pipelines.")
@click.option("--profile", default="tiny", show_default=True, help="The profile of --settings.")
@click.option("--models-dir", type=click.Path(path_type=Path, exists=True), help="Where --settings finds them.")
@click.option("--variants/--no-variants", default=True, show_default=True, help="Whether to try other ways to load.")
def command(
    slot: str, count: int, settings: Path | None, profile: str, models_dir: Path | None, variants: bool
) -> None:
    """Measure a swap by part, and what the machine allows. Without --settings it makes random pipelines."""
    if (settings is None) != (models_dir is None):
        raise click.UsageError("--settings and --models-dir go together: give both, or neither")
    console = Console(width=120)
    configure_logging("swap_parts", level="error")
    on_card = not slot.startswith("cpu-")
    with contextlib.ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if settings is None or models_dir is None:
            console.print("making two pipelines")
            models_dir = made
            settings = make_pipelines(made, WIDE_LAYERS if on_card else LAYERS, WIDE if on_card else NARROW)
        models = dict(load_settings(settings).catalog(profile).models)
        entry = next(reversed(models.values()))
        folder = models_dir / entry.checkpoint.folder
        limits = limits_of(folder, slot=slot)
        found = asyncio.run(_measure(models, models_dir, slot=slot, count=count))
        probe = probe_for(slot)
        weights_bytes = int(statistics.median(_bytes(models_dir / it.checkpoint.folder) for it in models.values()))
        poll_s = 0.0 if probe is None else probe.poll_s
        lines = beside_limits(found, limits, weights_bytes=weights_bytes, poll_s=poll_s)
        for table in tables(found, lines):
            console.print(table)
        if variants:
            console.print(compare_variants(_shapes(made, folder, on_card=on_card), slot=slot, rounds=3))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weights_of(folder))


def _shapes(made: Path, folder: Path, *, on_card: bool) -> dict[str, Path]:
    """The transformer of *folder*, and on a CPU the same layers in bfloat16, whole and in shards."""
    transformer = {"as above": folder / "transformer"}
    if on_card:
        return transformer
    layers = {"anisora": 1, "phr00t": LAYERS["phr00t"]}
    shape: Shape = msgspec.structs.replace(NARROW, dtype="bfloat16", shard_bytes=SHARD_BYTES)
    make_pipelines(made / "bfloat16", layers, shape)
    return {"float32, one file": folder / "transformer", "bf16 shards": made / "bfloat16" / folder.name / "transformer"}


if __name__ == "__main__":
    command()
