"""The verdicts of `make overload`: each can fail."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.memory import SwapReceipt
from contracts.tasks import FailureCode
from tests.bench.arrivals import Answer
from tests.drills.overload import Life, Seen, is_proven, judge
from tests.kit.records import NOW, pending_task

SWAP = SwapReceipt(
    slot="cpu-0",
    released_model="anisora",
    loaded_model="phr00t",
    how="unloaded",
    probe="rss",
    base_bytes=300,
    before_bytes=1000,
    after_bytes=350,
    tolerance_bytes=100,
    free_bytes=5000,
    needed_bytes=800,
    samples=2,
)
REFUSED = Answer(sent_s=0, took_s=0.004, status=503, code="queue_overloaded", limit="depth")
EXPIRED = Answer(sent_s=0, took_s=29.8, status=503, code="queue_overloaded", limit="wait")
ACCEPTED = Answer(sent_s=0, took_s=12.0, status=202)


@pytest.mark.parametrize(
    ("changes", "proven"),
    [
        ({}, True),
        ({"samples": 1}, False),
        ({"free_bytes": None}, False),
        ({"needed_bytes": 1 << 60}, False),
        ({"after_bytes": 1 << 60}, False),
        ({"after_bytes": 1 << 60, "how": "killed", "proof": "no_pipeline"}, True),
        ({"after_bytes": 1 << 60, "how": "unloaded", "proof": "no_pipeline"}, False),  # a host that lives
        ({"after_bytes": 1 << 60, "proof": "own_figure", "own_base_bytes": 5, "own_bytes": 105}, True),
        ({"proof": "own_figure", "own_base_bytes": 5, "own_bytes": 106}, False),
        ({"proof": "own_figure"}, False),
    ],
)
def test_what_a_receipt_proves(changes: dict[str, Any], proven: bool) -> None:
    assert is_proven(replace(SWAP, **changes)) is proven


def life(waited_s: float | None, code: FailureCode | None = None, swap: SwapReceipt | None = SWAP) -> Life:
    task = replace(pending_task(), swap=swap)
    if code is not None:
        task = lifecycle.fail(task, code=code, message="", now=NOW, swap=swap)
    return Life(task=task, queued_at=NOW, left_at=None if waited_s is None else NOW + timedelta(seconds=waited_s))


GOOD = Seen(
    seconds=180,
    service_s=2,
    answers=[REFUSED, EXPIRED, ACCEPTED],
    depths=[0, 25, 24],
    lives=[life(29.75), life(12), life(29.8, FailureCode.QUEUE_OVERLOADED)],
)


def test_a_good_run_passes() -> None:
    assert [verdict.what for verdict in judge(GOOD) if not verdict.passed] == []
    assert {verdict.criterion for verdict in judge(GOOD)} == {"SC-007", "SC-008", "SC-009"}


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        pytest.param({"answers": [*GOOD.answers, replace(ACCEPTED, status=500)]}, "answers that are", id="5xx"),
        pytest.param({"answers": [ACCEPTED, replace(REFUSED, took_s=0.06)]}, "refused by depth", id="slow-refusal"),
        pytest.param({"answers": [ACCEPTED]}, "refused by depth", id="never-refused"),
        pytest.param({"answers": [REFUSED, replace(EXPIRED, took_s=30.6)]}, "longest held", id="held-too-long"),
        pytest.param({"lives": [life(5, FailureCode.OUT_OF_MEMORY)]}, "failures other", id="out-of-memory"),
        pytest.param({"lives": [life(5, swap=replace(SWAP, after_bytes=401))]}, "swaps", id="not-released"),
        pytest.param({"lives": [life(5, swap=replace(SWAP, samples=1))]}, "swaps", id="one-sample"),
        pytest.param({"lives": [life(5, swap=replace(SWAP, free_bytes=799))]}, "swaps", id="no-room"),
        pytest.param({"lives": [life(5, swap=None)]}, "swaps", id="no-receipts"),
        pytest.param({"lives": [life(30.01)]}, "longest wait from the queue message to claim", id="waited-too-long"),
        pytest.param(
            {"lives": [life(5), life(30.01, FailureCode.QUEUE_OVERLOADED)]},
            "longest wait from the queue message to refusal",
            id="refused-too-late",
        ),
        pytest.param({"lives": [life(5), life(None)]}, "still pending", id="still-pending"),
        pytest.param({"depths": [26]}, "deepest", id="too-deep"),
        pytest.param({"depths": [12]}, "deepest", id="no-overload"),
    ],
)
def test_what_fails(bad: dict[str, object], what: str) -> None:
    seen = replace(GOOD, **bad)
    assert [verdict.what.startswith(what) for verdict in judge(seen) if not verdict.passed] == [True]


def test_the_limit_of_a_shorter_run() -> None:
    missed = judge(replace(GOOD, lives=[life(6.5)]), wait_limit_s=6)
    assert [verdict.criterion for verdict in missed if not verdict.passed] == ["SC-008", "SC-008"]
