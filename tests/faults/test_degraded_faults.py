"""Faults of the degraded worker's hosts and cards; `docs/reliability/faults.md` says what becomes of each."""

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import pynvml
import pytest
import pytest_asyncio
from msgspec import Struct

from contracts.lanes import SlotState
from contracts.memory import SwapReceipt
from contracts.tasks import GenerationTask, TaskStatus
from tests.faults.stage import ProbeName, Stage, staged
from tests.kit.fake_nvml import GIB

pytestmark = pytest.mark.usefixtures("rogue_forks")

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "reliability" / "faults.md"
NEXT_MODEL: Final = "anisora"
"""The model that is resident when a fault begins, and that runs afterwards."""


class Row(Struct, frozen=True):
    """A row of the document."""

    fault: str
    task: str
    retried: str
    slot: str


class Fault(Struct, frozen=True, kw_only=True):
    """How a fault is planted, and what the log then says: the outcome of each try, and why a swap killed the host."""

    outcomes: tuple[str, ...]
    killed_because: str = ""
    model: str = "phr00t"
    prompt: str = ""
    cancel: bool = False
    probe: ProbeName = "rss"
    figures: Mapping[str, int] = {}


STUCK: Final = ("quarantined", "unreadable")
"""Slots on which nothing runs for now."""
OUT_OF_MEMORY_TWICE: Final = ("out_of_memory", "out_of_memory")
FAULTS: Final = {
    "leaks one tensor": Fault(prompt="leak tensor", outcomes=("done",), killed_because="alive.*: transformer$"),
    "keeps a component": Fault(prompt="keep component", outcomes=("done",), killed_because="alive.*: text_encoder$"),
    "leaks 200 MB": Fault(prompt="leak 200 MB", outcomes=("done",), killed_because="^[0-9]+ bytes more were in use"),
    "ignores a cancel": Fault(model="impatient", prompt="ignore cancel", cancel=True, outcomes=("host_lost",)),
    "hangs and ignores SIGTERM": Fault(model="impatient", prompt="ignore SIGTERM", outcomes=("inference_timeout",)),
    "segfaults in the inference": Fault(prompt="segfault", outcomes=("host_lost", "host_lost")),
    "answers garbage on the pipe": Fault(prompt="garbage", outcomes=("host_lost", "host_lost")),
    "hangs in the load": Fault(model="hangs", outcomes=("inference_timeout",)),
    "out of memory in the load": Fault(model="too_large", outcomes=OUT_OF_MEMORY_TWICE),
    "out of memory in the load, once": Fault(model="too_large_once", outcomes=("out_of_memory", "done")),
    "out of memory in the text encoder": Fault(prompt="oom in text encoder", outcomes=OUT_OF_MEMORY_TWICE),
    "out of memory in step 3": Fault(prompt="oom in step 3", outcomes=OUT_OF_MEMORY_TWICE),
    "out of memory in the VAE decode": Fault(prompt="oom in vae", outcomes=OUT_OF_MEMORY_TWICE),
    "out of memory once": Fault(prompt="oom in step 3 in a used host", outcomes=("out_of_memory", "done")),
    "a library has no memory, once": Fault(
        prompt="raise cudnn 8 allocation in a used host", outcomes=("out_of_memory", "done")
    ),
    "the driver has no memory, always": Fault(prompt="raise driver out of memory", outcomes=OUT_OF_MEMORY_TWICE),
    "the allocator's state is broken": Fault(prompt="raise allocator assert", outcomes=("inference_failed",)),
    "a CUDA error": Fault(prompt="cuda error", outcomes=("inference_failed",)),
    "NVML is missing": Fault(probe="missing", outcomes=("done",), killed_because="nothing here can measure memory"),
    "NVML shows a figure that falls": Fault(
        probe="nvml",
        figures={"used_bytes": 61 * GIB, "fall_bytes": 20 * GIB, "least_bytes": GIB},
        outcomes=("done",),
    ),
    "NVML shows what another program took": Fault(probe="nvml", figures={"used_bytes": 20 * GIB}, outcomes=("done",)),
    "NVML shows a figure that is stuck": Fault(
        probe="nvml",
        figures={"used_bytes": 80 * GIB},
        outcomes=("quarantined",),
        killed_because="bytes more were in use.*after the host had ended$",
    ),
    "NVML raises": Fault(
        probe="nvml",
        figures={"used_bytes": GIB, "read_error": pynvml.NVML_ERROR_GPU_IS_LOST},
        outcomes=("host_lost",),
        killed_because="could not be read.*after the host had ended$",
    ),
    "NVML raises from the start": Fault(
        probe="failing", figures={"init_error": pynvml.NVML_ERROR_UNKNOWN}, outcomes=()
    ),
}


