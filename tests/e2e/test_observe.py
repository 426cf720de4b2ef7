"""`make observe` as a test: it causes and sees every line of the table in docs/operate/observability.md, and checks the
traces of what was done span by span (design §11)."""

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from ops.commands.trace import command as trace_command
from ops.telemetry.metrics import CATALOGUE, ENDED_BY_GATEWAYS, ENDED_BY_WORKERS
from ops.telemetry.page import JOB_PREFIX
from tests.drills.observe import warnings_of
from tests.drills.observe_sight import DOCS, Row, Sight, rows
from tests.drills.observe_stage import Stage
from tests.drills.observe_steps import play
from tests.kit.collector import SeenSpan
from tests.kit.jaeger import MISSING, Jaeger

DOC = DOCS.read_text(encoding="utf-8")
MUSTS = rows(DOC)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The system after all steps."""
    stage = Stage(tmp_path_factory.mktemp("observe"))
    try:
        asyncio.run(play(stage, lambda _: None))
        yield stage
    finally:
        stage.close()


@pytest.mark.parametrize("row", MUSTS, ids=lambda row: f"{row.cause}: {row.signal.replace('`', '')}")
def test_a_signal_shows_its_cause(stage: Stage, row: Row) -> None:
    assert Sight(stage).seen_at_last(row)


@pytest.fixture(scope="module")
def page(stage: Stage) -> dict[str, Any]:
    """What the gateway answers at `/metrics`, by the name of each family."""
    answer = stage.up.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_metric_is_reported_with_its_labels_and_no_other(stage: Stage) -> None:
    seen = stage.collector.metrics()
    assert {name: set(metric.labels) for name, metric in CATALOGUE.items()} == {
        name: labels for name, labels in seen.items() if name.startswith("warmlane.")
    }
    assert seen["http.server.request.duration"] >= {"http.request.method", "http.route", "http.response.status_code"}


def test_a_route_is_named_by_its_template(stage: Stage) -> None:
    routes = {dict(labels)["http.route"] for labels in stage.collector.series("http.server.request.duration")}
    assert {"/generate", "/tasks/{task_id}", "/admin/lanes/{model}/mode"} <= routes
    assert not {"/readyz", "/metrics"} & routes
    names = {
        span.name for span in stage.collector.spans if span.service == "warmlane-gateway" and span.kind == "server"
    }
    assert names == {f"{method} {route}" for method, route in ROUTES}


ROUTES = {
    ("POST", "/generate"),
    ("DELETE", "/tasks/{task_id}"),
}


def test_the_gateways_own_page_agrees_with_the_collector(stage: Stage, page: dict[str, Any]) -> None:
    (ready,) = (sample for sample in page["warmlane_lanes_ready"].samples if sample.labels["model"] == "anisora")
    assert ready.value == 1
    overloaded = {
        sample.labels["limit"]: sample.value
        for sample in page["warmlane_requests_overloaded"].samples
        if sample.name.endswith("_total") and sample.labels["model"] == "anisora"
    }
    assert overloaded == {
        limit: stage.collector.value("warmlane.requests.overloaded", model="anisora", limit=limit)
        for limit in ("depth", "displaced", "expected", "wait")
    }
    refused = {
        sample.labels["code"]: sample.value
        for sample in page["warmlane_requests_refused"].samples
        if sample.name.endswith("_total")
    }
    assert refused["validation_failed"] == 1
    assert refused["queue_overloaded"] == sum(overloaded.values())
    assert "process_resident_memory_bytes" in page


def test_the_page_has_every_process_and_what_each_counts(stage: Stage, page: dict[str, Any]) -> None:
    """The machine's one target has all series that dashboards and alerts need. Only its owner reports each series."""
    for metric in CATALOGUE.values():
        family = page[metric.prometheus_name.removesuffix("_total")]
        roles = {sample.labels["job"].removeprefix(JOB_PREFIX) for sample in family.samples}
        assert roles, metric.name
        assert roles <= set(metric.by), metric.name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == {
            *metric.labels,
            "job",
            "instance",
        }
    for sample in page["warmlane_tasks_finished"].samples:
        role = sample.labels["job"].removeprefix(JOB_PREFIX)
        assert sample.labels["outcome"] in (ENDED_BY_GATEWAYS if role == "gateway" else ENDED_BY_WORKERS)
    done = sum(sample.value for sample in page["warmlane_tasks_finished"].samples if sample.labels["outcome"] == "done")
    assert done == stage.collector.value("warmlane.tasks.finished", outcome="done") > 0


