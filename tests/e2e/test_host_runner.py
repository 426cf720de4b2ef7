"""How a task on a slot ends: its receipt, its memory line, and each failure of its host (FR-008, SC-003)."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from msgspec.structs import replace

from contracts.lanes import SlotState
from contracts.tasks import FailureCode
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from tests.kit.fake_nvml import GIB, FakeNvml
from tests.kit.measured import Measured
from tests.kit.support import eventually
from tests.kit.yard import CATALOG, SLOT, Yard, changed, nvml, rss, task_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

FULL = 80 * GIB  # all that the fake card has


@pytest.fixture
def lines() -> Iterator[list[tuple[Any, bool]]]:
    """The memory lines so far: the outcome, and whether the process was gone."""
    found: list[tuple[Any, bool]] = []
    with structlog.testing.capture_logs([lambda _, __, event: _memory_line(event, found)]):
        yield found


def _memory_line(event: Any, found: list[tuple[Any, bool]]) -> Any:
    if event["event"] == "memory_after_cleanup":
        assert event["rss_bytes"] > 0 or event["process_gone"]
        found.append((event["outcome"], "process_gone" in event))
    return event


async def test_a_task_that_swapped_carries_the_receipt(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    first, second = await slot.run("phr00t"), await slot.run("phr00t")
    assert isinstance(first, Succeeded)
    assert first.swap is not None
    assert first.swap.loaded_model == "phr00t"
    assert first.swap.first_step_s is not None
    assert 0 < first.swap.first_step_s <= first.inference_s
    assert isinstance(second, Succeeded)
    assert second.swap is None  # the model was resident
    assert lines == [("done", False), ("done", False)]


@pytest.mark.parametrize("where", ["text encoder", "step 3", "vae"])
async def test_an_inference_out_of_memory_is_repeated_once_in_a_fresh_host(
    yard: Yard, tmp_path: Path, where: str, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    await slot.run("phr00t")
    pid = slot.host.pid
    result = await slot.run("phr00t", f"oom in {where} in a used host")
    assert isinstance(result, Succeeded), result
    assert result.swap is not None
    assert (result.swap.how, result.swap.reason) == ("killed", "it ran out of memory")
    assert slot.host.pid != pid
    assert lines == [("done", False), ("out_of_memory", False), ("done", False)]

    hopeless = await slot.run("phr00t", f"oom in {where}")
    assert isinstance(hopeless, Unsuccessful)
    assert hopeless.code is FailureCode.OUT_OF_MEMORY
    assert lines[3:] == [("out_of_memory", False)] * 2
    assert isinstance(await slot.run("phr00t"), Succeeded)


async def test_a_load_out_of_memory_is_repeated_once_in_a_fresh_host(
    yard: Yard, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load-in-a-used-host"))
    await slot.residence.open()
    await slot.run("anisora")
    result = await slot.run("phr00t")
    assert isinstance(result, Succeeded), result
    assert lines == [("done", False), ("out_of_memory", False), ("done", False)]


async def test_a_model_that_never_fits_fails_its_own_task_only(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load"))
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert (result.code, result.swap and result.swap.how) == (FailureCode.OUT_OF_MEMORY, "killed")
    assert lines == [("out_of_memory", False)] * 2
    assert isinstance(await slot.run("anisora"), Succeeded)


@pytest.mark.parametrize("misdeed", ["segfault", "garbage"])
async def test_a_task_whose_host_dies_goes_to_another_attempt(
    yard: Yard, tmp_path: Path, misdeed: str, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    assert isinstance(await slot.run("phr00t", misdeed), GaveUp)
    assert lines == [("host_lost", True)]
    assert isinstance(await slot.run("anisora"), Succeeded)


async def test_a_broken_device_ends_the_host_and_spares_the_next_task(
    yard: Yard, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    result = await slot.run("phr00t", "cuda error")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_FAILED
    assert slot.host.pid is None
    after = await slot.run("phr00t")
    assert isinstance(after, Succeeded)
    assert after.swap is not None
    assert after.swap.how == "killed"
    assert lines == [("inference_failed", True), ("done", False)]


async def test_a_host_that_hangs_in_a_step_is_killed(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", step_s=0.5))
    await slot.residence.open()
    result = await slot.run("phr00t", "ignore SIGTERM")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_TIMEOUT
    assert lines == [("inference_timeout", True)]
    assert slot.host.pid is None


async def test_a_host_that_ignores_its_cancel_is_killed_after_one_step(
    yard: Yard, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", step_s=0.5))
    await slot.residence.open()
    task = task_of("phr00t", "ignore cancel")
    result = await slot.runner.run(task, None, lambda _: slot.runner.stop(task.id))
    assert isinstance(result, GaveUp)
    assert "ignored its cancel" in result.reason
    assert lines == [("host_lost", True)]
    assert slot.host.pid is None


async def test_a_load_that_takes_too_long_fails_the_task(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    models = changed("phr00t", "hang-in-load", load_s=0.3)
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_TIMEOUT
    assert lines == [("inference_timeout", True)]


async def test_a_missing_checkpoint_is_named_in_the_log_only(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    entry = CATALOG.models["phr00t"]
    absent = replace(entry, checkpoint=replace(entry.checkpoint, random_weights=None, folder="nowhere"))
    slot = yard.slot(tmp_path, probe=rss(), models={"phr00t": absent})
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.STORAGE_FAILED
    assert "nowhere" not in result.message
    assert lines == [("storage_failed", False)]


async def test_the_memory_line_reports_the_card(yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured) -> None:
    """The worker reads the card, even when the host is gone. The task's record has the same figures."""
    slot = yard.slot(tmp_path, probe=nvml(), rogue=True)
    await slot.residence.open()
    await slot.ready("phr00t")
    card.set(used_bytes=2 * GIB, reserved_bytes=GIB)
    with structlog.testing.capture_logs() as logs:
        done = await slot.run("phr00t")
        assert isinstance(await slot.run("phr00t", "segfault"), GaveUp)
    assert isinstance(done, Succeeded)
    assert (done.memory.device_used_bytes, done.memory.device_free_bytes) == (2 * GIB, 77 * GIB)
    assert done.memory.cuda_allocated_bytes is None  # the host ran on the CPU
    assert slot.runner.accounts.memory is None
    first, second = (line for line in logs if line["event"] == "memory_after_cleanup")
    assert (first["device_used_bytes"], first["device_free_bytes"]) == (2 * GIB, 77 * GIB)
    assert first["rss_peak_bytes"] >= first["rss_bytes"]
    assert (second["process_gone"], second["rss_bytes"], second["device_used_bytes"]) == (True, 0, 2 * GIB)
    assert "cuda_allocated_bytes" not in second
    labels = {"slot": SLOT, "model": "phr00t"}
    assert measured.value("warmlane.memory.after_cleanup", kind="device_free", **labels) == 77 * GIB


