"""Three nats-servers, two gateways and two workers, each as on a machine of its own."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from contracts.settings import load_settings
from ops.machine.processes import warmlane_command
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import ProvisioningRefused, provision, wanted
from ops.nats.server import find_nats_server
from tests.kit.behind import js_of
from tests.kit.degraded import DegradedProcess
from tests.kit.lanes import LaneProcess
from tests.kit.s3_servers import BUCKET, Seaweed, aws_environment
from tests.kit.support import (
    BOUND_S,
    KEEP_S,
    NO_TLS,
    as_admin,
    clean_environment,
    eventually,
    eventually_sync,
    free_port,
)

CONFIG: Final = Path(__file__).parents[2] / "ops" / "deploy" / "cluster" / "node.conf"
NODES: Final = ("n1", "n2", "n3")


class Node:
    """One nats-server of the cluster, as `ops/deploy/cluster/` configures it."""

    def __init__(self, name: str, *, port: int, cluster_ports: dict[str, int], folder: Path) -> None:
        self.name, self.address = name, f"nats://127.0.0.1:{port}"
        self.url = as_admin(self.address)
        self.monitor = f"http://127.0.0.1:{free_port()}"
        self._log = folder / f"{name}.log"
        self._environment = clean_environment() | {
            "WARMLANE_NATS_NODE_PASSWORD": "pw-node",
            "WARMLANE_NATS_NAME": name,
            "WARMLANE_NATS_LISTEN": f"127.0.0.1:{port}",
            "WARMLANE_NATS_MONITOR": self.monitor.removeprefix("http://"),
            "WARMLANE_NATS_CLUSTER_LISTEN": f"127.0.0.1:{cluster_ports[name]}",
            "WARMLANE_NATS_ROUTES": json.dumps(
                [f"nats://node:pw-node@127.0.0.1:{at}" for at in cluster_ports.values()]
            ),
            "WARMLANE_NATS_STORE": json.dumps(str(folder / name)),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, again on the same folder after `kill`."""
        with self._log.open("ab") as log:
            command = [str(find_nats_server()), "-c", str(CONFIG)]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)

    def monitored(self, path: str) -> dict[str, Any]:
        """What the node's monitoring answers at *path*; nothing when it does not answer."""
        with contextlib.suppress(httpx.HTTPError):
            answer: dict[str, Any] = httpx.get(f"{self.monitor}/{path}", timeout=2, verify=NO_TLS).json()
            return answer
        return {}

    def has_caught_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.last_words()
        return self.monitored("healthz").get("status") == "ok"

    def last_words(self) -> str:
        """The end of the node's log, and its health."""
        tail = "\n".join(self._log.read_text().splitlines()[-15:])
        return f"{self.name}: {self.monitored('healthz') or 'does not answer'}\n{tail}"


class Cluster:
    """Three nodes on free ports of the loopback."""

    def __init__(self, folder: Path) -> None:
        ports = {name: free_port() for name in NODES}
        self.nodes = {name: Node(name, port=free_port(), cluster_ports=ports, folder=folder) for name in NODES}
        self.address = ",".join(node.address for node in self.nodes.values())
        self.url = as_admin(self.address)

    def start(self) -> None:
        """Starts all three; returns when each has caught up with the others."""
        for node in self.nodes.values():
            node.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        try:
            eventually_sync(self.is_whole, within_s=60)
        except AssertionError:
            last_words = "\n".join(node.last_words() for node in self.nodes.values())
            raise AssertionError(f"the cluster is not whole after 60 s\n{last_words}") from None

    def is_whole(self) -> bool:
        return all(node.has_caught_up() for node in self.nodes.values())

    def stop(self) -> None:
        for node in self.nodes.values():
            node.kill()

    # ── who does what ────────────────────────────────────────────────────────────────────────────────────────────

    def meta_leader(self) -> str:
        """The node that places the streams."""
        return str(eventually_sync(self._meta_leader))

    def _meta_leader(self) -> str | None:
        for node in self.nodes.values():
            leader = node.monitored("jsz").get("meta_cluster", {}).get("leader")
            if leader:
                return str(leader)
        return None

    def server_of(self, client: str) -> str:
        """The node that the connection named *client* goes to."""
        return str(eventually_sync(lambda: self._server_of(client)))

    def _server_of(self, client: str) -> str | None:
        for name, node in self.nodes.items():
            if any(connection.get("name") == client for connection in node.monitored("connz").get("connections", [])):
                return name
        return None


async def stream_leader(link: NatsLink, stream: str) -> str:
    """The node that decides which messages *stream* accepts."""

    async def look() -> str | None:
        with contextlib.suppress(TimeoutError, OSError):
            cluster = (await js_of(link).stream_info(stream)).cluster
            return None if cluster is None else cluster.leader
        return None

    return str(await eventually(look))


async def provision_three(link: NatsLink) -> None:
    """Makes the cluster hold everything three times, as soon as it can."""
    want = wanted(load_settings().catalog("tiny"), keep_s=KEEP_S, replicas=3)

    async def provisioned() -> bool:
        try:
            await provision(link, want)
        except (TransportUnavailable, ProvisioningRefused):  # the cluster refuses while it does not know of a node
            return False
        return True

    await eventually(provisioned, within_s=60)


class Gateway:
    """`warmlane gateway` of a cluster, with *options* and *environment*."""

    def __init__(
        self, nats_url: str, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = folder / "gateway.log"
        arguments = ["--port", str(self.port), "--nats-url", nats_url, "--data-dir", str(folder), *options]
        with self.log_file.open("ab") as log:
            command = warmlane_command("gateway", *arguments)
            env = clean_environment() | dict(environment or {})
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def wait_until_answering(self) -> None:
        eventually_sync(self._answers, within_s=60)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log_file.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", verify=NO_TLS, timeout=BOUND_S).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


@contextlib.contextmanager
def artifacts_of(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that shares the artifacts: a folder, or a bucket of a SeaweedFS of our own."""
    if kind == "folder":
        yield {"WARMLANE_ARTIFACTS": str(folder / "artifacts")}
        return
    (folder / "seaweedfs").mkdir()
    store = Seaweed(folder / "seaweedfs")
    try:
        store.start()
        yield {"WARMLANE_ARTIFACTS": f"s3://{BUCKET}/cluster"} | aws_environment(store.endpoint)
    finally:
        store.stop()


@contextlib.contextmanager
def system(cluster: Cluster, folder: Path, environment: Mapping[str, str]) -> Iterator[list[Gateway]]:
    """Two gateways, a lane of anisora, and a degraded worker, which serves phr00t. They are real processes that share
    only nats-servers and artifacts."""
    homes = {name: folder / name for name in ("gateway-0", "gateway-1", "lane", "degraded")}
    for home in homes.values():
        home.mkdir()
    gateways = [Gateway(cluster.address, homes[name], environment=environment) for name in ("gateway-0", "gateway-1")]
    lane = LaneProcess(cluster.address, homes["lane"], model="anisora", environment=environment)
    degraded = DegradedProcess(cluster.address, homes["degraded"], "degraded-0", "cpu-0", **environment)
    try:
        for gateway in gateways:
            gateway.wait_until_answering()
        yield gateways
    finally:
        lane.stop()
        degraded.stop()
        for gateway in gateways:
            gateway.stop()


@contextlib.asynccontextmanager
async def _started(cluster: Cluster, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[list[Gateway]]:
    """`system`, without blocking the event loop."""
    context = system(cluster, folder, environment)
    gateways = await asyncio.to_thread(context.__enter__)
    try:
        yield gateways
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
