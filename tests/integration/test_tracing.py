"""Spans and metrics as an OTLP/HTTP collector gets them from real workers, and what workers do not send (design §11).

The traces of whole tasks, through every process, are in `tests/e2e/test_observe.py`.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from contracts.tasks import TaskStatus
from ops.nats.link import NatsLink
from tests.kit.collector import Collector
from tests.kit.degraded import DegradedProcess, becomes, leads, place, task_of
from tests.kit.support import (
    BOUND_S,
    NatsServer,
    clean_environment,
    eventually,
    eventually_sync,
    free_port,
    shared_forks,
)

pytestmark = pytest.mark.usefixtures("forks")

ROOT = Path(__file__).parents[2]
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
FINISHED = 'warmlane_tasks_finished_total{model="phr00t",outcome="done",route="degraded"}'
# Makes a worker export while a task runs, and not only at the end.
OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "50", "OTEL_BSP_SCHEDULE_DELAY": "10"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def test_a_swap_is_in_the_trace_of_the_request(
    collector: Collector, link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    """The receipt's figures are below the span of the request, and `/metrics` of the worker has the same sums."""
    port = free_port()
    worker = DegradedProcess(
        nats_server.address,
        tmp_path,
        "degraded-0",
        "cpu-0",
        "--metrics-port",
        str(port),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        **shared_forks(),
    )
    try:
        await leads(link, "degraded-0")  # a task may wait for 29.5 s, and a busy machine may need that for all of this
        first = await place(link, task_of("anisora", 1))
        await becomes(link, first, TaskStatus.DONE)
        second = await place(link, task_of("phr00t", 2, traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01"))
        done = await becomes(link, second, TaskStatus.DONE)
        async with httpx.AsyncClient(timeout=BOUND_S) as http:

            async def counted() -> str | None:
                text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
                return text if f"{FINISHED} 1.0" in text else None  # the worker counts after it has stored the end

            text = await eventually(counted)
            probes = [(await http.get(f"http://127.0.0.1:{port}/{name}")).json() for name in ("livez", "readyz")]
        assert worker.stop() == 0  # it then sends what it has not sent yet
    finally:
        worker.kill()
    assert probes == [{"ready": True, "state": "leads", "reason": ""}] * 2
    assert collector.services == {"warmlane-degraded"}
    assert collector.paths == {"/v1/traces", "/v1/metrics"}
    spans = {span.name: span for span in collector.trace(TRACE_ID)}
    spans["process"] = spans.pop("process DEGRADED")
    assert {spans[name].parent_id for name in ("queue.wait", "process")} == {PARENT_ID}
    inside = {name for name, span in spans.items() if span.parent_id == spans["process"].span_id}
    assert inside >= {"swap.release", "swap.verify", "load", "inference", "cleanup", "store", "settle"}
    receipt = done.swap
    assert receipt is not None
    figures = spans["load"].attributes
    assert (figures["warmlane.swap.how"], figures["warmlane.swap.released_model"]) == ("unloaded", "anisora")
    assert figures["warmlane.swap.after_bytes"] == receipt.after_bytes
    assert figures["warmlane.swap.load_s"] == pytest.approx(receipt.load_s)
    assert figures["warmlane.swap.samples"] == receipt.samples
    assert figures["warmlane.swap.read_s"] == pytest.approx(receipt.read_s)
    assert figures["warmlane.swap.copy_s"] == receipt.copy_s == 0
    assert spans["inference"].attributes["warmlane.swap.first_step_s"] == pytest.approx(receipt.first_step_s)
    (logged,) = (line for line in worker.log_lines("swap") if line["loaded_model"] == "phr00t")
    assert (logged["read_s"], logged["copy_s"]) == (receipt.read_s, 0)
    (step,) = (line for line in worker.log_lines("first_step") if line["task_id"] == done.id)
    assert step["first_step_s"] == receipt.first_step_s
    assert "red fox" not in str(collector.spans), "never a prompt"
    assert text is not None
    assert 'warmlane_tasks_finished_total{model="phr00t",outcome="out_of_memory",route="degraded"} 0.0' in text
    assert 'warmlane_releases_total{outcome="unloaded",slot="cpu-0"} 1.0' in text
    for part in ("release", "verify", "load", "read", "copy", "first_step"):
        assert f'warmlane_swap_duration_seconds_count{{model="phr00t",part="{part}"}} 1.0' in text
    assert "warmlane_nats_connected 1.0" in text


PROGRAM = """
import sys
from ops.telemetry.metrics import unreadable
from ops.telemetry.export import exporting
from ops.telemetry.tracing import span

with exporting("test", instance="test"), span("swap.release", {"model": "anisora"}):
    unreadable.add("task")
print(*sorted({"opentelemetry.sdk", "opentelemetry.exporter", "requests", "prometheus_client"} & set(sys.modules)))
"""


def run_program(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in clean_environment().items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no-endpoint"),
        pytest.param({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, id="disabled"),
    ],
)
def test_without_an_endpoint_nothing_is_imported_and_nothing_logged(environment: dict[str, str]) -> None:
    result = run_program(PROGRAM, **environment)
    assert (result.stdout.split(), result.stderr) == ([], "")


def test_with_an_endpoint_both_are_sent_at_the_end(collector: Collector) -> None:
    result = run_program(PROGRAM, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert "opentelemetry.sdk" in result.stdout.split()
    assert [span.name for span in collector.spans] == ["swap.release"]
    assert collector.value("warmlane.unreadable", kind="task") == 1


SUPERSEDED = """
from ops.telemetry.export import exporting
from ops.telemetry.tracing import OUTCOME, span

with exporting("test", instance="test"):
    for outcome in ("superseded", "cancelled"):
        with span("process", {OUTCOME: outcome}):
            pass
"""


def test_an_attempt_that_another_process_recorded_is_not_sent_twice(collector: Collector) -> None:
    run_program(SUPERSEDED, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces")
    assert [span.attributes["warmlane.outcome"] for span in collector.spans] == ["cancelled"]


ATTEMPTED = """
import sys
from opentelemetry.trace import SpanKind
from ops.telemetry.export import exporting
from ops.telemetry.tracing import span

with exporting("test", instance="test"):
    with span("process", kind=SpanKind.CONSUMER), span("inference"):
        pass
    sys.stdin.read()
"""


def test_the_end_of_an_attempt_is_sent_at_once(collector: Collector) -> None:
    """The spans below it are sent too: a worker that is then killed leaves no span without its parent (ADR 0036)."""
    environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces"}
    environment |= {"OTEL_BSP_SCHEDULE_DELAY": "600000"}  # the others may wait this long
    command = [sys.executable, "-c", ATTEMPTED]
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment() | environment, stdin=subprocess.PIPE)
    try:
        eventually_sync(lambda: {"process", "inference"} <= {span.name for span in collector.spans})
    finally:
        process.kill()
        process.wait()


def test_one_signal_alone(collector: Collector) -> None:
    run_program(PROGRAM, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{collector.url}/v1/metrics")
    assert collector.paths == {"/v1/metrics"}


LOGGING = """
from ops.telemetry.logs import configure_logging
from ops.telemetry.export import exporting
from ops.telemetry.tracing import record, span
import structlog

configure_logging("test")
with exporting("test", instance="test"):
    for number in range(3):
        with span("settle"):
            structlog.get_logger().info("inside", number=number)
    structlog.get_logger().info("outside")
"""


def test_a_collector_that_is_away_is_logged_once_and_costs_nothing_else() -> None:
    """The spans are lost, but log lines still have their trace id, and the process ends normally."""
    lines = run_program(
        LOGGING, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", OTEL_BSP_SCHEDULE_DELAY="1"
    ).stderr.splitlines()
    inside = [line for line in lines if '"event": "inside"' in line]
    assert len(inside) == 3
    assert all('"trace_id": "' in line and '"span_id": "' in line for line in inside)
    assert not any("trace_id" in line for line in lines if "outside" in line)
    complaints = [line for line in lines if "opentelemetry" in line]
    loggers = [line.split('"logger": "')[1].split('"')[0] for line in complaints]
    assert len(loggers) == len(set(loggers)), "each logger speaks once"
    assert "Traceback" not in "".join(complaints)


async def test_a_collector_that_is_away_costs_no_task(link: NatsLink, nats_server: NatsServer, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    worker = DegradedProcess(
        nats_server.address,
        tmp_path,
        "degraded-0",
        "cpu-0",
        OTEL_EXPORTER_OTLP_ENDPOINT=nowhere,
        **OFTEN,
        **shared_forks(),
    )
    try:
        await leads(link, "degraded-0")
        for number, model in enumerate(("anisora", "phr00t"), start=1):
            task = await place(link, task_of(model, number))
            assert (await becomes(link, task, TaskStatus.DONE)).attempt == 1
        assert worker.stop() == 0
        assert "opentelemetry" in worker.log_file.read_text(), "it was tried, and said"
    finally:
        worker.kill()


def test_a_taken_metrics_port_is_reported(nats_server: NatsServer, tmp_path: Path) -> None:
    worker = DegradedProcess(
        nats_server.address, tmp_path, "degraded-0", "cpu-0", "--metrics-port", str(nats_server.port)
    )
    try:
        eventually_sync(lambda: not worker.is_running)
        assert worker.stop() == 1
        logs = worker.log_file.read_text()
        assert f"cannot serve metrics on 127.0.0.1:{nats_server.port} (Address already in use)" in logs
        assert "--metrics-port" in logs
    finally:
        worker.kill()
