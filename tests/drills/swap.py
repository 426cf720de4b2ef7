"""`make swap`: 200 alternations between two pipelines of several hundred MB on a CPU, each release proven.

They take turns with a bare script that does the same without a proof, so that both see the same machine.
"""

import asyncio
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import track
from rich.table import Table

from contracts.memory import SwapReceipt
from contracts.settings import ModelEntry
from lane_worker.forking.fork_server import FORK_SERVER, ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate
from lane_worker.residence.residence import Residence
from ops.machine.memory import probe_for
from ops.telemetry.logs import configure_logging
from tests.bench.jobs import Job, Made
from tests.bench.peers.heavy import heavy_models, make_heavy, parameters_of
from tests.drills.overload import is_proven
from tests.kit import rogue_host

SLOT: Final = "cpu-0"
RATIO_MAX: Final = 1.15
FLAT_WITHIN: Final = 0.05
ENDS: Final = 20


class Alternation(Struct, frozen=True, kw_only=True):
    """One swap: its receipt, and its seconds with release, proof, load and run; and those of the bare script."""

    receipt: SwapReceipt
    ours_s: float
    bare_s: float


class Verdict(Struct, frozen=True):
    """One line of the table."""

    what: str
    measured: str
    asked: str
    passed: bool


def judge(alternations: Sequence[Alternation]) -> list[Verdict]:
    """The verdicts on the alternations. The times of the first two do not count, because they fill the page cache."""
    receipts = [item.receipt for item in alternations]
    proven = sum(receipt.how == "unloaded" and is_proven(receipt) for receipt in receipts)
    # a killed host leaves nothing, which does not compare with what a release leaves
    after = [receipt.after_bytes for receipt in receipts if receipt.how == "unloaded" and receipt.after_bytes]
    ends = min(ENDS, len(after) // 2)
    first = statistics.median(after[:ends] or [0])
    drift = (statistics.median(after[-ends:]) - first) / first if ends else math.inf
    ratio = statistics.median(item.ours_s for item in alternations[2:]) / statistics.median(
        item.bare_s for item in alternations[2:]
    )
    return [
        Verdict("releases that were verified", f"{proven} of {len(receipts)}", "all", proven == len(receipts)),
        Verdict(
            f"memory after a release, the last {ends} against the first {ends}",
            f"{first / 1e6:.0f} MB, and {drift:+.1%}" if ends else "no release left anything to compare",
            f"within {FLAT_WITHIN:.0%}",
            abs(drift) <= FLAT_WITHIN,
        ),
        Verdict("time against the bare script, median", f"{ratio:.3f}", f"≤ {RATIO_MAX}", ratio <= RATIO_MAX),
    ]


async def alternate(
    folder: Path, *, count: int, leak: bool, console: Console, shared: str | None = None
) -> list[Alternation]:
    """*count* swaps, each followed by a generation, in turns with the bare script.

    *shared* is the socket of a fork server that has imported torch already.
    """
    console.print("building two pipelines of several hundred MB")
    models = await asyncio.to_thread(heavy_models, folder)
    fork_server = ForkServer(rogue_host.COMMAND if leak else FORK_SERVER, shared=shared)
    host = Host(slot=SLOT, lock_dir=folder / "locks", models_dir=folder, fork_server=fork_server)
    residence = Residence(host=host, slot=SLOT, models=models, probe=probe_for(SLOT), on_state=lambda *_: None)
    bare = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.peers.direct"),
        *(str(make_heavy(folder)), str(folder), str(folder / "bare.mp4")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    names = itertools.cycle(models)
    prompt = "leak 200 MB" if leak else "weights"
    alternations: list[Alternation] = []
    try:
        await residence.open()
        await swap_and_run(residence, host, models, next(names), folder, prompt)
        for name in track(list(itertools.islice(names, count)), description="swapping", console=console):
            receipt, ours_s = await swap_and_run(residence, host, models, name, folder, prompt)
            alternations.append(Alternation(receipt=receipt, ours_s=ours_s, bare_s=await run_bare(bare, models[name])))
    finally:
        bare.kill()
        await bare.wait()
        await residence.close()
        await fork_server.close()
    return alternations


async def swap_and_run(
    residence: Residence, host: Host, models: Mapping[str, ModelEntry], name: str, folder: Path, prompt: str
) -> tuple[SwapReceipt, float]:
    """Makes *name* resident and runs one generation; returns the receipt, and the seconds of both together."""
    begun_s = time.perf_counter()
    receipt = (await residence.ready(name)).receipt
    request = Generate(
        task_id="swap", attempt=0, parameters=parameters_of(models[name], prompt), video_path=str(folder / "ours.mp4")
    )
    outcome = await host.generate(request, lambda _: None)
    assert isinstance(outcome, Finished), outcome
    return receipt, time.perf_counter() - begun_s


async def run_bare(bare: asyncio.subprocess.Process, model: ModelEntry) -> float:
    """The seconds that the bare script takes for the same."""
    assert bare.stdin is not None
    assert bare.stdout is not None
    bare.stdin.write(msgspec.json.encode(Job(model.name, parameters_of(model))) + b"\n")
    await bare.stdin.drain()
    return msgspec.json.decode(await bare.stdout.readline(), type=Made).seconds


def report(console: Console, alternations: Sequence[Alternation], verdicts: Sequence[Verdict]) -> None:
    """Prints the verdicts, and how the time divides."""
    table = Table("what", "measured", "asked", "", title=f"{len(alternations)} swaps")
    for verdict in verdicts:
        mark = "[green]pass[/]" if verdict.passed else "[red]FAIL[/]"
        table.add_row(verdict.what, verdict.measured, verdict.asked, mark)
    console.print(table)

    def median(values: Iterator[float]) -> str:
        return f"{statistics.median(values):.3f} s"

    receipts = [item.receipt for item in alternations]
    console.print(
        f"medians: release {median(it.release_s for it in receipts)}, proof {median(it.verify_s for it in receipts)}, "
        f"load {median(it.load_s for it in receipts)}; with the run {median(it.ours_s for it in alternations)}, "
        f"bare {median(it.bare_s for it in alternations)}",
        highlight=False,
    )
    held = statistics.median(item.receipt.before_bytes or 0 for item in alternations)
    console.print(f"memory before a release, median: {held / 1e6:.0f} MB", highlight=False)


@click.command(epilog="Example:\n\n  python -m tests.drills.swap --count 10 --leak")
@click.option("--count", type=click.IntRange(4), default=200, show_default=True, help="How many swaps.")
@click.option("--leak", is_flag=True, help="Plant a leak of 200 MB in the host, which the checks must find.")
def command(count: int, leak: bool) -> None:
    """Swap two heavy pipelines to and fro, and judge the releases. Exit status 1 on a miss."""
    console = Console()
    configure_logging("swap", level="error")
    with tempfile.TemporaryDirectory() as folder:
        alternations = asyncio.run(alternate(Path(folder), count=count, leak=leak, console=console))
    verdicts = judge(alternations)
    report(console, alternations, verdicts)
    raise SystemExit(0 if all(verdict.passed for verdict in verdicts) else 1)


if __name__ == "__main__":
    command()
