"""The structure of the spans that the SDK receives."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, TaskStatus
from gateway.placing.sweeper import record_lost
from lane_worker.runtime.attempt import outcome_of
from ops.telemetry.tracing import attempt_below, failed, record, span
from tests.kit.records import pending_task
from tests.kit.spans import kept_spans

SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claimed() -> GenerationTask:
    queued = replace(pending_task(), traceparent=SENDER, status=TaskStatus.PENDING)
    attempt = attempt_below(SENDER)
    assert attempt is not None
    return lifecycle.claim(queued, owner="o", worker="anisora-0", lease_s=5, now=NOW, attempt_traceparent=attempt)


@pytest.mark.parametrize("is_found_dead", [False, True])
def test_a_lost_attempt_is_recorded_by_the_process_that_finds_it(
    is_found_dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The span has the id that its worker chose, so the spans that the worker had sent stay below it."""
    spans = kept_spans(monkeypatch)
    lost = claimed()
    if is_found_dead:  # by its supervisor, before its lease is over
        lost = lifecycle.release_lease(lost, reason="signal 9", now=NOW, is_lost=True)
    with span("load", traceparent=lost.attempt_traceparent):
        pass
    why = record_lost(lost, NOW + timedelta(seconds=2))
    load, attempt = spans.get_finished_spans()
    assert load.parent is not None
    assert load.parent.span_id == attempt.context.span_id
    assert attempt.parent is not None
    assert (attempt.name, f"{attempt.parent.span_id:016x}") == ("process LANE_ANISORA", "b7ad6b7169203331")
    assert (attempt.end_time or 0) - (attempt.start_time or 0) == 2_000_000_000
    assert (attempt.attributes or {})["error.type"] == attempt.status.description == "worker_lost"
    assert (attempt.attributes or {})["warmlane.worker"] == "anisora-0"
    assert why == {"warmlane.reason": "worker_lost", "warmlane.lost_s": 2.0}


@pytest.mark.parametrize(("on_purpose", "reason"), [(True, "handed_back"), (False, "lease_released")])
def test_an_attempt_that_was_given_up_is_recorded_by_its_worker(
    on_purpose: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = kept_spans(monkeypatch)
    given_up = lifecycle.release_lease(claimed(), reason="asked to", now=NOW, on_purpose=on_purpose)
    assert record_lost(given_up, NOW)["warmlane.reason"] == reason
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("attempt", ["", "nonsense", "00-0-0-01", None])
def test_a_record_that_names_no_span_harms_nobody(attempt: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = kept_spans(monkeypatch)
    record_lost(replace(claimed(), attempt_traceparent=attempt), NOW)
    with span("process", traceparent=SENDER, itself=attempt, after=attempt):
        pass
    assert len(spans.get_finished_spans()) == 2
    assert attempt_below(attempt) is None


def test_a_failure_is_a_status_and_an_exception_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = kept_spans(monkeypatch)
    with pytest.raises(ValueError, match="red fox"), span("store"):
        raise ValueError("a red fox")
    record("inference", NOW, NOW, error="out_of_memory")
    with span("settle") as current:
        failed(current, "gave_up", "the pipeline host died")
    store, inference, settle = spans.get_finished_spans()
    assert [each.events[0].name for each in (store, inference, settle)] == ["exception"] * 3
    said = store.events[0].attributes or {}
    assert (said["exception.type"], said["exception.message"]) == ("ValueError", "ValueError")
    assert "test_tracing.py" in str(said["exception.stacktrace"])
    assert (inference.events[0].attributes or {})["exception.type"] == "out_of_memory"
    assert inference.events[0].timestamp == inference.end_time
    assert (settle.events[0].attributes or {})["exception.message"] == "the pipeline host died"


@pytest.mark.parametrize(
    ("error", "epochs_on", "outcome"),
    [(FailureCode.CANCELLED, 0, "cancelled"), (FailureCode.WORKER_LOST, 0, "superseded"), (None, 1, "superseded")],
)
def test_what_became_of_an_attempt_that_is_not_ours_any_more(
    error: FailureCode | None, epochs_on: int, outcome: str
) -> None:
    ours = lifecycle.claim(pending_task(), owner="o", worker="w", lease_s=5, now=NOW)
    theirs = replace(ours, epoch=ours.epoch + epochs_on)
    if error is not None:
        theirs = lifecycle.fail(ours, code=error, message="", now=NOW)
    assert outcome_of(ours, theirs) == outcome
    assert outcome_of(ours, None) == "taken_back"