def rows() -> list[Row]:
    """The table of the document."""
    lines = re.findall(r"^\| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return [Row(*(cell.replace("`", "") for cell in line.split(" | "))) for line in lines[1:]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("faults")) as stage:
        yield stage


def test_every_fault_has_one_row() -> None:
    assert [row.fault for row in rows()] == list(FAULTS)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.fault)
async def test_fault(stage: Stage, row: Row) -> None:
    fault = FAULTS[row.fault]
    # a figure that falls with each read needs time for the reads; memory that stays in use needs no wait
    await stage.serve(fault.probe, deadline_s=60 if "fall_bytes" in fault.figures else 0.5)
    stage.card.set(**({"used_bytes": GIB} | dict(fault.figures)))
    task_id = await stage.submit(fault.model, fault.prompt or "a lighthouse")
    if fault.cancel:
        await stage.cancel(task_id)
    if row.slot in STUCK:
        await (stage.slot_becomes(SlotState.QUARANTINED) if row.slot == "quarantined" else stage.memory_is_asked_for())
        refused = await run_next(stage)
        assert (outcome_of(refused), refused.attempt) == ("queue_overloaded", 0)
    task = await stage.ended(task_id)
    await stage.no_place_is_taken()  # however it ended
    events = stage.events(task_id)
    if "task_failed" in events:  # the worker itself ended the task: it had cleaned up before
        assert "memory_after_cleanup" in events[: events.index("task_failed")]
    cleanups = stage.cleanups(task_id)
    assert tuple(outcome for _, outcome in cleanups) == fault.outcomes
    if row.slot in STUCK:
        slot, reason = row.slot, stage.last_swap["reason"] if fault.outcomes else ""
        stage.card.set(used_bytes=GIB)
        if row.slot == "quarantined":
            await stage.lift()
        after = await run_next(stage)
    else:
        await stage.slot_becomes(SlotState(row.slot.replace(",", " ").split()[0]))
        after = await run_next(stage)
        slot, reason = slot_before(after.swap), stage.last_swap["reason"]
    assert Row(row.fault, outcome_of(task), retried(task, [attempt for attempt, _ in cleanups]), slot) == row
    assert re.search(fault.killed_because or "^$", reason)
    assert (after.status, after.attempt, stage.cleanups(after.id)) == (TaskStatus.DONE, 1, [(1, "done")])
    await stage.slot_becomes(SlotState.RESIDENT)


async def run_next(stage: Stage) -> GenerationTask:
    return await stage.ended(await stage.submit(NEXT_MODEL))


def outcome_of(task: GenerationTask) -> str:
    return str(task.status) if task.error is None else str(task.error.code)


def retried(task: GenerationTask, attempts: list[int]) -> str:
    """How the task was retried, in the words of the document; *attempts* has an entry for each try."""
    match attempts:
        case []:
            return "no"
        case [1]:
            return "queued again" if task.epoch else "no"
        case [1, 1]:
            return "in a fresh host"
        case [1, 2]:
            return "as a second attempt"
    raise AssertionError(attempts)


def slot_before(swap: SwapReceipt | None) -> str:
    """The state in which the swap to the next model found the slot, in the words of the document."""
    assert swap is not None
    match (swap.released_model, swap.how):
        case (None, "nothing_resident"):
            return "empty, new host"
        case (None, "unloaded"):
            return "empty"
        case (_, "unloaded"):
            return "resident"
        case (_, "killed"):
            return "resident until its host is killed"
    raise AssertionError(swap)
