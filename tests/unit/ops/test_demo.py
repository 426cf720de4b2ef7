"""What the demo concludes from its runs."""

import io
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from contracts.api.health import ModelReadiness, Readiness
from contracts.memory import MemoryReading, SwapReceipt
from contracts.tasks import FailureCode, TaskError, TaskStatus, TimelineEntry
from gateway.http.views import settings_view, view
from ops.commands.demo.command import are_there
from ops.commands.demo.runs import OnALane, Run
from ops.commands.demo.tables import figures, percentile, receipts_of
from ops.commands.demo.verdicts import judge_acceptance, judge_memory, judge_oom, judge_release
from tests.kit.records import NOW, after, pending_task
from tests.kit.samples import catalog

CUDA = MemoryReading(rss_bytes=1, cuda_allocated_bytes=0)
CPU = MemoryReading(rss_bytes=1)


def run(
    number: int,
    *,
    model: str | None = None,
    accept_s: float = 0.01,
    failure: str | None = None,
    route: str = "lane",
    memory: MemoryReading | None = CUDA,
    refused: bool = False,
    started_ms: float | None = None,
    worker: str | None = None,
    swap: SwapReceipt | None = None,
) -> Run:
    """The run *number* of an alternating demo."""
    model = model or ("anisora", "phr00t")[number % 2]
    if refused:
        return Run(number=number, model=model, accept_s=accept_s, refusal="queue_overloaded")
    timeline: tuple[TimelineEntry, ...] = ()
    if started_ms is not None:
        timeline = (TimelineEntry(at=after(started_ms / 1000), event="inference_started"),)
    task = replace(
        view(pending_task(str(number), model=model, route=route), None, NOW),
        status=TaskStatus.FAILED if failure else TaskStatus.DONE,
        error=TaskError(code=FailureCode(failure), message="") if failure else None,
        worker=worker,
        memory=memory,
        swap=swap,
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
        pytest.param(
            [*alternating(19), run(19, route="degraded", accept_s=20)],
            None,
            "not shown: 1 of 20 found no warm lane",
            id="degraded",
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


MB = 1_000_000
RECEIPT = SwapReceipt(
    slot="cpu-0",
    released_model="phr00t",
    loaded_model="anisora",
    how="unloaded",
    probe="rss",
    base_bytes=400 * MB,
    before_bytes=1_077 * MB,
    after_bytes=411 * MB,
    tolerance_bytes=128 * MB,
    free_bytes=9_000 * MB,
    needed_bytes=837 * MB,
    samples=2,
    release_s=0.1,
    verify_s=0.2,
    load_s=0.4,
)
NOTHING = SwapReceipt(slot="cpu-0", released_model=None, loaded_model="anisora", how="nothing_resident", probe="rss")
NO_PROBE = SwapReceipt(slot="cpu-0", released_model="phr00t", loaded_model="anisora", how="killed", probe="none")


def switch_to_anisora(swap: SwapReceipt | None, *, worker: str = "degraded-0", **before: Any) -> list[Run]:
    """Two runs on the degraded worker, of which the second needs a swap."""
    return [
        run(1, route="degraded", worker="degraded-0", **before),
        run(2, route="degraded", worker=worker, swap=swap),
    ]


@pytest.mark.parametrize(
    ("runs", "doubt"),
    [
        pytest.param(switch_to_anisora(RECEIPT), None, id="unloaded"),
        pytest.param(switch_to_anisora(replace(RECEIPT, how="killed", alive=("vae",))), None, id="killed"),
        pytest.param(switch_to_anisora(replace(RECEIPT, after_bytes=528 * MB)), None, id="exactly-what-is-allowed"),
        pytest.param(
            switch_to_anisora(replace(RECEIPT, after_bytes=528 * MB + 1)), "1 bytes too many in use", id="one-more"
        ),
        pytest.param(
            switch_to_anisora(replace(RECEIPT, how="killed", proof="no_pipeline", after_bytes=9_000 * MB)),
            None,
            id="another-has-grown-and-the-host-has-ended",
        ),
        pytest.param(
            switch_to_anisora(
                replace(RECEIPT, proof="own_figure", after_bytes=9_000 * MB, own_base_bytes=MB, own_bytes=129 * MB)
            ),
            None,
            id="another-has-grown-and-ours-is-listed",
        ),
        pytest.param(
            switch_to_anisora(replace(RECEIPT, proof="own_figure", own_base_bytes=MB, own_bytes=129 * MB + 1)),
            "1 bytes too many in use",
            id="ours-is-listed-and-is-there",
        ),
        pytest.param(
            switch_to_anisora(replace(RECEIPT, how="killed", after_bytes=529 * MB)),
            "1,000,000 bytes too many in use",
            id="a-kill-is-measured-too",
        ),
        pytest.param(
            switch_to_anisora(replace(RECEIPT, free_bytes=836 * MB)), "1,000,000 bytes too few free", id="no-room"
        ),
        pytest.param(switch_to_anisora(replace(RECEIPT, samples=1)), "figures are missing", id="one-lucky-sample"),
        pytest.param(switch_to_anisora(replace(RECEIPT, after_bytes=None)), "figures are missing", id="not-read"),
        pytest.param(switch_to_anisora(replace(RECEIPT, free_bytes=None)), "figures are missing", id="free-not-read"),
        pytest.param(switch_to_anisora(replace(RECEIPT, base_bytes=None)), "figures are missing", id="no-base"),
        pytest.param(switch_to_anisora(replace(RECEIPT, alive=("vae",))), "vae stayed alive", id="alive"),
        pytest.param(switch_to_anisora(NO_PROBE), None, id="no-probe-killed"),
        pytest.param(
            switch_to_anisora(replace(NO_PROBE, how="unloaded")),
            "nothing was measured, and the host was not killed",
            id="no-probe-unloaded",
        ),
        pytest.param(switch_to_anisora(NOTHING), "phr00t was resident and was not released", id="nothing-resident"),
        pytest.param(switch_to_anisora(NOTHING, failure="worker_lost"), None, id="nothing-after-a-failure"),
        pytest.param(switch_to_anisora(NOTHING, worker="degraded-1"), None, id="nothing-on-another-worker"),
        pytest.param(switch_to_anisora(None), "no receipt", id="none"),
        pytest.param(switch_to_anisora(replace(RECEIPT, loaded_model="phr00t")), "no receipt", id="of-another-model"),
    ],
)
def test_fr_002(runs: list[Run], doubt: str | None) -> None:
    verdict = judge_release(runs)
    assert verdict.shown is (doubt is None)
    proven = "1 of 1" if doubt is None else "0 of 1"
    sentence = f"{proven} model switches proved the release before the load"
    assert verdict.text == (sentence if doubt is None else f"{sentence}; request 2: {doubt}")


def test_fr_002_counts_every_switch() -> None:
    back = replace(RECEIPT, released_model="anisora", loaded_model="phr00t")
    runs = [run(number, worker="degraded-0", swap=RECEIPT if number % 2 == 0 else back) for number in range(5)]
    runs[0] = run(0, worker="degraded-0")  # the first may need no swap
    assert judge_release(runs).text == "4 of 4 model switches proved the release before the load"
    runs[3] = run(3, worker="degraded-0", refused=True)
    assert judge_release(runs).text == (
        "3 of 4 model switches proved the release before the load; request 3: no receipt"
    )
    assert judge_release(runs[:1]).shown is None


def test_the_table_of_receipts() -> None:
    console = Console(file=io.StringIO(), width=150)
    leaked = replace(NO_PROBE, reason="leaked", alive=("vae",))
    console.print(receipts_of([run(1), *switch_to_anisora(RECEIPT), *switch_to_anisora(leaked)]))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.file.getvalue().splitlines()]
    assert [line for line in lines if line.startswith("2")] == [
        "2 phr00t → anisora unloaded none 1,077 411 528 2 0.10 0.20 0.40",
        "2 phr00t → anisora killed: leaked vae - - - 0 0.00 0.00 0.00",
    ]


@pytest.mark.parametrize(
    ("degraded_worker", "warm", "expected"),
    [
        pytest.param(True, {"anisora": True, "phr00t": False}, False, id="a-lane-is-not-warm"),
        pytest.param(False, {"anisora": True, "phr00t": True}, True, id="all-lanes-warm"),
        pytest.param(False, {"anisora": True, "phr00t": None}, True, id="a-model-without-lanes"),
        pytest.param(True, {"anisora": None, "phr00t": None}, True, id="degraded-only"),
        pytest.param(False, {"anisora": None, "phr00t": None}, False, id="nobody"),
    ],
)
def test_the_workers_that_are_waited_for(degraded_worker: bool, warm: dict[str, bool | None], expected: bool) -> None:
    models = {
        name: ModelReadiness(ready=True, warm=bool(is_warm), lanes=[] if is_warm is None else ["a"])
        for name, is_warm in warm.items()
    }
    readiness = Readiness(ready=True, nats=True, degraded_worker=degraded_worker, models=models, troubles=[])
    assert are_there(readiness, degraded=False) is expected
    assert are_there(readiness, degraded=True) is degraded_worker


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
    assert figures([*switch_to_anisora(RECEIPT)])[-1] == "release, verify and load: p50 0.70 s (1 swaps)"


@pytest.mark.parametrize(
    ("given", "outcome", "is_done"),
    [
        (run(0), "done", True),
        (run(0, failure="worker_lost"), "failed: worker_lost", False),
        (run(0, refused=True), "refused: queue_overloaded", False),
    ],
)
def test_outcome(given: Run, outcome: str, is_done: bool) -> None:
    assert (given.outcome, given.is_done) == (outcome, is_done)


def test_a_lane_in_the_way_names_the_switch() -> None:
    models = settings_view(catalog()).models
    assert "\n  warmlane lane-mode anisora degraded" in OnALane("anisora", models).message
