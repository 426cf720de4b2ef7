"""`make cluster`: three nats-servers that keep everything three times, killed one after the other under load. Two
gateways and two workers, each with a folder of its own as on a machine of its own, share a bucket of S3.

Every figure comes from outside: answers from a client, and the records that the servers hold at the end.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import httpx
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from contracts.lanes import LaneState
from contracts.settings import load_settings
from contracts.tasks import GenerationTask, TaskStatus, VideoFile, decode_task
from contracts.topology import DEGRADED, TASKS
from ops.ending import end
from ops.machine.processes import warmlane_command
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import ProvisioningRefused, provision, wanted
from ops.nats.server import find_nats_server
from tests.kit.behind import js_of
from tests.kit.degraded import DegradedProcess, leads
from tests.kit.lanes import LaneProcess, heartbeat_of
from tests.kit.s3_servers import BUCKET, Seaweed, aws_environment
from tests.kit.support import KEEP_S, NO_TLS, as_admin, clean_environment, eventually, eventually_sync, free_port

CONFIG: Final = Path(__file__).parents[2] / "ops" / "deploy" / "cluster" / "node.conf"
NODES: Final = ("n1", "n2", "n3")
CLIENTS: Final = 8
# A dead leader is replaced by an election, for which nats-server takes 4 to 9 s.
STALL_S: Final = 15.0
DOWN_S: Final = 2.0
CALM_S: Final = 2.0
# A client gives a request so long, with one Idempotency-Key, before it calls it lost.
PATIENCE_S: Final = 60.0
CLIENT_TIMEOUT_S: Final = 60.0
AGAIN_S: Final = 0.2
TASK_WAIT_S: Final = 5.0
SMALL: Final = {"num_frames": 9, "width": 32, "height": 32}


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
        """What it says at *path*; nothing when it does not answer."""
        with contextlib.suppress(httpx.HTTPError):
            answer: dict[str, Any] = httpx.get(f"{self.monitor}/{path}", timeout=2, verify=NO_TLS).json()
            return answer
        return {}

    def has_caught_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.last_words()
        return self.monitored("healthz").get("status") == "ok"

    def last_words(self) -> str:
        """The end of its log, and how it is."""
        tail = "\n".join(self._log.read_text().splitlines()[-15:])
        return f"{self.name}: {self.monitored('healthz') or 'does not answer'}\n{tail}"


class Cluster:
    """Three of them on free ports of the loopback."""

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
        """The node that decides where streams are."""
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
    """The node that decides what *stream* takes."""

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
        except (TransportUnavailable, ProvisioningRefused):  # refused while a node is not known to be there
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
            return httpx.get(f"{self.url}/healthz", verify=NO_TLS).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Clients that each want one video after the other, and ask again with the same key when they are refused. They
    share the gateways among them.

    None sends before its last task has ended, or 5 s are over: a slow machine is not overloaded, and there are always
    some that send while the cluster elects a leader.
    """

    def __init__(self, https: Sequence[httpx.AsyncClient], models: Sequence[str], *, clients: int = CLIENTS) -> None:
        self._https, self._models, self._clients = https, models, clients
        self.begun_s = self.ended_s = 0.0
        self.accepted: dict[str, float] = {}
        self.refusals: Counter[str] = Counter()
        self.given_up = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until *stop*; returns when every client has had its last answer."""
        self.begun_s = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for number in range(self._clients):
                clients.create_task(self._client(number, stop))
        self.ended_s = time.monotonic()

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        http = self._https[number % len(self._https)]
        for turn, model in enumerate(itertools.cycle(self._models)):
            task_id = await self._submit(http, model, f"client-{number}-turn-{turn}")
            if task_id is not None:
                await http.get(f"/tasks/{task_id}?wait={TASK_WAIT_S:g}")
            if stop.is_set():
                return

    async def _submit(self, http: httpx.AsyncClient, model: str, key: str) -> str | None:
        begun_s = time.monotonic()
        while time.monotonic() < begun_s + PATIENCE_S:
            response = await http.post(
                "/generate", json={"model": model, "prompt": key} | SMALL, headers={"idempotency-key": key}
            )
            body = response.json()
            if response.status_code == 202:
                self.accepted[body["id"]] = time.monotonic()
                return str(body["id"])
            assert response.status_code == 503, body
            self.refusals[f"{response.status_code} {body['code']}"] += 1
            await asyncio.sleep(AGAIN_S)
        self.given_up += 1
        return None

    def longest_stall_s(self, since_s: float | None = None, until_s: float | None = None) -> float:
        """The longest time without an accepted request."""
        since_s, until_s = since_s or self.begun_s, until_s or self.ended_s
        moments = [since_s, *sorted(at_s for at_s in self.accepted.values() if since_s < at_s < until_s), until_s]
        return max(later - sooner for sooner, later in itertools.pairwise(moments))


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the accepted requests. *doubled*: ended more than once, or moved after its end. *videos*: by task,
    what was published."""

    accepted: int
    done: int
    failed: Counter[str]
    lost: int
    doubled: int
    videos: dict[str, VideoFile]


