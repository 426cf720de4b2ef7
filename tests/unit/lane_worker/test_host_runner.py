"""What counts as the worker's own failure (ADR 0026), and what a removed input image costs."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.memory import MemoryReading, SwapReceipt
from contracts.progress import StepsDone
from contracts.tasks import ImageReference
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Cancelled, Failed, Finished, Generate, StepFinished, WrittenVideo
from lane_worker.forking.outcome import HostLost, LoadFailed, Lost, Outcome, TimedOut
from lane_worker.residence.residence import Residence
from lane_worker.residence.states import Resident
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.outcome import GaveUp
from lane_worker.runtime.streak import Streak
from tests.kit.records import pending_task
from tests.kit.samples import catalog

MEMORY: Final = MemoryReading(rss_bytes=1)
SWAP: Final = SwapReceipt(
    slot="cpu-0", released_model=None, loaded_model="anisora", how="nothing_resident", probe="none"
)
VIDEO: Final = WrittenVideo(bytes=1, sha256="0" * 64, width=96, height=64, frames=17, fps=16)
TWO: Final = Streak(failures=2)


class ScriptedHost(Host):
    """A host without a process, whose generation ends as the test says."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    @property
    def pid(self) -> int | None:
        return None

    async def generate(self, request: Generate, on_progress: Callable[[StepFinished], None]) -> Outcome:
        for step, at_s in enumerate((100.0, 104.0, 105.0, 106.0)):
            on_progress(StepFinished(request.task_id, step, 3, at_s))
        return self._outcome


def runner_of(folder: Path, outcome: Outcome | Exception, *, tried: bool = True) -> HostRunner:
    """A host whose load or generation ends as *outcome*, after two failures in a row."""
    host = ScriptedHost(outcome) if not isinstance(outcome, Exception) else cast(Host, None)
    residence = Residence(host=host, slot="cpu-0", models=catalog().models, probe=None, on_state=lambda *_: None)

    async def ready(model: str, *, renew_because: str = "") -> Resident:
        if isinstance(outcome, LoadFailed):
            outcome.receipt = SWAP if tried else None
        if isinstance(outcome, Exception):
            raise outcome
        return Resident(model, MEMORY, SWAP)

    residence.ready = ready  # type: ignore[method-assign]
    runner = HostRunner(residence=residence, models=catalog().models, slot="cpu-0", scratch=folder)
    runner.streak = TWO
    return runner


def not_loaded(*, fatal: bool = False) -> LoadFailed:
    return LoadFailed(Failed(None, "inference_failed", "x", MEMORY, fatal))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(Finished("t", VIDEO, 1.0, 1.0, MEMORY), Streak(), id="done"),
        pytest.param(Failed("t", "inference_failed", "x", MEMORY), Streak(3), id="failed"),
        pytest.param(Failed("t", "inference_failed", "x", MEMORY, fatal=True), Streak(3), id="failed-fatally"),
        pytest.param(Lost("t", "it died"), Streak(3), id="host-died"),
        pytest.param(Failed("t", "invalid_input", "x", MEMORY), TWO, id="bad-input"),
        pytest.param(Failed("t", "storage_failed", "x", MEMORY), TWO, id="disk"),
        pytest.param(Cancelled("t", MEMORY), TWO, id="cancelled"),
        pytest.param(TimedOut("t", "step_s", 1.0, MEMORY), TWO, id="timed-out"),
        pytest.param(not_loaded(), Streak(3), id="not-loaded"),
        pytest.param(not_loaded(fatal=True), Streak(3), id="not-loaded-fatally"),
        pytest.param(HostLost("it does not start"), TWO, id="no-host"),
    ],
)
async def test_what_counts(outcome: Outcome | Exception, expected: Streak, tmp_path: Path) -> None:
    runner = runner_of(tmp_path, outcome)
    await runner.run(pending_task(), None, lambda _: None)
    assert runner.streak == expected


async def test_steps_come_with_what_they_take_and_with_what_followed_the_time_before(tmp_path: Path) -> None:
    runner, done = runner_of(tmp_path, Finished("t", VIDEO, 6.5, 1.0, MEMORY)), list[StepsDone]()
    await runner.run(pending_task(), None, done.append)
    await runner.run(pending_task(), None, done.append)
    assert [(each.step, each.step_s) for each in done[:4]] == [(0, None), (1, 4.0), (2, 1.0), (3, 1.0)]
    assert [each.after_s for each in done] == [None] * 4 + [pytest.approx(1.5)] * 4
    assert done[3].at == datetime.fromtimestamp(106, UTC)


async def test_a_load_that_was_refused_before_it_began_does_not_count(tmp_path: Path) -> None:
    runner = runner_of(tmp_path, not_loaded(), tried=False)
    await runner.run(pending_task(), None, lambda _: None)
    assert runner.streak == TWO


async def test_an_image_that_was_removed_costs_an_attempt_and_not_the_task(tmp_path: Path) -> None:
    """Somebody may clean up during a swap, which takes minutes."""
    runner = runner_of(tmp_path, Cancelled("t", MEMORY))
    image = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=9, width=3, height=2)
    task = pending_task()
    with capture_logs() as logs:
        task = replace(task, parameters=replace(task.parameters, image=image))
        result = await runner.run(task, tmp_path / "gone.image", lambda _: None)
    assert isinstance(result, GaveUp)
    assert [line["outcome"] for line in logs if line["event"] == "memory_after_cleanup"] == ["gave_up"]
