"""A real Prometheus with the committed configuration, rules and dashboards, on a real system and a real collector.

The collector is Jaeger's own program, which holds the parts that `ops/deploy/observe/otel-collector.yaml` names. The
configuration differs from the committed one only in its addresses, its intervals, and the time for which an alert waits
(`for`): a second.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import httpx
import pytest
import yaml

from contracts.lanes import SlotState
from contracts.settings import load_settings
from contracts.topology import DEGRADED_MAX_MSGS
from degraded_worker.worker import DegradedWorker
from lane_worker.residence.residence import Residence
from ops.commands.trace import ROOT_SERVICE
from ops.machine.processes import warmlane_command
from ops.nats.access import environment_for
from ops.nats.link import NatsLink
from tests.drills.observe_sight import DOCS
from tests.drills.observe_stage import settings_for
from tests.kit.degraded import leading, place, setup_of, shown, task_of
from tests.kit.jaeger import Jaeger
from tests.kit.stuck_card import StuckCard
from tests.kit.support import BOUND_S, clean_environment, eventually, eventually_sync, free_port, shared_forks
from tests.kit.system import UpProcess
from tests.kit.tools import tool
from tests.unit.ops.test_dashboards import DASHBOARDS, OPS, panels

pytestmark = [pytest.mark.tools, pytest.mark.usefixtures("forks")]

RULES_FILE: Final = OPS / "alerts" / "warmlane.rules.yaml"
# The values that Grafana substitutes for its variables.
GRAFANA: Final = {"$__rate_interval": "1m", "$__interval": "10s", "$model": ".*", "$slot": ".*"}
# Once these are there, a look at the targets finds all that it needs.
LIVE: Final = ("warmlane_lanes_ready", "warmlane_queue_depth", "warmlane_requests_accepted_total")


class Prometheus:
    """The server, and its answers."""

    def __init__(self, folder: Path, config: Any, targets: dict[str, str]) -> None:
        """Starts it with *config*, in which *targets* and the server's own address replace the committed ones."""
        self.url = f"http://127.0.0.1:{free_port()}"
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        targets = targets | {"127.0.0.1:9090": self.url.removeprefix("http://")}
        folder.mkdir(exist_ok=True)
        for job in config["scrape_configs"]:
            for each in job["static_configs"]:
                each["targets"] = [targets[target] for target in each["targets"]]
        (folder / "alerts").mkdir()
        rules = re.sub(r"^( +for:) \S+$", r"\1 1s", RULES_FILE.read_text(), flags=re.MULTILINE)
        (folder / "alerts" / "warmlane.rules.yaml").write_text(rules)
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.log = folder / "prometheus.log"
        command = [tool("prometheus"), f"--config.file={folder / 'prometheus.yaml'}"]
        command += [
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        self.process = started(command, self.log)
        eventually_sync(lambda: answers(f"{self.url}/-/ready"))

    def ask(self, path: str, **arguments: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=arguments, timeout=20).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=query)["result"]
        return found

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def fires(self, alert: str) -> None:
        eventually_sync(lambda: alert in self.firing(), within_s=90)

    def resolves(self, alert: str) -> None:
        eventually_sync(lambda: alert not in self.firing(), within_s=90)


def started(command: list[Any], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=BOUND_S).status_code == 200
    except httpx.TransportError:
        return False


