"""The services of compose.yaml, profile cpu, as processes of this machine: their own commands and environments.

The test only does the part of a container engine: it replaces names of hosts, ports and mounted folders by local ones.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from contracts.lanes import LaneState, Leadership, decode_heartbeat
from contracts.topology import LANES
from ops.commands.durations import Duration
from ops.commands.healthcheck import complaint
from ops.machine.processes import warmlane_command
from ops.nats.access import ROLES, password_variable
from tests.kit.collector import Collector
from tests.kit.compose import ROOT, dockerfile, image_environment, is_ours, services
from tests.kit.degraded import leader_of
from tests.kit.patient import connected
from tests.kit.support import as_admin, eventually, eventually_sync, free_port, require_sound, shared_forks

SECRETS: Final = {password_variable(role): f"pw-{role}" for role in ROLES} | {"WARMLANE_GRAFANA_PASSWORD": "pw-grafana"}
# An address of the loopback other than nats.conf has: the test also shows that the command line changes it.
NATS_HOST: Final = "127.0.0.2"


class Composed:
    """The engine's part, on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services = services(SECRETS | {"WARMLANE_OTLP_ENDPOINT": "http://otel-collector:4318"})
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[tuple[str, str], str] = {}
        self.collector = Collector()
        self.nats_port, self.monitor_port = free_port(), free_port()
        self.quota = folder / "quota" / "quota.json"
        self.quota.parent.mkdir()
        (folder / "home").mkdir()
        # as the images make them
        self.first_key = folder / "data" / "keys" / "first.key"
        self.first_key.parent.mkdir(parents=True)
        self._nats_conf = folder / "etc" / "nats.conf"
        self._nats_conf.parent.mkdir()
        shutil.copy(ROOT / "nats.conf", self._nats_conf.with_name("warmlane.conf"))
        text = (ROOT / "ops" / "deploy" / "images" / "nats.conf").read_text()
        self._nats_conf.write_text(text.replace("http: 127.0.0.1:8222", f"http: 127.0.0.1:{self.monitor_port}"))

    def port(self, name: str, inside: str) -> str:
        """The local port that replaces *inside*, a port that each container has to itself."""
        return self._ports.setdefault((name, inside), str(free_port()))

    def here(self, name: str, text: str) -> str:
        """*text* of the service *name*, in which local names replace all names of containers."""
        table = {
            "nats://nats:4222": f"nats://{NATS_HOST}:{self.nats_port}",
            "http://otel-collector:4318": self.collector.url,
            "http://gateway:8000": f"http://127.0.0.1:{self.port('gateway', '8000')}",
            "/etc/warmlane/quota": str(self.quota.parent),
            "/etc/warmlane/nats.conf": str(self._nats_conf),
        }
        for mount in self._services[name].get("volumes", []):
            if mount["type"] == "bind":
                table.setdefault(mount["target"], str(ROOT / mount["source"]))
        # the volumes `work` and `artifacts` are one folder: the second lies in the first
        table["/data"] = str(self._folder / ("nats" if name == "nats" else "data"))
        for inside, outside in table.items():
            text = re.sub(rf"{re.escape(inside)}(?![\w.-])", outside, text)
        return re.sub(r"\b(8000|9464)\b", lambda match: self.port(name, match[1]), text)

    def environment(self, name: str) -> dict[str, str]:
        """The environment of its container: the image's and the service's, and nothing of this machine."""
        each = self._services[name]
        path = dockerfile(each)
        image = image_environment(path) if path is not None else {}
        given = {variable: self.here(name, value or "") for variable, value in each["environment"].items()}
        return (
            image
            | given
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self._folder / "home")}
        )

    def command(self, name: str, *instead: str) -> list[str]:
        """The command line of the service, or with *instead* that of `docker compose run SERVICE …`."""
        each = self._services[name]
        assert is_ours(each)
        return warmlane_command(*(self.here(name, word) for word in (instead or each["command"])))

    def run(self, name: str, *instead: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs the service to its end. Its environment has *more*, as `docker compose run --env` adds it."""
        command, environment = self.command(name, *instead), self.environment(name) | more
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def start(self, name: str) -> None:
        """Starts the service, and leaves it running until `stop`."""
        self._start(name, self.command(name))

    def start_beside(self, name: str, other: str) -> None:
        """The same for a worker in the image and the environment of *other*. That *other* runs shows that torch can be
        imported there, so this one uses the fork server of all tests. Only the passwords of their roles may differ."""
        assert dockerfile(self._services[name]) == dockerfile(self._services[other])
        differ = self.environment(name).items() ^ self.environment(other).items()
        assert {variable for variable, _ in differ} <= {password_variable(role) for role in ROLES}
        self._start(name, self.command(name), **shared_forks())

    def start_nats(self) -> None:
        """The same for nats-server, whose image is not ours."""
        options = self._services["nats"]["command"]
        local = {"0.0.0.0": NATS_HOST, "4222": str(self.nats_port)}
        assert set(local) < set(options)
        # its entrypoint is a shell script, which also reads passwords from files
        entrypoint = str(ROOT / "ops" / "deploy" / "images" / "nats-entrypoint.sh")
        command = ["sh", entrypoint, *(local.get(word, self.here("nats", word)) for word in options)]
        self._start("nats", command)

    def _start(self, name: str, command: list[str], **more: str) -> None:
        environment = self.environment(name) | more
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def require_running(self) -> None:
        for name, process in self._running.items():
            assert process.poll() is None, self.log(name)

    def is_healthy(self, name: str) -> bool:
        """The result of the service's own health check."""
        self.require_running()
        test = self._services[name]["healthcheck"]["test"]
        if name == "nats":
            return complaint(test[-1].replace("8222", str(self.monitor_port))) is None
        assert test[:2] == ["CMD", "python"]
        command = [sys.executable, *(self.here(name, word) for word in test[2:])]
        return subprocess.run(command, cwd=ROOT, env=self.environment(name), check=False).returncode == 0

    def stop(self, *names: str) -> None:
        """As `docker compose stop`: SIGTERM, and at most the grace period. All must exit with 0."""
        for name in names:
            self._running[name].send_signal(signal.SIGTERM)
        for name in names:
            grace_s = Duration().convert(self._services[name]["stop_grace_period"], None, None)
            assert isinstance(grace_s, float)
            assert self._running.pop(name).wait(timeout=grace_s) == 0, self.log(name)
            require_sound(self.log(name))

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(timeout=60)
        self.collector.close()

    @property
    def nats_url(self) -> str:
        return as_admin(f"nats://{NATS_HOST}:{self.nats_port}")


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """The services with a running, provisioned nats-server: the state of every profile before its first worker."""
    composed = Composed(tmp_path_factory.mktemp("compose"))
    try:
        composed.start_nats()
        eventually_sync(lambda: composed.is_healthy("nats"))
        provisioned = composed.run("provision")
        assert provisioned.returncode == 0, provisioned.stderr
        assert "LANE_ANISORA" in provisioned.stdout
        yield composed
        composed.stop("nats")
    finally:
        composed.close()


@pytest.mark.parametrize(("status", "is_well"), [(200, True), (503, False)])
def test_what_a_health_check_takes_for_healthy(status: int, is_well: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"reason": "it waits"}')

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        found = complaint(url)
        assert found is None if is_well else "it waits" in str(found)
        answering.join()
    assert "refused" in str(complaint(url))


async def test_a_supervisor_in_the_place_of_the_lanes_obeys_the_mounted_quota(composed: Composed) -> None:
    """The supervisor runs its own command. A quota of no lanes keeps it from starting the next test's lanes."""
    composed.quota.write_text(json.dumps({"max_lanes": {"anisora": 0, "phr00t": 0}}))
    composed.start("supervisor")
    link = await connected(composed.nats_url)
    try:
        for model in ("anisora", "phr00t"):

            async def is_denied(key: str = f"{model}.{model}-0") -> bool:
                composed.require_running()
                entry = await link.entries.get(LANES, key)
                heartbeat = None if entry is None or entry.value is None else decode_heartbeat(entry.value)
                return heartbeat is not None and heartbeat.state is LaneState.QUOTA_DENIED

            await eventually(is_denied)
    finally:
        await link.close()
    assert composed.is_healthy("supervisor")
    composed.stop("supervisor")


async def leader_at(url: str) -> Leadership | None:
    link = await connected(url)
    try:
        return await leader_of(link)
    finally:
        await link.close()


def test_the_services_of_the_profile_cpu_serve(composed: Composed) -> None:
    # so `docker compose up --wait` needs nothing else: the gateway serves no other machine before there is a key
    key = composed.first_key.read_text().strip()
    workers = ("lane-anisora", "lane-phr00t", "degraded")
    for name in ("gateway", "lane-anisora"):
        composed.start(name)
    for name in ("lane-phr00t", "degraded"):
        composed.start_beside(name, "lane-anisora")

    headers = {"authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{composed.port('gateway', '8000')}"
    with httpx.Client(base_url=url, headers=headers, timeout=70) as http:

        def readiness() -> dict[str, Any] | None:
            composed.require_running()
            with contextlib.suppress(httpx.TransportError):
                ready: dict[str, Any] = http.get("/readyz").json()
                warm = all(each["warm"] for each in ready["models"].values())
                return ready if ready["degraded_worker"] and warm else None
            return None

        ready = eventually_sync(readiness, within_s=120)
        assert ready is not None
        assert ready["ready"] is True
        assert set(ready["models"]) == {"anisora", "phr00t"}
        assert http.get("/tasks", headers={"authorization": ""}).status_code == 401
        body = {"model": "anisora", "prompt": "a red fox", "num_frames": 9}
        accepted = http.post("/generate", json=body)
        assert accepted.status_code == 202, accepted.text
        ended = http.get(f"/tasks/{accepted.json()['id']}?wait=60").json()
        assert (ended["status"], ended["route"], ended["worker"]) == ("done", "lane", "anisora-0")
        assert http.get(ended["links"]["video"]).content[4:8] == b"ftyp"

    composed.start_beside("degraded-standby", "degraded")
    eventually_sync(lambda: '"stands_by"' in composed.log("degraded-standby"), within_s=60)
    leader = asyncio.run(leader_at(composed.nats_url))
    assert leader is not None
    assert (leader.worker, leader.slot) == ("degraded-0", "cpu-2")
    assert '"serves"' not in composed.log("degraded-standby")

    status = composed.run("admin", "status", "--json", WARMLANE_API_KEY=key)
    assert status.returncode == 0, status.stderr
    assert composed.is_healthy("gateway")
    for name in (*workers, "degraded-standby"):
        assert composed.is_healthy(name), name
    composed.stop("degraded-standby", *workers)
    composed.stop("gateway")
    # all that they send to the collector has arrived there, the last of it when they stopped
    names = {f"warmlane-{role}" for role in ("gateway", "lane", "degraded", "supervisor")}
    assert {service for service, _ in composed.collector.exports()} == names
    assert {span.service for span in composed.collector.spans} >= {"warmlane-gateway", "warmlane-lane"}