def test_what_was_counted_once_adds_up(stage: Stage) -> None:
    """Every accepted task ended once, whichever process ended it. Every generation has its memory line."""
    accepted = stage.collector.counted("warmlane.requests.accepted")
    assert (
        stage.collector.counted("warmlane.tasks.finished")
        == accepted
        == stage.collector.counted("warmlane.task.duration")
    )
    lines = [line for line in stage.lines() if line["event"] == "memory_after_cleanup"]
    # the last lines of a killed process are in its log, but no metrics count them
    counted = stage.collector.counted("warmlane.memory.cleanups")
    assert len(lines) - 1 <= counted <= len(lines)


def test_the_clocks_of_one_machine_agree(stage: Stage) -> None:
    skews = stage.collector.series("warmlane.clock.skew")
    assert skews
    assert all(abs(skew_s) < 1 for skew_s in skews.values())
    assert stage.collector.value("warmlane.nats.connected") == 4  # gateway, supervisor, lane, degraded worker


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def trace_of(stage: Stage, task: str) -> list[str]:
    """The trace of a task as paths from its root, each with its process and its failure, sorted."""
    task_id = next(step.tasks[task] for step in stage.steps.values() if task in step.tasks)
    (root,) = [
        span for span in stage.collector.spans if span.name == ROOT and span.attributes.get("task.id") == task_id
    ]
    spans = {span.span_id: span for span in stage.collector.trace(root.trace_id)}
    assert all(span.attributes["task.id"] == task_id for span in spans.values())

    def path(span: SeenSpan) -> str:
        failure = f" !{span.error}" if span.error else ""
        if span is root:
            return span.name + failure
        return f"{path(spans[span.parent_id])} > {operation(span)}{failure}"

    return sorted(
        f"{path(span)} ({span.service.removeprefix('warmlane-')})"
        for span in spans.values()
        if "warmlane.came_to_nothing" not in span.attributes
    )


def operation(span: SeenSpan) -> str:
    """The name of *span*, without the stream of its message."""
    return re.sub(r" (LANE_\w+|DEGRADED)$", "", span.name)


def below(parent: str, service: str, *names: str) -> list[str]:
    return [f"{parent} > {name} ({service})" for name in names]


ROOT = "accept"
REQUEST = "POST /generate"
WAITED = ("queue.wait", "queue.wait > claim")
INFERRED = ("inference", "cleanup")
FINISHED = (*INFERRED, "encode", "store", "settle")
SWAPPED = ("swap.release", "swap.verify", "load")


def accepted(*more: str, error: str = "") -> list[str]:
    return [f"{ROOT} (gateway)", *below(ROOT, "gateway", REQUEST + error, "route", "publish", "record", *more)]


def served(service: str, *inside: str, error: str = "") -> list[str]:
    return [
        *below(ROOT, service, *WAITED, f"process{error}"),
        *below(f"{ROOT} > process{error}", service, *inside),
    ]


DIED = " !gave_up: the pipeline host was killed by signal 9 (SIGKILL)"
LOST = "inference !host_lost"
TRACES = {
    "lane": [*accepted(), *served("lane", *FINISHED)],
    "degraded": [*accepted(), *served("degraded", *SWAPPED, *FINISHED)],
    "swapped": [*accepted(), *served("degraded", *SWAPPED, *FINISHED)],
    # FR-021 c: no lane claimed the task; the degraded worker already had its model
    "rerouted": [
        *accepted(),
        *below(ROOT, "gateway", "reroute", "reroute > publish"),
        *served("degraded", *FINISHED),
    ],
    "cancelled": [
        *accepted(),
        *below(ROOT, "gateway", "cancel !cancelled"),
        *served("lane", *INFERRED, error=" !cancelled"),
    ],
    "requeued": [
        *accepted(),
        # the lane was killed: the process that notices the loss reports its attempt
        *below(ROOT, "gateway", "process !worker_lost", "requeue", "requeue > publish"),
        *served("degraded", *FINISHED),
    ],
    # two attempts, and the host of each is killed
    "failed": [
        *accepted(),
        *served("degraded", LOST, error=DIED),
        *below(ROOT, "gateway", "requeue", "requeue > publish", "expire !worker_lost"),
        *served("degraded", *SWAPPED, LOST, error=DIED),
    ],
}