async def outcome(link: NatsLink, accepted: Sequence[str], *, within_s: float = 90) -> Outcome:
    """Waits until every accepted task has ended, and reads what its record went through."""
    seen: dict[str, list[GenerationTask]] = defaultdict(list)

    def note(entry: Entry) -> None:
        if entry.value is not None:
            seen[entry.key].append(decode_task(entry.value))

    await (await link.watches.start(TASKS, note, history=True)).wait()

    async def all_ended() -> bool:
        return all(seen[task_id] and seen[task_id][-1].status.is_terminal for task_id in accepted)

    with contextlib.suppress(AssertionError):  # what has not ended by then is lost
        await eventually(all_ended, within_s=within_s)
    ends = {task_id: [task for task in seen[task_id] if task.status.is_terminal] for task_id in accepted}
    return Outcome(
        accepted=len(accepted),
        done=sum(bool(tasks) and tasks[-1].status is TaskStatus.DONE for tasks in ends.values()),
        failed=Counter(tasks[-1].error.code.value for tasks in ends.values() if tasks and tasks[-1].error is not None),
        lost=sum(not tasks for tasks in ends.values()),
        doubled=sum(
            len(tasks) > 1 or bool(tasks and seen[task_id][-1] is not tasks[0]) for task_id, tasks in ends.items()
        ),
        videos={task_id: tasks[-1].video for task_id, tasks in ends.items() if tasks and tasks[-1].video is not None},
    )


async def not_served(https: Sequence[httpx.AsyncClient], videos: Mapping[str, VideoFile]) -> int:
    """How many times a gateway does not send a video of *videos* whole: each is asked for each."""
    missing = 0
    for http in https:
        for task_id, video in videos.items():
            answer = await http.get(f"/tasks/{task_id}/video")
            missing += answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != video.sha256
    return missing


class Kill(Struct, frozen=True):
    """One kill: which node it was, when (monotonic), and when the cluster was whole again."""

    what: str
    node: str
    at_s: float
    whole_s: float


async def kill_in_turn(cluster: Cluster, link: NatsLink, *, seconds: float, console: Console) -> list[Kill]:
    """Kills one node after the other for what it is just then, each as soon as the one before is back."""
    kills: list[Kill] = []
    begun_s = time.monotonic()
    for what in itertools.cycle((f"leader of {DEGRADED}", "meta leader", "the gateway's server", f"leader of {TASKS}")):
        await asyncio.sleep(CALM_S)  # load on a whole cluster, between two kills
        if time.monotonic() > begun_s + seconds:
            return kills
        match what:
            case "meta leader":
                name = await asyncio.to_thread(cluster.meta_leader)
            case "the gateway's server":
                name = await asyncio.to_thread(cluster.server_of, "gateway")
            case _:
                name = await stream_leader(link, DEGRADED if DEGRADED in what else "KV_tasks")
        at_s = time.monotonic()
        cluster.nodes[name].kill()
        console.print(f"{at_s - begun_s:5.1f} s  kill -9 of {name}, {what}", highlight=False)
        await asyncio.sleep(DOWN_S)
        cluster.nodes[name].start()
        await asyncio.to_thread(cluster.wait_until_whole)
        kills.append(Kill(what, name, at_s, time.monotonic()))
    return kills


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Seen(Struct, frozen=True, kw_only=True):
    """All that was observed in one run."""

    load: Load
    kills: list[Kill]
    outcome: Outcome
    not_served: int


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
    """Two gateways, a lane of anisora, and a degraded worker, which serves phr00t: real processes, and nothing in
    common but nats-servers and artifacts."""
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


