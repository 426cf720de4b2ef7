"""How a client reads the answers of another version."""

import json
from typing import Any

import msgspec
import pytest

from contracts.api.admin import ColdStartsView, ExplainView, FallbacksView, LanesView, ModeView, QueuesView
from contracts.api.health import Readiness
from contracts.api.lenient import lenient
from contracts.api.problems import Problem
from contracts.api.settings import SettingsView
from contracts.api.tasks import TaskPage, TaskView
from contracts.tasks import TaskStatus
from gateway.http.views import settings_view, view
from tests.kit.records import NOW, pending_task, processing_task
from tests.kit.samples import catalog


def answer(task: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(task))
    return found


def test_an_answer_of_this_version_is_read_as_it_is() -> None:
    sent = view(processing_task(), None, NOW)
    read = msgspec.convert(answer(sent), lenient(TaskView))
    assert isinstance(read, TaskView)
    assert read.status == TaskStatus.PROCESSING
    assert answer(read) == answer(sent)


def test_an_answer_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    sent = answer(view(pending_task(), None, NOW))
    sent |= {"status": "dreaming", "route": "moon", "more": {"x": 1}, "error": {"code": "later", "message": "m"}}
    read = msgspec.convert(sent, lenient(TaskView))
    assert (read.status, read.route, read.has_ended) == ("dreaming", "moon", False)
    assert read.error is not None
    assert read.error.code == "later"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(sent, TaskView)


def test_a_field_that_an_earlier_version_lacks_is_empty() -> None:
    sent = answer(view(pending_task(), None, NOW))
    for name in ("queue", "warnings", "attempt", "trace_id"):
        del sent[name]
    read = msgspec.convert(sent, lenient(TaskView))
    assert (read.queue, read.warnings, read.attempt, read.trace_id) == (None, (), 0, None)


@pytest.mark.parametrize("name", ["id", "status", "created_at", "parameters"])
def test_an_answer_without_its_basic_fields_is_refused(name: str) -> None:
    sent = answer(view(pending_task(), None, NOW))
    del sent[name]
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.convert(sent, lenient(TaskView))


def test_limits_that_a_later_version_adds_are_ignored() -> None:
    sent = answer(settings_view(catalog("production")))
    sent["models"][0]["constraints"]["width"]["later"] = 1
    read = msgspec.convert(sent, lenient(SettingsView))
    assert read.models[0].constraints.image.presence == "required"


@pytest.mark.parametrize(
    "kind",
    [TaskPage, LanesView, QueuesView, FallbacksView, ColdStartsView, ExplainView, ModeView, Readiness, Problem],
)
def test_every_answer_can_be_read_leniently(kind: type[Any]) -> None:
    assert issubclass(lenient(kind), kind)
    assert lenient(kind) is lenient(kind)
    msgspec.json.Decoder(lenient(kind))
