"""A bad telemetry setting never stops the product: it is logged once, and ignored."""

import os
import subprocess
import sys

import pytest

from ops.telemetry.export import unusable
from tests.kit.support import clean_environment

INSTALLED = {"tracecontext", "baggage"}


@pytest.mark.parametrize(
    ("environment", "left_out"),
    [
        ({}, []),
        ({"OTEL_PROPAGATORS": "tracecontext, baggage"}, []),
        ({"OTEL_PROPAGATORS": "none"}, []),
        ({"OTEL_PROPAGATORS": "tracecontext,b3"}, ["OTEL_PROPAGATORS"]),
        ({"OTEL_PROPAGATORS": "jaeger"}, ["OTEL_PROPAGATORS"]),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "60000"}, []),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "60s"}, ["OTEL_METRIC_EXPORT_INTERVAL"]),
        ({"OTEL_METRIC_EXPORT_INTERVAL": ""}, []),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-1"}, ["OTEL_BSP_SCHEDULE_DELAY"]),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10 s"}, ["OTEL_EXPORTER_OTLP_TIMEOUT"]),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"]),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, ["OTEL_BSP_MAX_QUEUE_SIZE"]),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"}, []),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4096"}, ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"]),
        ({"OTEL_RESOURCE_ATTRIBUTES": "size=XL", "OTHER_SIZE": "XL"}, []),
    ],
)
def test_what_the_sdk_would_stop_at(environment: dict[str, str], left_out: list[str]) -> None:
    assert sorted(unusable(environment, propagators=INSTALLED)) == left_out


WRONG = {
    "OTEL_PROPAGATORS": "xray",
    "OTEL_METRIC_EXPORT_INTERVAL": "60s",
    "OTEL_BSP_MAX_QUEUE_SIZE": "100",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "unknown",
}


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
def test_a_process_goes_on_whatever_is_set(endpoint: str) -> None:
    """All bad settings at once, in a process of its own, which then imports what the gateway imports."""
    code = (
        "from ops.telemetry.metrics import requests_accepted\n"
        "import asyncio\n"
        "from ops.telemetry.export import exporting, metrics_text\n"
        "with exporting('gateway', instance='here', serves_metrics=True):\n"
        "    import opentelemetry.propagate\n"  # which the gateway stands on, and which reads OTEL_PROPAGATORS
        "    import gateway.app\n"
        "    requests_accepted.add('anisora', 'lane')\n"
        "    assert b'warmlane_requests_accepted_total' in asyncio.run(metrics_text())\n"
        "    print('serves')\n"
    )
    environment = clean_environment() | WRONG | ({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if endpoint else {})
    asked = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=os.getcwd()
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.splitlines()[-1] == "serves"
    for name in ("OTEL_PROPAGATORS=xray", "OTEL_METRIC_EXPORT_INTERVAL=60s", "OTEL_BSP_MAX_QUEUE_SIZE=100"):
        assert asked.stdout.count(name) == 1
    if endpoint:
        assert asked.stdout.count("telemetry_off") == 2