def collector_file(folder: Path, otlp: int, metrics: int) -> Path:
    """The committed configuration, with other addresses. Its traces go nowhere: another test covers them."""
    config = yaml.safe_load((OPS / "deploy" / "observe" / "otel-collector.yaml").read_text())
    config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] = f"127.0.0.1:{otlp}"
    moved = {"endpoint": f"127.0.0.1:{metrics}", "metric_expiration": "10s"}  # committed are minutes
    config["exporters"] = {"prometheus": config["exporters"]["prometheus"] | moved}
    config["service"]["pipelines"].pop("traces")
    config["service"]["telemetry"] = {"metrics": {"level": "none"}}
    file = folder / "collector.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def observed(tmp_path: Path) -> Iterator[tuple[UpProcess, Prometheus, Jaeger]]:
    otlp, metrics = free_port(), free_port()
    tool("prometheus")
    with ExitStack() as leave:
        jaeger = Jaeger(tool("jaeger"), tmp_path)
        leave.callback(jaeger.close)
        collector = started(
            [tool("jaeger"), "--config", collector_file(tmp_path, otlp, metrics)], tmp_path / "collector.log"
        )
        leave.callback(collector.wait)
        leave.callback(collector.kill)
        eventually_sync(lambda: answers(f"http://127.0.0.1:{metrics}/metrics"))
        committed = yaml.safe_load((OPS / "deploy" / "observe" / "prometheus.yaml").read_text())
        prometheus = Prometheus(tmp_path, committed, {"otel-collector:8889": f"127.0.0.1:{metrics}"})
        leave.callback(prometheus.process.wait)
        leave.callback(prometheus.process.kill)
        up = UpProcess(
            tmp_path,
            "--settings",
            str(settings_for(tmp_path)),
            "--step-seconds",
            "0.1",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{jaeger.otlp_url}/v1/traces",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://127.0.0.1:{otlp}/v1/metrics",
            OTEL_METRIC_EXPORT_INTERVAL="500",
            **shared_forks(),
        )
        leave.callback(up.stop)
        up.start()
        yield up, prometheus, jaeger


@pytest.mark.timeout(600)
def test_a_real_prometheus(observed: tuple[UpProcess, Prometheus, Jaeger], tmp_path: Path) -> None:
    """Every job is up, real events make alerts fire and resolve, and the dashboards show them. The same tasks are in
    Jaeger, and the NATS CLI reads their records: the three tools work on one system."""
    up, prometheus, jaeger = observed
    for model in ("anisora", "phr00t"):
        task = up.ended(up.submit(model=model, prompt="x")["id"])
        eventually_sync(lambda task=task: jaeger.find(ROOT_SERVICE, **{"task.id": task["id"]}))  # type: ignore[misc]
        record = json.loads(nats_cli(up, f"kv get tasks {task['id']} --raw"))
        assert (record["status"], record["traceparent"].split("-")[1]) == ("done", task["trace_id"])
    for name in LIVE:
        eventually_sync(lambda name=name: prometheus.value(name))  # type: ignore[misc]
    one_target_is_enough(up, tmp_path / "beside", by_otlp=prometheus)
    jobs = {target["labels"]["job"]: target["health"] for target in prometheus.ask("targets")["activeTargets"]}
    assert jobs == {"otel-collector": "up", "prometheus": "up"}
    assert prometheus.value("up == 0") == []
    assert "duplicate" not in prometheus.log.read_text().lower()

    full = FullCard(up, tmp_path / "full")
    cause_and_mend: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("WarmlaneLaneNotReady", *stopping(up, "--name anisora-0")),
        ("WarmlaneNoDegradedWorker", *stopping(up, "degraded")),
        ("WarmlaneSlotQuarantined", full.fill, full.give_back),
        ("WarmlaneQueueNearFull", lambda: overload(up), lambda: mode(up, "auto")),
        ("WarmlaneBackgroundTrouble", lambda: nats_cli(up, "stream rm KV_tasks --force"), lambda: provision(up)),
        ("WarmlaneNatsDisconnected", *stopping(up, "nats-server")),
    ]
    for alert, cause, mend in cause_and_mend:
        assert alert not in prometheus.firing()
        cause()
        prometheus.fires(alert)
        mend()
        prometheus.resolves(alert)

    empty = []
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                query = target["expr"]
                for variable, value in GRAFANA.items():
                    query = query.replace(variable, value)
                if not prometheus.value(query):  # if the server rejects the query, `value` fails
                    empty.append(f"{name}: {panel['title']}")
    assert empty == []
    for fault in ("duplicate_timestamp", "out_of_order", "out_of_bounds"):
        (counted,) = prometheus.value(f"sum(prometheus_target_scrapes_sample_{fault}_total)")
        assert counted["value"][1] == "0", fault


def one_target_is_enough(up: UpProcess, folder: Path, *, by_otlp: Prometheus) -> None:
    """The configuration of docs/operate/observability.md: the gateway's page has every process, as OTLP does."""
    block = DOCS.read_text(encoding="utf-8").split("<!-- prometheus -->")[1]
    config = yaml.safe_load(block.strip().removeprefix("```yaml").removesuffix("```"))
    prometheus = Prometheus(folder, config, {"127.0.0.1:8000": up.url.removeprefix("http://")})
    try:
        for query in (
            "count by (job, instance) (warmlane_nats_connected)",
            'sum by (job, instance, model) (warmlane_tasks_finished_total{outcome="done"})',
        ):
            assert answer_of(by_otlp, query)
            answer_alike(query, prometheus, by_otlp)
        assert [target["health"] for target in prometheus.ask("targets")["activeTargets"]] == ["up"]
        assert "duplicate" not in prometheus.log.read_text().lower()
    finally:
        prometheus.process.kill()
        prometheus.process.wait()


