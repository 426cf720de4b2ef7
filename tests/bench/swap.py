"""swap: the degraded worker alternates between two heavy pipelines; so do a bare script, and new processes."""

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from contracts.tasks import GenerationTask
from tests.bench.load import LoadFailed
from tests.bench.names import BARE_SWAP, FRESH, WARMLANE
from tests.bench.procs import Cores, NotStarted, Script
from tests.bench.results import Part
from tests.bench.rounds import Values, empty_folder
from tests.bench.stacks import Stack, degraded, direct
from tests.bench.turns import Scripted, Through, between_ms, in_turns, scripted, through

SWAPS: Final = 6
# A swap by a new process takes many times as long; one for each model is enough.
FRESH_SWAPS: Final = 2
MODELS: Final = ("anisora", "phr00t")
PROOF_SAMPLES: Final = 2


def body_of(model: str) -> bytes:
    """A small video with the model's own number of steps, so that every weight of every transformer is read."""
    size = {"width": 32, "height": 32, "num_frames": 9}
    return msgspec.json.encode({"model": model, "prompt": "a red fox in fresh snow", "seed": 7} | size)


async def make_checkpoints(folder: Path) -> Path:
    """Makes two pipelines of 720 to 850 MB in *folder*, and the settings that name them. Raises NotStarted."""
    command = (sys.executable, "-m", "tests.bench.peers.heavy", str(folder))
    made = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, printed = await made.communicate()
    if made.returncode:
        raise NotStarted(f"the pipelines were not made: {printed[-2000:].decode(errors='replace')}")
    return folder / "settings.json"


async def measure(cores: Cores, *, rounds: int, say: Callable[[str], None]) -> Part:
    """Measures the swaps of worker and script in each round, in turn, then some new processes.

    Raises LoadFailed, also when the videos differ or a release was not proven; NotStarted.
    """
    with empty_folder() as models_dir, empty_folder() as folder:
        say("swap: making two pipelines of several hundred MB")
        settings = await make_checkpoints(models_dir)
        say(f"swap: starting {WARMLANE}")
        async with degraded(folder, cores, settings=settings, models_dir=models_dir) as stack:

            def start(name: str) -> contextlib.AbstractContextManager[Script]:
                return direct(name, folder, cores.rest, settings=settings, models_dir=models_dir)

            with start("bare_swap") as script:
                return await compare(stack, script, start, rounds=rounds, swaps=SWAPS, fresh_swaps=FRESH_SWAPS, say=say)


async def compare(
    stack: Stack,
    script: Script,
    start: Callable[[str], contextlib.AbstractContextManager[Script]],
    *,
    rounds: int,
    swaps: int,
    fresh_swaps: int,
    say: Callable[[str], None],
) -> Part:
    """As `measure`, with a running service and a running script; *start* starts a new script. Raises LoadFailed,
    NotStarted."""
    values = Values()
    ours: list[Through] = []
    theirs: list[Scripted] = []
    samples: dict[str, GenerationTask] = {}
    for model in MODELS:
        samples[model] = (await through(stack, body_of(model))).task
        await scripted(script, samples[model])
    models = {name: itertools.cycle(MODELS) for name in (WARMLANE, BARE_SWAP, FRESH)}

    async def by_warmlane() -> None:
        ours.append(await through(stack, body_of(next(models[WARMLANE]))))

    async def by_script() -> None:
        theirs.append(await scripted(script, samples[next(models[BARE_SWAP])]))

    for number in range(rounds):
        say(f"swap, round {number + 1} of {rounds}")
        found = await in_turns((WARMLANE, by_warmlane), (BARE_SWAP, by_script), stack, script, times=swaps)
        found.add_to(values, ours[-swaps:], theirs[-swaps:])
        say(f"swap, round {number + 1} of {rounds}: {FRESH}")
        fresh, usages = [], []
        for _ in range(fresh_swaps):
            begun_s = time.perf_counter()
            with start("fresh") as once:
                fresh.append(await scripted(once, samples[next(models[FRESH])], since_s=begun_s))
                usages.append(once.usage())
        values.add(
            FRESH,
            {
                "p50_ms": statistics.median(each.seconds for each in fresh) * 1e3,
                "cpu_ms": statistics.mean(usage.cpu_s for usage in usages) * 1e3,
                "peak_mb": max(usage.peak_bytes for usage in usages) / 1e6,
            },
        )
    stack.require_running()
    require_proven(each.task for each in ours)
    return Part(name="swap", title="Swap", series=values.series(), notes=notes(ours, theirs, rounds, swaps))


def require_proven(tasks: Iterable[GenerationTask]) -> None:
    """Raises LoadFailed unless a swap with a proven release, in the same host, preceded each of *tasks*."""
    for task in tasks:
        receipt = task.swap
        if receipt is None or receipt.how != "unloaded" or receipt.samples < PROOF_SAMPLES:
            raise LoadFailed(f"the task {task.id} was not preceded by a proven swap: {receipt}")


def notes(ours: list[Through], theirs: list[Scripted], rounds: int, swaps: int) -> tuple[str, ...]:
    """How it was measured, and where the time of *ours* went."""
    done = [each.task for each in ours]
    receipts = [task.swap for task in done if task.swap is not None]

    def median_ms(seconds: Iterable[float]) -> str:
        return f"{statistics.median(seconds) * 1e3:.0f}"

    held_mb = statistics.median(receipt.before_bytes or 0 for receipt in receipts) / 1e6
    began = statistics.median(between_ms(done, "accepted", "claim"))
    inference = statistics.median(between_ms(done, "inference_started", "inference_finished"))
    ended = statistics.median(between_ms(done, "inference_finished", "finish"))
    rest_s = [each.made.seconds - each.made.load_s - each.made.inference_s for each in theirs]
    return (
        f"{rounds * swaps} videos of {WARMLANE} and of the script in rounds of {swaps}, one at a time, in turns, each "
        f"of the other model than the one before, so that each pays a swap; the queue is empty before each. Then "
        "the new processes. All made the same videos, byte for byte. Pipelines run on one core with one thread, "
        "beside the load; the service has another core. Weights come out of the page cache: what is compared is not "
        "the disk.",
        f"{WARMLANE}: from just before `POST /generate` to the answer that says done, through gateway, degraded queue "
        "and worker; every release was proven. The script drops its pipeline, collects, gives memory back, loads, "
        "runs, writes the video, and proves nothing. A new process imports, loads, runs and writes; its time counts "
        "from its start.",
        f"Where the time of {WARMLANE} went, medians in ms: {began:.0f} from accepted to the claim, release "
        f"{median_ms(each.release_s for each in receipts)}, proof {median_ms(each.verify_s for each in receipts)}, "
        f"load {median_ms(each.load_s for each in receipts)}, inference {inference:.0f}, from its end to done "
        f"{ended:.0f}. That of the script: load {median_ms(each.made.load_s for each in theirs)}, inference "
        f"{median_ms(each.made.inference_s for each in theirs)}, release and video {median_ms(rest_s)}.",
        f"Before a release the pipeline host held {held_mb:.0f} MB, median. Peak RSS is the sum over a contender's "
        "processes; pages that they share (torch, after the fork) count in each.",
    )