@pytest.mark.parametrize("task", TRACES)
def test_a_task_is_one_trace(stage: Stage, task: str) -> None:
    """From its request to its end, through NATS, the worker and what its pipeline host reported."""
    found = trace_of(stage, task)
    perhaps = [f"{ROOT} > hold (gateway)"]  # unless the worker was faster than the answer
    if task == "requeued":  # a killed worker loses the spans that it has not exported
        perhaps += below(ROOT, "lane", *WAITED)
    assert [line for line in found if line not in perhaps] == sorted(TRACES[task])


def test_a_request_that_waited_too_long_is_one_failed_trace(stage: Stage) -> None:
    ended = f"{ROOT} > expire !queue_overloaded"
    found = [line for line in trace_of(stage, "overloaded") if not line.startswith(ended)]
    assert found == sorted([*accepted("hold", error=" !error")])
    # one of three ends it first: a sweeper, the held request itself, or the worker that took the task too late
    assert len(trace_of(stage, "overloaded")) == len(found) + 1


def test_no_span_begins_before_its_parent(stage: Stage) -> None:
    spans = {span.span_id: span for span in stage.collector.spans}
    early = [
        (span.name, spans[span.parent_id].name)
        for span in spans.values()
        if span.parent_id in spans and span.begun_at < spans[span.parent_id].begun_at
    ]
    assert early == []


# ── the real Jaeger ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def jaeger(stage: Stage) -> Jaeger:
    if stage.jaeger is None:
        pytest.skip(MISSING)
    return stage.jaeger


@pytest.mark.tools
def test_jaeger_warns_of_nothing(jaeger: Jaeger) -> None:
    """No warning about clocks, a span without its parent, or a span that came twice."""
    assert warnings_of(jaeger) == []


@pytest.mark.tools
def test_jaeger_finds_a_task_by_its_id_its_model_and_its_failure(stage: Stage, jaeger: Jaeger) -> None:
    ids = {task: task_id for step in stage.steps.values() for task, task_id in step.tasks.items()}
    (trace,) = [
        trace
        for trace in jaeger.find("warmlane-gateway", **{"task.id": ids["lane"]})
        if any(span["operationName"] == ROOT for span in trace["spans"])
    ]
    services = {process["serviceName"] for process in trace["processes"].values()}
    assert services == {"warmlane-gateway", "warmlane-lane"}
    assert trace["traceID"] in {each["traceID"] for each in jaeger.find("warmlane-lane", model="anisora")}
    failed = {each["traceID"] for each in jaeger.find("warmlane-gateway", error="true", model="anisora")}
    assert stage.up.task(ids["requeued"])["trace_id"] in failed
    assert trace["traceID"] not in failed
    codes = {
        "failed": ("error.type", "worker_lost"),
        "cancelled": ("error.type", "cancelled"),
        "overloaded": ("warmlane.problem.code", "queue_overloaded"),  # a worker may have ended it: another service
        "requeued": ("error.type", "worker_lost"),
    }
    for task, (tag, code) in codes.items():
        found = jaeger.find("warmlane-gateway", **{"task.id": ids[task], tag: code})
        assert [each["traceID"] for each in found], task


@pytest.mark.tools
def test_warmlane_trace_prints_what_a_killed_lane_left(stage: Stage, jaeger: Jaeger) -> None:
    """By the id of the task, and by the id of its trace, which the API returns."""
    task_id = stage.steps["lost lane"].tasks["requeued"]
    trace_id = stage.up.task(task_id)["trace_id"]
    for wanted in (task_id, trace_id):
        asked = CliRunner().invoke(trace_command, [wanted, "--jaeger-url", jaeger.url])
        assert asked.exit_code == 0, asked.output
        assert f"{jaeger.url}/trace/{trace_id}" in asked.output
        (lost,) = (line for line in asked.output.splitlines() if "!! worker_lost" in line)
        assert "process LANE_ANISORA" in lost
        assert "worker=anisora-0 attempt=1" in lost
    unknown = CliRunner().invoke(trace_command, ["f" * 32, "--jaeger-url", jaeger.url])
    assert (unknown.exit_code, "has no trace" in unknown.output) == (1, True)


@pytest.mark.tools
def test_jaegers_service_graph(jaeger: Jaeger) -> None:
    end_ms = int(time.time() * 1e3)
    links = jaeger.get("/api/dependencies", endTs=end_ms, lookback=3_600_000)
    calls = {(link["parent"].removeprefix("warmlane-"), link["child"].removeprefix("warmlane-")) for link in links}
    assert calls == {("gateway", "lane"), ("gateway", "degraded")}