async def measure(
    cluster: Cluster, folder: Path, environment: Mapping[str, str], *, seconds: float, console: Console
) -> Seen:
    link = await NatsLink.connect(cluster.url, name="observer")
    try:
        await provision_three(link)
        async with _started(cluster, folder, environment) as gateways, contextlib.AsyncExitStack() as leave:

            async def warm() -> bool:
                lane = await heartbeat_of(link, "anisora-0")
                return lane is not None and lane.state is LaneState.WARM

            await eventually(warm, within_s=90)
            await leads(link, "degraded-0")
            https = [
                await leave.enter_async_context(httpx.AsyncClient(base_url=each.url, timeout=CLIENT_TIMEOUT_S))
                for each in gateways
            ]
            load = Load(https, ("anisora", "phr00t"))
            stop = asyncio.Event()
            sending = asyncio.create_task(load.run(stop))
            try:
                kills = await kill_in_turn(cluster, link, seconds=seconds, console=console)
                stop.set()
                await sending
            finally:
                await end(sending)
            ends = await outcome(link, list(load.accepted))
            return Seen(load=load, kills=kills, outcome=ends, not_served=await not_served(https, ends.videos))
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def _started(cluster: Cluster, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[list[Gateway]]:
    """`system`, without holding up the event loop."""
    context = system(cluster, folder, environment)
    gateways = await asyncio.to_thread(context.__enter__)
    try:
        yield gateways
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


class Verdict(Struct, frozen=True):
    """One line of the table; *missed_by* is empty when it was met."""

    what: str
    measured: str
    asked: str
    missed_by: str


def judge(seen: Seen) -> list[Verdict]:
    """What the run says."""
    load, ends = seen.load, seen.outcome
    stall_s = load.longest_stall_s()

    def zero(what: str, count: int) -> Verdict:
        return Verdict(what, str(count), "0", str(count) if count else "")

    return [
        zero(f"lost, of {ends.accepted} accepted", ends.lost),
        zero("ended twice, or moved after their end", ends.doubled),
        zero("ended without a video", sum(ends.failed.values())),
        zero(f"not served whole, of {len(ends.videos)} videos at two gateways", seen.not_served),
        zero(f"requests that were not accepted within {PATIENCE_S:g} s", load.given_up),
        Verdict(
            "longest time without an accepted request",
            f"{stall_s:.1f} s",
            f"≤ {STALL_S:g} s",
            f"{stall_s - STALL_S:.1f} s" if stall_s > STALL_S else "",
        ),
        Verdict(
            "servers killed",
            str(len(seen.kills)),
            "≥ 3",
            str(3 - len(seen.kills)) if len(seen.kills) < 3 else "",
        ),
    ]


def report(console: Console, seen: Seen, verdicts: Sequence[Verdict]) -> None:
    """Prints each kill, what was refused meanwhile, and the verdicts."""
    table = Table("killed", "it was", "no request accepted for", "whole again after", title="Kills")
    for kill, following in itertools.zip_longest(seen.kills, seen.kills[1:]):
        until_s = following.at_s if following is not None else seen.load.ended_s
        stall_s = seen.load.longest_stall_s(kill.at_s, until_s)
        table.add_row(kill.node, kill.what, f"{stall_s:.1f} s", f"{kill.whole_s - kill.at_s:.1f} s")
    console.print(table)
    refusals = ", ".join(f"{count} x {code}" for code, count in sorted(seen.load.refusals.items())) or "none"
    console.print(f"refused, and asked again: {refusals}", highlight=False)
    table = Table("what", "measured", "asked", "", title="Cluster")
    for verdict in verdicts:
        mark = f"[red]missed by {verdict.missed_by}[/]" if verdict.missed_by else "[green]met[/]"
        table.add_row(verdict.what, verdict.measured, verdict.asked, mark)
    console.print(table)


@click.command(epilog="Example:\n\n  python -m tests.drills.cluster --seconds 30")
@click.option("--seconds", type=click.FloatRange(1), default=90, show_default=True, help="How long to kill servers.")
@click.option(
    "--artifacts",
    type=click.Choice(["seaweedfs", "folder"]),
    default="seaweedfs",
    show_default=True,
    help="Where videos are: in a bucket of a SeaweedFS that is started for it, or in a folder that all share.",
)
def command(seconds: float, artifacts: str) -> None:
    """Run three nats-servers and a system on them, kill one after the other, and judge what came of the requests.

    Exit status 1 on a miss.
    """
    console = Console()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        cluster = Cluster(folder)
        try:
            cluster.start()
            with artifacts_of(artifacts, folder) as environment:
                seen = asyncio.run(measure(cluster, folder, environment, seconds=seconds, console=console))
        finally:
            cluster.stop()
    verdicts = judge(seen)
    report(console, seen, verdicts)
    raise SystemExit(1 if any(verdict.missed_by for verdict in verdicts) else 0)


if __name__ == "__main__":
    command()
