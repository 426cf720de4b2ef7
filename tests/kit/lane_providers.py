"""`warmlane supervisor` with either provider of lanes: on this machine's slots, and on a real API server, where a test
writes the status of pods in the kubelet's place."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final, Protocol

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.topology import LANES
from ops.lanes.kubernetes.deletion_cost import ANNOTATION
from ops.machine.processes import warmlane_command
from ops.nats.link import NatsLink
from tests.kit.gateway import System
from tests.kit.kubernetes import ApiServer, Helm
from tests.kit.reported_lanes import Lanes
from tests.kit.support import BOUND_S, clean_environment, eventually, logged_in, shared_forks

ELSEWHERE: Final = "--set=profile=production,artifacts.s3=s3://b/p,nats.mode=external,nats.url=nats://nats:4222"
ENTRY: Final = "w-warmlane-lane-phr00t"
SELECTED: Final = "--selector=warmlane/lane=phr00t"


def _popen(command: list[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment() | shared_forks() | environment)


class Rig:
    """`warmlane supervisor` on the server of a gateway, and the reports in KV `lanes`."""

    def __init__(self, system: System, folder: Path, lanes: Lanes) -> None:
        self.system, self.folder, self._lanes = system, folder, lanes

    @property
    def log(self) -> list[dict[str, Any]]:
        return logged_in(self.folder / "supervisor.log")

    def now(self, model: str) -> list[LaneHeartbeat]:
        """The last report of each lane of *model*."""
        last = dict(self._lanes.reported)
        return [each for each in last.values() if each is not None and each.model == model]

    async def says(self, model: str, state: LaneState, *texts: str) -> LaneHeartbeat:
        """The first report with *state*, and *texts* in its detail."""

        async def look() -> LaneHeartbeat | None:
            reports = (each for each in self.now(model) if each.state is state)
            return next((each for each in reports if all(text in each.detail for text in texts)), None)

        try:
            found = await eventually(look)
        except AssertionError:
            raise AssertionError(f"nothing is {state} with {texts}: {self.now(model)}; {self.log[-10:]}") from None
        assert found is not None
        return found

    async def has_only(self, model: str, *states: LaneState) -> None:
        """Returns when the lanes of *model* are reported with exactly these *states*; earlier reports do not count.

        The supervisor reports a replica without a pod under a name of its own. For a moment that report stands beside
        the report of the new pod.
        """
        await eventually(lambda: asyncio.sleep(0, [each.state for each in self.now(model)] == [*states]))

    async def routes(self, model: str, outcome: str) -> None:
        """Returns when the gateway routes requests for *model* with this *outcome*."""

        async def look() -> bool:
            task = await self.system.submit(model)
            decision = (await self.system.record(task["id"]))[0].decision
            await self.system.http.delete(f"/tasks/{task['id']}")
            return decision is not None and decision.outcome == outcome

        await eventually(look)

    async def is_gone(self, name: str) -> None:
        """Returns when nothing is reported under *name*."""
        await eventually(lambda: asyncio.sleep(0, self._lanes.last(name) is None))

    async def scaled(self, times: int) -> None:
        """Returns when the supervisor has logged `scaled` at least *times* times."""
        await eventually(lambda: asyncio.sleep(0, sum(line["event"] == "scaled" for line in self.log) >= times))

    async def logs(self, event: str, **fields: object) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            found = (line for line in self.log if line["event"] == event)
            return next((line for line in found if line.items() >= fields.items()), None)

        found = await eventually(look)
        assert found is not None
        return found


@asynccontextmanager
async def supervised(system: System, folder: Path, *options: str, **environment: str) -> AsyncIterator[Rig]:
    """Runs the supervisor until the block ends. It must then exit with 0, and leave no report of its own."""
    lanes = Lanes()
    link = await NatsLink.connect(system.gateway.nats.url, name="looker")
    await (await link.watches.start(LANES, lanes.on_entry)).wait()
    folder.mkdir(exist_ok=True)
    nats = ("--nats-url", system.gateway.nats.address)
    command = warmlane_command("supervisor", *nats, "--data-dir", str(folder), *options)
    with (folder / "supervisor.log").open("ab") as log:
        process = await asyncio.to_thread(_popen, command, log, environment)
    rig = Rig(system, folder, lanes)
    try:
        yield rig
        process.terminate()
        assert await asyncio.to_thread(process.wait, BOUND_S) == 0, (folder / "supervisor.log").read_text()
        await eventually(lambda: asyncio.sleep(0, all(each.slot for each in rig.now("phr00t"))))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(process.wait, BOUND_S)
        await link.close()


class Provider(Protocol):
    """What the suite needs of a provider, and the texts in which the provider reports."""

    no_room: str
    ends: str

    def options(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The options and the environment of a supervisor that has no room for a lane."""
        ...

    def make_room(self) -> tuple[str, ...]:
        """Options with which a lane has room, and ends before it is warm."""
        ...

    async def end_again_and_again(self, rig: Rig) -> None:
        """Brings the lane to its end, if it does not end by itself."""
        ...


