"""What the runs of a demo show about the success criteria. Pure."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ops.commands.demo.runs import Run, model_switches

# SC-001 asks for at least this many requests, SC-005 for this share of switches accepted within this time.
REQUESTS_ASKED: Final = 20
ACCEPT_WITHIN_S: Final = 3.0
ACCEPT_SHARE: Final = 0.95


class CriterionVerdict(Struct, frozen=True):
    """What the runs say about one success criterion; *shown* is None where they do not show it."""

    criterion: str
    text: str
    shown: bool | None


def judge_oom(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-001: of at least 20 alternating requests on dedicated lanes, none fails with CUDA out of memory."""
    tasks = [run.task for run in runs if run.task is not None]
    with_cuda = [task for task in tasks if task.memory is not None and task.memory.cuda_allocated_bytes is not None]
    if not with_cuda:
        return CriterionVerdict("SC-001", "not shown: no CUDA", None)
    out_of_memory = [task for task in tasks if task.error is not None and task.error.code == "out_of_memory"]
    counted = f"{len(out_of_memory)} of {len(tasks)} failed with CUDA OOM"
    if out_of_memory:
        return CriterionVerdict("SC-001", counted, False)
    if len(tasks) < REQUESTS_ASKED:
        return CriterionVerdict("SC-001", f"not shown: {counted}, but it takes {REQUESTS_ASKED} requests", None)
    elsewhere = sum(task.route != "lane" for task in tasks)
    if elsewhere:
        return CriterionVerdict(
            "SC-001", f"not shown: {counted}, but {elsewhere} ran outside the dedicated lanes", None
        )
    if len({task.model for task in tasks}) < 2:
        return CriterionVerdict("SC-001", f"not shown: {counted}, but all were for one model", None)
    return CriterionVerdict("SC-001", counted, True)


def judge_acceptance(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-005: with warm lanes, at least 95 % of the requests that switch the model are accepted within 3 s."""
    switches = [run for _, run in model_switches(runs)]
    if not switches:
        return CriterionVerdict("SC-005", "not shown: no request switched the model", None)
    elsewhere = sum(run.task is not None and run.task.route != "lane" for run in runs)
    if elsewhere:
        return CriterionVerdict("SC-005", f"not shown: {elsewhere} of {len(runs)} found no warm lane", None)
    soon = sum(run.task is not None and run.accept_s <= ACCEPT_WITHIN_S for run in switches)
    share = soon / len(switches)
    text = f"{soon} of {len(switches)} model switches accepted within {ACCEPT_WITHIN_S:g} s ({share:.1%})"
    return CriterionVerdict("SC-005", text, share >= ACCEPT_SHARE)


def judge_release(runs: Sequence[Run]) -> CriterionVerdict:
    """FR-002: on the degraded worker, every switch carries the proof that the previous model was gone first."""
    switches = model_switches(runs)
    if not switches:
        return CriterionVerdict("FR-002", "not shown: no request switched the model", None)
    doubts = [(run.number, doubt_of_release(before, run)) for before, run in switches]
    first = next(((number, doubt) for number, doubt in doubts if doubt is not None), None)
    proven = sum(doubt is None for _, doubt in doubts)
    text = f"{proven} of {len(switches)} model switches proved the release before the load"
    return CriterionVerdict(
        "FR-002", text if first is None else f"{text}; request {first[0]}: {first[1]}", first is None
    )


def doubt_of_release(before: Run, run: Run) -> str | None:
    """What is missing in the proof of release that *run* carries; None when nothing is.

    1. There is a receipt, and it is for the model of the run.
    2. `nothing_resident` proves no release if the previous run left its pipeline with the same worker.
    3. `unloaded` with a component still alive proves no release.
    4. Without a probe, only a kill proves a release.
    5. With a probe: at least two samples, no more memory in use than its proof allows, and room for the next pipeline.
    """
    swap = run.task.swap if run.task is not None else None
    if run.task is None or swap is None or swap.loaded_model != run.model:  # 1
        return "no receipt"
    if swap.how == "nothing_resident":  # 2
        is_same_worker = before.task is not None and before.task.worker == run.task.worker
        return f"{before.model} was resident and was not released" if before.is_done and is_same_worker else None
    if swap.how != "killed" and swap.alive:  # 3
        return f"{', '.join(swap.alive)} stayed alive"
    if swap.probe == "none":  # 4
        return None if swap.how == "killed" else "nothing was measured, and the host was not killed"
    if swap.samples < 2 or swap.excess_bytes is None or swap.free_bytes is None:  # 5
        return "figures are missing"
    if swap.excess_bytes > 0:
        return f"{swap.excess_bytes:,} bytes too many in use"
    if swap.free_bytes < swap.needed_bytes:
        return f"{swap.needed_bytes - swap.free_bytes:,} bytes too few free"
    return None


def judge_memory(runs: Sequence[Run]) -> CriterionVerdict:
    """SC-003, as far as a client can see it: every task that ended carries the memory reading after its cleanup."""
    tasks = [run.task for run in runs if run.task is not None]
    if not tasks:
        return CriterionVerdict("SC-003", "not shown: no request was accepted", None)
    with_reading = sum(task.memory is not None for task in tasks)
    return CriterionVerdict(
        "SC-003", f"{with_reading} of {len(tasks)} tasks carry a memory reading", with_reading == len(tasks)
    )
