"""What the demo concludes from its runs."""

from datetime import UTC, datetime, timedelta

import pytest

from ops.client import Event, Memory, Parameters, Reason, Task
from ops.demo import Run, figures, judge_acceptance, judge_memory, judge_oom, percentile

NOW = datetime(2026, 2, 26, 12, 0, tzinfo=UTC)
CUDA = Memory(rss_bytes=1, cuda_allocated_bytes=0)
CPU = Memory(rss_bytes=1)


def run(
    number: int,
    *,
    model: str | None = None,
    accept_s: float = 0.01,
    failure: str | None = None,
    route: str = "lane",
    memory: Memory | None = CUDA,
    refused: bool = False,
    started_ms: float | None = None,
) -> Run:
    """The run *number* of an alternating demo."""
    model = model or ("anisora", "phr00t")[number % 2]
    if refused:
        return Run(number=number, model=model, accept_s=accept_s, refusal="no_lane")
    timeline: tuple[Event, ...] = ()
    if started_ms is not None:
        timeline = (Event(NOW + timedelta(milliseconds=started_ms), "inference_started"),)
    task = Task(
        id=str(number),
        status="failed" if failure else "done",
        model=model,
        route=route,
        parameters=Parameters(seed=1, steps=4),
        created_at=NOW,
        queued_at=NOW,
        error=Reason(failure, "") if failure else None,
        memory=memory,
        timeline=timeline,
    )
    return Run(number=number, model=model, accept_s=accept_s, task=task)


def alternating(count: int, **options: object) -> list[Run]:
    return [run(number, **options) for number in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runs", "shown", "text"),
    [
        pytest.param(alternating(20), True, "0 of 20 failed with CUDA OOM", id="20-without"),
        pytest.param(alternating(20, memory=CPU), None, "not shown: no CUDA", id="cpu"),
        pytest.param(alternating(20, memory=None), None, "not shown: no CUDA", id="no-reading"),
        pytest.param(alternating(20, refused=True), None, "not shown: no CUDA", id="all-refused"),
        pytest.param(
            [*alternating(19), run(19, failure="out_of_memory")], False, "1 of 20 failed with CUDA OOM", id="one-oom"
        ),
        pytest.param(
            [*alternating(19), run(19, failure="worker_lost")], True, "0 of 20 failed with CUDA OOM", id="other-failure"
        ),
        pytest.param(
            alternating(19), None, "not shown: 0 of 19 failed with CUDA OOM, but it takes 20 requests", id="too-few"
        ),
        pytest.param(
            [*alternating(19), run(19, route="degraded")],
            None,
            "not shown: 0 of 20 failed with CUDA OOM, but 1 ran outside the dedicated lanes",
            id="degraded",
        ),
        pytest.param(
            alternating(20, model="anisora"),
            None,
            "not shown: 0 of 20 failed with CUDA OOM, but all were for one model",
            id="one-model",
        ),
    ],
)
def test_sc_001(runs: list[Run], shown: bool | None, text: str) -> None:
    verdict = judge_oom(runs)
    assert (verdict.shown, verdict.text) == (shown, text)


@pytest.mark.parametrize(
    ("runs", "shown", "text"),
    [
        pytest.param(alternating(20), True, "19 of 19 model switches accepted within 3 s (100.0%)", id="all"),
        pytest.param(
            [*alternating(20), run(20, accept_s=3.0)],
            True,
            "20 of 20 model switches accepted within 3 s (100.0%)",
            id="exactly-3s",
        ),
        pytest.param(
            [*alternating(20), run(20, accept_s=3.01)],
            True,
            "19 of 20 model switches accepted within 3 s (95.0%)",
            id="95-percent",
        ),
        pytest.param(
            [*alternating(19), run(19, accept_s=3.01)],
            False,
            "18 of 19 model switches accepted within 3 s (94.7%)",
            id="below",
        ),
        pytest.param(
            [*alternating(19), run(19, refused=True)],
            False,
            "18 of 19 model switches accepted within 3 s (94.7%)",
            id="refused-at-once",
        ),
        pytest.param(
            [run(0, accept_s=9.0), *alternating(20)[1:]],
            True,
            "19 of 19 model switches accepted within 3 s (100.0%)",
            id="first-is-no-switch",
        ),
        pytest.param(
            alternating(20, model="anisora"), None, "not shown: no request switched the model", id="one-model"
        ),
        pytest.param([], None, "not shown: no request switched the model", id="none"),
    ],
)
def test_sc_005(runs: list[Run], shown: bool | None, text: str) -> None:
    verdict = judge_acceptance(runs)
    assert (verdict.shown, verdict.text) == (shown, text)


@pytest.mark.parametrize(
    ("runs", "shown", "text"),
    [
        pytest.param(
            [run(0), run(1, failure="inference_failed")], True, "2 of 2 tasks carry a memory reading", id="all"
        ),
        pytest.param([run(0), run(1, memory=None)], False, "1 of 2 tasks carry a memory reading", id="one-lacks-it"),
        pytest.param([run(0), run(1, refused=True)], True, "1 of 1 tasks carry a memory reading", id="refused-ran-not"),
        pytest.param([run(0, refused=True)], None, "not shown: no request was accepted", id="none"),
    ],
)
def test_sc_003(runs: list[Run], shown: bool | None, text: str) -> None:
    verdict = judge_memory(runs)
    assert (verdict.shown, verdict.text) == (shown, text)


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (75, 3.0), (99, 4.0), (100, 4.0), (1, 1.0)])
def test_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([4.0, 2.0, 1.0, 3.0], percent) == expected


def test_figures() -> None:
    runs = [run(0, accept_s=0.002, started_ms=3), run(1, accept_s=0.010, started_ms=4), run(2, refused=True)]
    assert figures(runs) == [
        "accept, idle: p50 2.0 ms, p99 10.0 ms (2 requests)",
        "publish to inference start: p50 3.0 ms (2 tasks)",
    ]
    assert figures([run(0, refused=True)]) == []


@pytest.mark.parametrize(
    ("given", "outcome", "is_done"),
    [
        (run(0), "done", True),
        (run(0, failure="worker_lost"), "failed: worker_lost", False),
        (run(0, refused=True), "refused: no_lane", False),
    ],
)
def test_outcome(given: Run, outcome: str, is_done: bool) -> None:
    assert (given.outcome, given.is_done) == (outcome, is_done)