def spans_of(stage: Stage, task: str, name: str) -> list[SeenSpan]:
    task_id = next(step.tasks[task] for step in stage.steps.values() if task in step.tasks)
    return [
        span
        for span in stage.collector.spans
        if name in (span.name, operation(span)) and span.attributes.get("task.id") == task_id
    ]


def test_a_second_attempt_is_linked_to_the_first(stage: Stage) -> None:
    lost, second = sorted(spans_of(stage, "requeued", "process"), key=lambda span: span.begun_at)
    assert (lost.attributes["error.type"], lost.service) == ("worker_lost", "warmlane-gateway")
    assert lost.attributes["warmlane.worker"] == "anisora-0"
    assert second.links == (lost.span_id,)
    (requeue,) = (
        span for span in spans_of(stage, "requeued", "requeue") if "warmlane.came_to_nothing" not in span.attributes
    )
    assert requeue.attributes["warmlane.reason"] == "worker_lost"
    assert requeue.attributes["warmlane.lost_s"] > 0


def test_what_the_spans_of_a_lane_task_say(stage: Stage) -> None:
    (sent,), (received,) = spans_of(stage, "lane", "publish"), spans_of(stage, "lane", "process")
    for span, kind, name, type_ in (
        (sent, "producer", "publish", "send"),
        (received, "consumer", "process", "process"),
    ):
        assert (span.kind, span.name) == (kind, f"{name} LANE_ANISORA")
        said = span.attributes
        assert said["messaging.system"] == "nats"
        assert said["messaging.operation.name"] == name
        assert said["messaging.operation.type"] == type_
        assert said["messaging.destination.name"] == "LANE_ANISORA"
        assert said["messaging.message.id"] == f"{said['task.id']}.0"
    assert received.attributes["messaging.consumer.group.name"] == "worker"
    assert (received.attributes["warmlane.worker"], received.attributes["warmlane.attempt"]) == ("anisora-0", 1)
    (inference,) = spans_of(stage, "lane", "inference")
    assert inference.events == ("step",) * inference.attributes["warmlane.steps"]
    assert inference.attributes["warmlane.host_pid"] not in {stage.up.find("--name anisora-0"), 0}
    (cleanup,) = spans_of(stage, "lane", "cleanup")
    assert cleanup.attributes["warmlane.memory.rss_bytes"] > 0
    (encode,) = spans_of(stage, "lane", "encode")
    assert sent.begun_at <= received.begun_at <= inference.begun_at
    assert inference.ended_at <= encode.begun_at <= encode.ended_at <= cleanup.ended_at <= received.ended_at


def test_the_receipt_of_a_swap_is_on_its_spans(stage: Stage) -> None:
    receipt = stage.up.task(stage.steps["manual fallback"].tasks["swapped"])["swap"]
    (load,) = spans_of(stage, "swapped", "load")
    prefix = "warmlane.swap."
    said = {name.removeprefix(prefix): value for name, value in load.attributes.items() if name.startswith(prefix)}
    for name in ("how", "released_model", "loaded_model", "probe", "before_bytes", "after_bytes", "tolerance_bytes"):
        assert said[name] == receipt[name], name
    assert said["samples"] == receipt["samples"] >= 2


def test_a_refusal_by_depth_names_what_was_full(stage: Stage) -> None:
    full = [span for span in stage.collector.spans if operation(span) == "publish" and span.error == "StreamFull"]
    # a gateway refuses a request without asking a queue that was full a moment ago, so without this span
    assert 1 <= len(full) <= stage.collector.value("warmlane.requests.overloaded", limit="depth")
    requests = {span.trace_id: span for span in stage.collector.spans if span.name == REQUEST}
    for span in full:
        request = requests[span.trace_id]
        assert (request.error, request.attributes["warmlane.problem.code"]) == ("error", "queue_overloaded")
        assert request.attributes["http.response.status_code"] == 503


def test_log_lines_lead_to_their_trace(stage: Stage) -> None:
    (inference,) = spans_of(stage, "lane", "inference")
    lines = [line for line in stage.lines() if line.get("trace_id") == inference.trace_id]
    assert {line["event"] for line in lines} >= {"memory_after_cleanup", "task_done"}


def test_nothing_of_a_request_is_exported(stage: Stage) -> None:
    assert "red fox" not in str(stage.collector.spans)
