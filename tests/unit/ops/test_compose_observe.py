"""The services of compose.yaml that show what the others export."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.compose import (
    ALL,
    CARDS,
    IMAGES,
    OURS,
    ROOT,
    SECRETS,
    services,
)


def observed(name: str) -> Any:
    return yaml.safe_load((ROOT / "ops" / "deploy" / "observe" / name).read_text())


def test_telemetry_arrives_where_it_is_shown() -> None:
    """From the endpoint in their environment to the collector, to Jaeger and Prometheus, and from there to Grafana."""
    collector = observed("otel-collector.yaml")
    assert collector["receivers"]["otlp"]["protocols"] == {"http": {"endpoint": "0.0.0.0:4318"}}
    for each in OURS.values():
        assert each["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == ""  # which counts as not set: nothing is sent
    sent = services(SECRETS | CARDS | {"WARMLANE_OTLP_ENDPOINT": "http://otel-collector:4318"})
    for name in OURS:
        assert sent[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector:4318"
    pipelines = collector["service"]["pipelines"]
    assert {name: pipe["exporters"] for name, pipe in pipelines.items()} == {
        "traces": ["otlp_grpc/jaeger"],
        "metrics": ["prometheus"],
    }
    for pipe in pipelines.values():
        assert pipe["processors"] == ["memory_limiter", "batch"]
        assert set(pipe["processors"]) <= set(collector["processors"])
    exporters = collector["exporters"]
    assert exporters["otlp_grpc/jaeger"]["endpoint"] == "jaeger:4317"
    # suffixes as the exporter makes them by itself, and no labels of the resource but job and instance
    assert set(exporters["prometheus"]) == {"endpoint", "metric_expiration"}
    jaeger = observed("jaeger.yaml")
    assert jaeger["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317")
    badger = jaeger["extensions"]["jaeger_storage"]["backends"]["on_disk"]["badger"]
    assert badger["ephemeral"] is False
    (kept,) = (mount["target"] for mount in ALL["jaeger"]["volumes"] if mount["type"] == "volume")
    assert {Path(place).parent for place in badger["directories"].values()} == {Path(kept)}
    port = exporters["prometheus"]["endpoint"].rpartition(":")[2]
    scraped = {job["job_name"]: job for job in observed("prometheus.yaml")["scrape_configs"]}
    assert scraped["otel-collector"]["static_configs"] == [{"targets": [f"otel-collector:{port}"]}]
    assert scraped["otel-collector"]["honor_labels"] is True
    sources = {source["uid"]: source["url"] for source in observed("grafana/datasources.yaml")["datasources"]}
    assert sources == {"prometheus": "http://prometheus:9090", "jaeger": "http://jaeger:16686"}
    (provider,) = observed("grafana/dashboards.yaml")["providers"]
    assert f"COPY ops/dashboards {provider['options']['path']}\n" in (IMAGES / "observe.Dockerfile").read_text()
    assert {"otel-collector", "jaeger", "prometheus", "grafana"} <= {
        name for name, each in ALL.items() if "telemetry" in each["networks"]
    }


def test_grafana_lets_nobody_in_without_a_password() -> None:
    environment = ALL["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == "pw-grafana"


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here (Debian: apt install --no-install-recommends prometheus)")
    copied = re.findall(
        r"^COPY (\S+) /(etc/prometheus/\S+)$", (IMAGES / "observe.Dockerfile").read_text(), re.MULTILINE
    )
    for source, target in copied:  # as they stand in the image
        place = tmp_path / target
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    config = next(
        argument.removeprefix("--config.file=/")
        for argument in ALL["prometheus"]["command"]
        if argument.startswith("--config.file=")
    )
    checked = subprocess.run(
        [promtool, "check", "config", str(tmp_path / config)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    for rules in (ROOT / "ops" / "alerts").glob("*.rules.yaml"):
        assert f"alerts/{rules.name}" in checked.stdout