class OnThisMachine:
    no_room = "the only slot is the degraded worker's"
    ends = "times in a row before it was warm"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def options(self) -> tuple[tuple[str, ...], dict[str, str]]:
        return ("--gpus", "1"), {}

    def make_room(self) -> tuple[str, ...]:
        self._folder.mkdir()
        (self._folder / "artifacts").write_text("no folder")
        return ("--gpus", "2")

    async def end_again_and_again(self, rig: Rig) -> None:
        pass


class OnCluster:
    no_room = "Insufficient nvidia.com/gpu"
    ends = "the last end: OOMKilled, exit code 137"

    def __init__(self, server: ApiServer, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self.server, self.folder, self.name = server, folder, name
        self.url = server.url
        self._helm = Helm(folder)
        server.kubectl("create", "namespace", name)
        self.node("bare")
        self.install()

    def install(self, *values: str) -> None:
        place = f"--set=worker.nodeSelector.place={self.name},worker.card.by=device-plugin"
        ours = '--set-json=lanes={"phr00t":{"replicas":1},"anisora":null}', "--set=supervisor.lanes.phr00t=1"
        to = f"--namespace={self.name}", f"--kubeconfig={self.server.kubeconfig}"
        self._helm.upgrade(*to, ELSEWHERE, place, *ours, *values)

    def account(self) -> str:
        """A kubeconfig of the supervisor's own account, as the chart makes it."""
        token = self.server.kubectl("create", "token", "w-warmlane-supervisor", f"--namespace={self.name}").strip()
        config = json.loads(self.server.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": token}
        config["clusters"][0]["cluster"]["server"] = self.url
        path = self.folder / "account"
        path.write_text(json.dumps(config))
        return str(path)

    def options(self) -> tuple[tuple[str, ...], dict[str, str]]:
        return ("--provider=kubernetes", f"--namespace={self.name}", "--release=w"), {"KUBECONFIG": self.account()}

    def make_room(self) -> tuple[str, ...]:
        self.node("node", **{"nvidia.com/gpu": "8"})
        return ()

    def node(self, name: str, **capacity: str) -> str:
        """The name of a node for the lanes of this namespace."""
        full = f"{self.name}-{name}"
        self.server.node(full, **capacity)
        self.server.kubectl("label", "node", full, f"place={self.name}")
        return full

    @property
    def authority(self) -> str:
        """The certificates of the server."""
        config = json.loads(self.server.kubeconfig.read_text())
        return str(config["clusters"][0]["cluster"]["certificate-authority"])

    def pods(self) -> list[dict[str, Any]]:
        found = self.server.get("pods", f"--namespace={self.name}", SELECTED)
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def placed(self) -> str:
        """The pod's name, once it has a node."""
        return self.all_placed(1)[0]

    def all_placed(self, count: int) -> list[str]:
        """The names of the pods, once there are *count* and each has a node."""

        def names() -> list[str]:
            found = [each["metadata"]["name"] for each in self.pods() if each["spec"].get("nodeName")]
            return found if len(found) == count else []

        return self.server.eventually(names)

    def kubelet_says(
        self, name: str, state: dict[str, Any], last: dict[str, Any] | None = None, *, restarts: int = 0
    ) -> None:
        one = {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": restarts}
        one |= {"state": state, "lastState": last or {}}
        status = {"status": {"phase": "Running", "containerStatuses": [one]}}
        arguments = f"--namespace={self.name}", "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}"
        self.server.kubectl("patch", "pod", name, *arguments)

    def kubelet_says_ready(self, name: str, *, since: datetime) -> None:
        """Reports in the kubelet's place that the pod runs, and has been ready *since* then."""
        self.kubelet_says(name, {"running": {"startedAt": f"{since:%Y-%m-%dT%H:%M:%SZ}"}})
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": f"{since:%Y-%m-%dT%H:%M:%SZ}"}
        status = json.dumps({"status": {"conditions": [ready]}})
        patch = f"--namespace={self.name}", "--subresource=status", f"--patch={status}"
        self.server.kubectl("patch", "pod", name, *patch)

    def costs(self) -> dict[str, str]:
        """What each pod costs to delete, by its annotation."""
        found = [each["metadata"] for each in self.pods()]
        return {each["name"]: each.get("annotations", {}).get(ANNOTATION, "") for each in found}

    async def end_again_and_again(self, rig: Rig) -> None:
        await asyncio.to_thread(lambda: self.kubelet_says(self.placed(), CRASHED, OUT_OF_MEMORY, restarts=3))

    def replicas(self) -> int:
        return int(self.server.get("deployment", ENTRY, f"--namespace={self.name}")["spec"]["replicas"])


CRASHED: Final = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}
TIMES: Final = {"startedAt": "2026-11-27T10:00:00Z", "finishedAt": "2026-11-27T10:01:00Z"}
OUT_OF_MEMORY: Final = {"terminated": {"exitCode": 137, "reason": "OOMKilled", **TIMES}}
ONE: Final = "--lanes=phr00t=1"
