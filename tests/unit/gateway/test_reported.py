"""The gateway counts and logs what enforcement `report` replaced, without texts (docs/operate/rollback.md)."""

from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.tasks import ReplacedParameter
from gateway.placing import admission
from tests.kit.measured import Measured
from tests.kit.records import TASK_ID, pending_task

REPLACED = (ReplacedParameter(field="steps", used=4, got=8), ReplacedParameter(field="cfg", used=1.0, got=2.5))


def counted(measured: Measured) -> dict[str, float]:
    return {
        field: measured.value("warmlane.parameters.reported", model="phr00t", field=field) for field in ("steps", "cfg")
    }


def test_each_field_is_counted_and_the_request_logged_once(measured: Measured) -> None:
    before = counted(measured)
    task = replace(pending_task(model="phr00t", caller="alice"), replaced=REPLACED)
    with capture_logs() as lines:
        admission.report_replaced(task)
        admission.report_replaced(replace(task, replaced=REPLACED[:1]))
    assert counted(measured) == {"steps": before["steps"] + 2, "cfg": before["cfg"] + 1}
    assert lines[0] == {
        "event": "parameters_reported",
        "log_level": "info",
        "task_id": TASK_ID,
        "caller": "alice",
        "model": "phr00t",
        "fields": {"steps": {"got": 8, "used": 4}, "cfg": {"got": 2.5, "used": 1.0}},
    }
    assert len(lines) == 2


def test_a_correct_request_is_neither_counted_nor_logged(measured: Measured) -> None:
    before = counted(measured)
    with capture_logs() as lines:
        admission.report_replaced(pending_task())
    assert lines == []
    assert counted(measured) == before
