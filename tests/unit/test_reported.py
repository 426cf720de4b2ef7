"""What enforcement `report` replaced is counted and told, in numbers (docs/rollback.md)."""

from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs

from contracts.tasks import ReplacedParameter
from gateway import admission
from tests.records import TASK_ID, pending_task

REPLACED = (ReplacedParameter(field="steps", used=4, got=8), ReplacedParameter(field="cfg", used=1.0, got=2.5))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    reader = InMemoryMetricReader()
    counter = MeterProvider([reader]).get_meter("warmlane").create_counter("warmlane.parameters.reported")
    monkeypatch.setattr(admission, "_reported", counter)
    return reader


def counted(reader: InMemoryMetricReader) -> dict[tuple[Any, Any], int | float]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    points: Any = metric.data.data_points
    return {(point.attributes["model"], point.attributes["field"]): point.value for point in points}


def test_each_field_is_counted_and_the_request_told_once(reader: InMemoryMetricReader) -> None:
    task = replace(pending_task(model="phr00t", caller="alice"), replaced=REPLACED)
    with capture_logs() as lines:
        admission.report_replaced(task)
        admission.report_replaced(replace(task, replaced=REPLACED[:1]))
    assert counted(reader) == {("phr00t", "steps"): 2, ("phr00t", "cfg"): 1}
    assert lines[0] == {
        "event": "parameters_reported",
        "log_level": "info",
        "task_id": TASK_ID,
        "caller": "alice",
        "model": "phr00t",
        "fields": {"steps": {"got": 8, "used": 4}, "cfg": {"got": 2.5, "used": 1.0}},
    }
    assert len(lines) == 2


def test_nothing_is_told_of_a_request_that_was_right(reader: InMemoryMetricReader) -> None:
    with capture_logs() as lines:
        admission.report_replaced(pending_task())
    assert lines == []
    assert counted(reader) == {}