def answer_alike(query: str, *prometheus: Prometheus) -> None:
    def answers() -> list[dict[tuple[str, ...], str]]:
        return [answer_of(each, query) for each in prometheus]

    try:
        eventually_sync(lambda: all(each == answers()[0] for each in answers()), within_s=20)
    except AssertionError as error:
        raise AssertionError(f"{query}: {answers()}") from error


def answer_of(prometheus: Prometheus, query: str) -> dict[tuple[str, ...], str]:
    return {tuple(sorted(found["metric"].values())): found["value"][1] for found in prometheus.value(query)}


class FullCard:
    """A degraded worker in the place of the system's own, on a card that keeps the memory of the first pipeline."""

    SLOT: Final = "cpu-9"

    def __init__(self, up: UpProcess, folder: Path) -> None:
        self._up, self._folder, self._card = up, folder, StuckCard()
        self._stop, self._go_on = stopping(up, "degraded")
        self._is_over, self._is_full = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    def fill(self) -> None:
        self._stop()
        self._thread.start()
        assert self._is_full.wait(120)

    def give_back(self) -> None:
        """Frees the card, and then lifts the quarantine by the runbook's line."""
        self._card.used_bytes = 0
        nats_cli(self._up, f"kv del slots {self.SLOT} --force")
        self._is_over.set()
        self._thread.join()
        self._go_on()

    async def _work(self) -> None:
        self._folder.mkdir()
        catalog = load_settings().catalog("tiny")
        link = await NatsLink.connect(self._up.nats_url, name="full")
        with (
            patch("lane_worker.runtime.assembly.probe_for", lambda *_: self._card),
            patch("lane_worker.runtime.assembly.Residence", partial(Residence, after_kill_s=0.2)),
        ):
            worker = DegradedWorker(setup_of(link, catalog, self._folder, self.SLOT, name="full-0"))
            async with leading(worker, link, "full-0"):
                await place(link, task_of("anisora", 1))
                await eventually(partial(self._reads, link, SlotState.RESIDENT))
                self._card.used_bytes = 1 << 30
                await place(link, task_of("phr00t", 2))
                await eventually(partial(self._reads, link, SlotState.QUARANTINED))
                self._is_full.set()
                await asyncio.to_thread(self._is_over.wait)
        await link.close()

    async def _reads(self, link: NatsLink, state: SlotState) -> bool:
        now = await shown(link, self.SLOT)
        return now is not None and now.state is state


def nats_cli(up: UpProcess, command: str) -> bytes:
    """Runs the real CLI as `admin`, with the file that `warmlane up` keeps for it; returns what it prints."""
    context = up.data_dir / "nats-auth" / "admin.json"
    typed = [str(tool("nats")), "--context", str(context), *command.split()]
    return subprocess.run(typed, check=True, timeout=60, capture_output=True).stdout


def provision(up: UpProcess) -> None:
    arguments = ["--data-dir", str(up.data_dir), "--nats-url", f"nats://127.0.0.1:{up.nats_port}"]
    command = warmlane_command("provision", *arguments)
    subprocess.run(command, check=True, timeout=60, capture_output=True, env=clean_environment_of_a_user())


def clean_environment_of_a_user() -> dict[str, str]:
    """An environment without passwords: the command finds its own in the data folder."""
    return environment_for(None, clean_environment())


def stopping(up: UpProcess, word: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: one stops a process, so that `up` starts no other in its place; one lets it go on."""
    pid = up.find(word)
    return lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT)


def mode(up: UpProcess, mode: str) -> None:
    up.http.put("/admin/lanes/anisora/mode", json={"mode": mode}).raise_for_status()


def overload(up: UpProcess) -> None:
    mode(up, "degraded")
    for _ in range(DEGRADED_MAX_MSGS + 5):
        up.http.post("/generate", json={"model": "anisora", "prompt": "x"}, headers={"prefer": "respond-async"})
