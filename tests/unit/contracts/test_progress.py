"""The time that a task has left, from the steps that were measured."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from contracts.progress import StepsDone, eta_s, step_s
from lane_worker.runtime.after_steps import AfterSteps
from tests.kit.records import NOW, pending_task

DONE = StepsDone(step=2, steps=8, step_s=3.0, at=NOW, after_s=5.0)


@pytest.mark.parametrize(
    ("finished_s", "expected"),
    [
        pytest.param([], None, id="3-none"),
        pytest.param([14.0], 4.0, id="2-the-first-alone"),
        pytest.param([40.0, 42.0], 2.0, id="1-the-first-reads-the-weights"),
        pytest.param([40.0, 42.0, 44.0, 60.0], 2.0, id="1-the-median"),
        pytest.param([12.0, 11.0], 0.0, id="1-a-clock-that-went-back"),
    ],
)
def test_what_a_step_takes(finished_s: list[float], expected: float | None) -> None:
    assert step_s(10.0, finished_s) == expected


@pytest.mark.parametrize(
    ("done", "passed_s", "expected"),
    [
        pytest.param(None, 0, None, id="1-not-begun"),
        pytest.param(replace(DONE, step=0), 0, None, id="1-no-step"),
        pytest.param(replace(DONE, step_s=None), 0, None, id="1-an-earlier-version"),
        pytest.param(replace(DONE, at=None), 0, None, id="1-no-moment"),
        pytest.param(DONE, 0, 6 * 3 + 5, id="2-six-steps-and-the-end"),
        pytest.param(DONE, 1.5, 6 * 3 + 5 - 1.5, id="2-it-counts-down"),
        pytest.param(DONE, 60, 5 * 3 + 5, id="2-a-step-that-takes-longer"),
        pytest.param(DONE, -4, 6 * 3 + 5, id="2-another-clock"),
        pytest.param(replace(DONE, after_s=None), 0, 6 * 3, id="2-an-end-that-was-never-measured"),
        pytest.param(replace(DONE, step=8), 2, 3, id="3-decoding"),
        pytest.param(replace(DONE, step=8), 9, 0, id="3-decoding-takes-longer"),
        pytest.param(replace(DONE, step=8, after_s=None), 2, None, id="3-never-measured"),
        pytest.param(replace(DONE, step=9), 2, 3, id="3-more-than-there-are"),
    ],
)
def test_the_time_left(done: StepsDone | None, passed_s: float, expected: float | None) -> None:
    assert eta_s(done, NOW + timedelta(seconds=passed_s)) == expected


def test_what_follows_the_last_step_grows_with_the_video() -> None:
    after, asked = AfterSteps(), pending_task().parameters
    assert after.expected_s("anisora", asked) is None
    after.note("anisora", asked, 2.0)
    assert after.expected_s("anisora", asked) == pytest.approx(2.0)
    assert after.expected_s("anisora", replace(asked, width=2 * asked.width)) == pytest.approx(4.0)
    assert after.expected_s("phr00t", asked) is None
    after.note("anisora", asked, -1.0)
    assert after.expected_s("anisora", asked) == 0.0
