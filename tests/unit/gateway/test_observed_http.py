"""Which requests are traced: those that make or change a task."""

import pytest
from litestar import Litestar, get, post
from litestar.testing import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.http.observed import MAKES_A_TASK, changes_a_task, http_plugin, route_of
from ops.telemetry.export import resource_attributes, tracer_provider
from tests.kit.openapi import REPORTING


@pytest.mark.parametrize(
    ("method", "route", "is_traced"),
    [
        ("POST", "/generate", True),
        ("DELETE", "/tasks/{task_id}", True),
        ("GET", "/tasks/{task_id}", False),
        ("HEAD", "/tasks/{task_id}/video", False),
        ("GET", "/admin/lanes", False),
        ("PUT", "/admin/lanes/{model}/mode", False),
        ("POST", "/v1/videos", True),
        ("POST", "/v1/videos/sync", True),
        ("DELETE", "/v1/videos/{video_id}", True),
        ("GET", "/v1/videos/{video_id}", False),
        ("GET", "/v1/models", False),
        ("POST", "/generated", False),
        ("GET", "", False),
    ],
)
def test_what_makes_or_changes_a_task(method: str, route: str, is_traced: bool) -> None:
    assert changes_a_task(method, route) is is_traced


def test_every_route_that_queues_a_task_has_a_root() -> None:
    """The API document names them: they alone can be refused for a full queue."""
    posts = {path: item["post"] for path, item in REPORTING["paths"].items() if "post" in item}
    queueing = {path for path, each in posts.items() if "queue_overloaded" in str(each["responses"].get("503"))}
    assert len(queueing) > 4
    assert {path for path in posts if MAKES_A_TASK.fullmatch(path)} == queueing


@get("/tasks/{task_id:str}")
async def look(task_id: str) -> str:
    return task_id


@post("/generate")
async def generate() -> None:
    """Makes nothing."""


@pytest.mark.parametrize(
    ("traces_reads", "names"),
    [(False, ["POST /generate"]), (True, ["GET /tasks/{task_id}", "POST /generate"])],
)
def test_a_read_is_traced_where_it_is_asked_for(
    traces_reads: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = InMemorySpanExporter()
    provider = tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    app = Litestar([look, generate], plugins=[http_plugin([look, generate], traces_reads=traces_reads)])
    with TestClient(app) as client:
        assert client.get("/tasks/one").status_code == 200
        assert client.post("/generate").status_code == 201
    assert sorted(span.name for span in spans.get_finished_spans()) == names


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/generate", "/generate"),
        ("/generate//", "/generate"),
        ("/tasks/one/", "/tasks/{task_id}"),
        ("/tasks/recent", "/tasks/recent"),
        ("/", "/"),
        ("/tasks", ""),
    ],
)
def test_a_path_is_named_by_its_route_as_litestar_finds_it(path: str, route: str) -> None:
    """Slashes at its end change nothing."""
    templates = ("/", "/generate", "/tasks/{task_id}", "/tasks/recent")
    assert route_of(path, [(template, template.split("/")) for template in templates]) == route


def test_telemetry_names_its_sender() -> None:
    said = resource_attributes("lane", "anisora-0")
    assert said["service.name"] == "warmlane-lane"
    assert said["service.namespace"] == "warmlane"
    assert {"service.version", "host.name", "process.pid"} <= said.keys()