async def test_the_memory_line_of_a_cpu_slot_reports_no_card(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    done = await slot.run("phr00t")
    assert isinstance(done, Succeeded)
    assert done.memory.device_used_bytes is None
    assert done.memory.rss_bytes > 0


async def test_a_task_cancelled_while_the_card_is_read_still_logs_its_memory_line(
    yard: Yard, card: FakeNvml, tmp_path: Path, lines: list[Any]
) -> None:
    """SC-003: the worker logs the line, without the card's figures."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("phr00t")
    running = asyncio.create_task(slot.runner.run(task_of("phr00t"), None, lambda _: card.set(hangs=1)))
    try:
        await eventually(lambda: asyncio.sleep(0, any(t.name == "memory-probe" for t in threading.enumerate())))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    finally:
        card.set(used_bytes=GIB)
    assert lines == [("done", False)]


async def test_a_task_on_a_quarantined_slot_goes_to_another_attempt(
    yard: Yard, card: FakeNvml, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    assert isinstance(await slot.run("phr00t"), GaveUp)
    assert isinstance(await slot.run("phr00t"), GaveUp)
    assert lines == [("quarantined", True)] * 2


@pytest.mark.parametrize(
    ("leaving", "expected"), [(False, Stopped()), (True, GaveUp("the worker is leaving", on_purpose=True))]
)
async def test_a_stop_in_mid_swap_lets_the_swap_end_and_runs_nothing(
    yard: Yard, tmp_path: Path, lines: list[Any], leaving: bool, expected: Result
) -> None:
    def on_state(state: SlotState, model: str | None, _detail: str) -> None:
        if (state, model) == (SlotState.LOADING, "phr00t"):
            slot.runner.stop("another task")  # not the task that runs: no effect
            if leaving:
                slot.runner.leave("the worker is leaving")
            else:
                slot.runner.stop(task_of("phr00t").id)

    slot = yard.slot(tmp_path, probe=rss(), on_state=on_state)
    await slot.residence.open()
    await slot.ready("anisora")
    assert await slot.run("phr00t") == expected
    assert slot.model == "phr00t"
    assert lines == [("cancelled", False)]
    assert list(tmp_path.glob("*.mp4*")) == []
