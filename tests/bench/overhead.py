"""overhead: a tiny pipeline from submit to done, and a script that calls the same pipeline in its own process."""

import statistics
from collections.abc import Callable
from typing import Final

from tests.bench.names import DIRECT, WARMLANE
from tests.bench.procs import Cores, Script
from tests.bench.results import Part
from tests.bench.rounds import Values, empty_folder
from tests.bench.stacks import BODY, Stack, direct, warmlane
from tests.bench.turns import REST_S, Scripted, Through, between_ms, in_turns, scripted, through

TASKS: Final = 20
WARM_UP: Final = 3


async def measure(cores: Cores, *, rounds: int, say: Callable[[str], None], tasks: int = TASKS) -> Part:
    """Measures *tasks* of both in each round, in turn. Raises LoadFailed, also when their videos differ; NotStarted."""
    with empty_folder() as folder:
        say(f"overhead: starting {WARMLANE}")
        async with warmlane(folder, cores, works=True) as stack:
            with direct(
                "direct", folder, cores.rest, settings=folder / "settings.json", models_dir=folder / "models"
            ) as script:
                return await compare(stack, script, rounds=rounds, tasks=tasks, say=say)


async def compare(stack: Stack, script: Script, *, rounds: int, tasks: int, say: Callable[[str], None]) -> Part:
    """As `measure`, with a running service and a running script. Raises LoadFailed, NotStarted."""
    values = Values()
    ours: list[Through] = []
    theirs: list[Scripted] = []
    for _ in range(WARM_UP):
        sample = (await through(stack, BODY)).task
        await scripted(script, sample)

    async def by_warmlane() -> None:
        ours.append(await through(stack, BODY))

    async def directly() -> None:
        theirs.append(await scripted(script, sample))

    for number in range(rounds):
        say(f"overhead, round {number + 1} of {rounds}")
        found = await in_turns((WARMLANE, by_warmlane), (DIRECT, directly), stack, script, times=tasks)
        found.add_to(values, ours[-tasks:], theirs[-tasks:])
    stack.require_running()
    return Part(name="overhead", title="Overhead", series=values.series(), notes=notes(ours, theirs, rounds, tasks))


def notes(ours: list[Through], theirs: list[Scripted], rounds: int, tasks: int) -> tuple[str, ...]:
    """How it was measured, and where the time of *ours* went."""
    done = [each.task for each in ours]
    used = done[0].parameters
    inference_ms = statistics.median(between_ms(done, "inference_started", "inference_finished"))
    alone_ms = statistics.median(each.made.inference_s for each in theirs) * 1e3
    clean_ms = statistics.median(task.memory.cleanup_s for task in done if task.memory is not None) * 1e3
    began_ms = statistics.median(between_ms(done, "accepted", "inference_started"))
    ended_ms = statistics.median(between_ms(done, "inference_finished", "finish"))
    written_ms = statistics.median(each.made.seconds - each.made.inference_s for each in theirs) * 1e3
    return (
        f"{rounds * tasks} videos of each in rounds of {tasks}, one at a time, in turns, {REST_S * 1e3:g} ms after the "
        f"one before: the settings' default size ({used.width}x{used.height}, {used.num_frames} frames, {used.steps} "
        "steps), one seed. All had the same bytes. Worker, pipeline host, script and load share one core and use "
        "one thread each; the service has another core. Both pipelines are warm.",
        f"{WARMLANE}: from just before `POST /generate` to the answer of `GET /tasks/ID?wait=60` that says done, which "
        f"is behind the stored video. {DIRECT}: from a line on its input, with the same parameters, to a line on its "
        "output, behind the written video.",
        f"Where the time went, medians: {began_ms:.1f} ms from accepted to the first step; {inference_ms:.1f} ms "
        f"inference, called directly {alone_ms:.1f}; {ended_ms:.1f} ms from its end to done, thereof {clean_ms:.1f} "
        f"for cleaning up; called directly {written_ms:.1f} for the video alone.",
        "What is added does not grow with the video, so the milliseconds say more than the ratio: of a real model's "
        "minutes it is nothing.",
        "CPU time is that of the whole round, for what a service does while it waits as well. Peak RSS is the sum over "
        "its processes; pages that they share (torch, after the fork) count in each.",
    )
