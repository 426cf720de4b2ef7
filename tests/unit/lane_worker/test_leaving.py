"""How a worker leaves when it is asked to stop: what it waits for, and what it does if that does not happen (ADR
0004)."""

import asyncio
from types import SimpleNamespace

import pytest

from contracts.settings import load_settings
from lane_worker.forking.outcome import HostLost
from lane_worker.runtime import leaving


class Task:
    """A task that ends with the first event of *ends_at*."""

    def __init__(self, *ends_at: str) -> None:
        self.happened: list[str] = []
        self._ends_at = ends_at
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        await self._ended.wait()

    def happens(self, what: str) -> None:
        self.happened.append(what)
        if what in self._ends_at:
            self._ended.set()

    async def kill(self) -> None:
        self.happens("kill")
        if "survives" in self._ends_at:
            raise HostLost("it survives SIGKILL")


@pytest.mark.parametrize(
    ("ends_at", "happened"),
    [
        pytest.param(("the worker is leaving", "kill"), ["the worker is leaving"], id="it-stops-at-its-step"),
        pytest.param(("kill",), ["the worker is leaving", "kill"], id="a-step-that-is-too-long"),
        pytest.param(("survives",), ["the worker is leaving", "kill"], id="abandoned"),
    ],
)
async def test_a_task_that_does_not_end_is_stopped_then_its_host_is_killed(
    ends_at: tuple[str, ...], happened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("LEAVE_S", "HAND_BACK_S"):
        monkeypatch.setattr(leaving, bound, 0.02)
    task = Task(*ends_at)
    serving = asyncio.create_task(task.serve())
    await leaving.drain(serving, drain_s=0.01, leave=task.happens, kill=task.kill)
    assert serving.done()
    assert task.happened == happened


async def test_a_task_that_ends_in_time_is_left_alone() -> None:
    task = Task("end")
    serving = asyncio.create_task(task.serve())
    asyncio.get_running_loop().call_soon(task.happens, "end")
    await leaving.drain(serving, drain_s=30, leave=task.happens, kill=task.kill)
    assert task.happened == ["end"]


async def test_a_server_that_takes_nothing_is_not_waited_for_as_long_as_an_inference_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leaving, "LOOK_EVERY_S", 0.01)
    task = Task()
    serving = asyncio.create_task(task.serve())
    # the server had stored nothing for long before the request to stop, and the worker still waits for it
    waits = iter((0.0, 600.0, 600.0, 600.0))
    asked: list[float] = []
    monkeypatch.setattr(leaving, "time", SimpleNamespace(monotonic=lambda: 100.0 + 0.2 * len(asked)))

    def waits_for_server_s(now_s: float) -> float:
        asked.append(now_s)
        return next(waits, 600.0)

    await leaving.drain(
        serving,
        drain_s=600,
        leave=task.happens,
        kill=task.kill,
        waits_for_server_s=waits_for_server_s,
        unanswered_s=0.5,
    )
    assert serving.cancelled()
    assert task.happened == [], "nothing runs that could be stopped"
    assert asked == pytest.approx([100.0, 100.2, 100.4, 100.6])


@pytest.mark.parametrize("profile", ["tiny", "production"])
def test_a_drain_is_as_long_as_an_inference_may_take_unless_the_settings_say_otherwise(profile: str) -> None:
    catalog = load_settings().catalog(profile)
    for entry in catalog.models.values():
        assert catalog.windows.drains_s([entry]) == entry.timeouts.total_s
    longest_s = max(entry.timeouts.total_s for entry in catalog.models.values())
    assert catalog.windows.drains_s(catalog.models.values()) == longest_s
