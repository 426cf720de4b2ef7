"""`make kubernetes`: the chart on the cluster that KUBECONFIG names, under load, while the drill does to it what may
happen to a cluster. The drill makes a namespace of its own and removes it again. Every figure comes from clients inside
the cluster, from the records in nats-server, and from the cluster's API.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from tests.drills.kubernetes_cluster import CHART, NAME, RELEASE, Cluster, Load, nothing_to_drill
from tests.drills.kubernetes_report import Drill, Outcome, faults_of, longest_pause_s, markdown, outcome_of, shown_in
from tests.kit.support import eventually_sync

# Enough to pull images and load models.
WARM_S: Final = 1_800.0
ENOUGH: Final = 5
# Kills every process of the container but itself; process 1 is the pod's own.
KILL: Final = """
import contextlib, os, signal
for name in os.listdir("/proc"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process may end meanwhile
        if name.isdigit() and int(name) not in (1, os.getpid()) and os.stat(f"/proc/{name}").st_uid == os.getuid():
            os.kill(int(name), signal.SIGKILL)
"""


class Measured:
    """The measurements and notes of a drill."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begun_s = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun_s


class Skipped(Exception):
    """The cluster cannot show this. The text says why."""


Act = Callable[[Cluster, Load, Measured], None]
DRILLS: Final[list[tuple[Drill, Act, int | None]]] = []


def drill(name: str, what: str, *, cause: str = "", count: int | None = None) -> Callable[[Act], Act]:
    """Adds a drill. Its function is called while the load runs. The load sends *count* tasks; None: it sends until the
    function returns."""

    def add(act: Act) -> Act:
        DRILLS.append((Drill(name=name, what=what, cause=cause), act, count))
        return act

    return add


def lane_of(cluster: Cluster, model: str) -> str:
    """A lane's pod."""
    return cluster.pods(f"app.kubernetes.io/component=lane,warmlane/model={model}")[0]


# ── the drills ───────────────────────────────────────────────────────────────────────────────────────────────────────


@drill("video", "Each model makes videos, with nothing happening beside.", count=6)
def video(cluster: Cluster, load: Load, measured: Measured) -> None:
    with measured.timed("6 videos after"):
        load.wait_for("ended", 6)


@drill(
    "lane deleted",
    "`kubectl delete pod` of a lane in the middle of a run: it drains, and another takes its place.",
    cause="leaving|draining|starting|no lane",
)
def lane_deleted(cluster: Cluster, load: Load, measured: Measured) -> None:
    with measured.timed("warm again after"):
        cluster.kubectl("delete", "pod", lane_of(cluster, "anisora"), "--wait=false")
        cluster.warm()


@drill(
    "lane killed",
    "kill -9 of a lane's processes: the kubelet starts the container again.",
    cause="starting|no lane|silent",
)
def lane_killed(cluster: Cluster, load: Load, measured: Measured) -> None:
    pod = lane_of(cluster, "phr00t")
    before = restarts(cluster, pod)
    with measured.timed("warm again after"):
        cluster.kubectl("exec", pod, "--", "python", "-c", KILL, check=False)
        eventually_sync(lambda: restarts(cluster, pod) > before, within_s=WARM_S, every_s=0.2)
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", f"--timeout={WARM_S:.0f}s", timeout_s=2 * WARM_S)


def restarts(cluster: Cluster, pod: str) -> int:
    """How often the kubelet has started the container of *pod* again."""
    (state,) = cluster.one("pod", pod)["status"]["containerStatuses"]
    return int(state["restartCount"])


@drill("gateways rolled", "`kubectl rollout restart` of the gateways while 200 tasks run.", count=200)
def gateways_rolled(cluster: Cluster, load: Load, measured: Measured) -> None:
    load.wait_for("ended", 10)
    with measured.timed("rolled after"):
        cluster.kubectl("rollout", "restart", f"deployment/{NAME}-gateway")
        cluster.kubectl("rollout", "status", f"deployment/{NAME}-gateway", "--timeout=5m")
    load.wait_for("ended", 200 - load.count("ended"), within_s=900)


@drill(
    "degraded leader killed",
    "A model is switched to the degraded worker, and kill -9 ends all processes of its leader.",
    cause="^leader ",
)
def leader_killed(cluster: Cluster, load: Load, measured: Measured) -> None:
    switch = 'WARMLANE_API_KEY=$(cat /tmp/key) warmlane lane-mode anisora "$1"'
    cluster.admin("sh", "-c", switch, "switch", "degraded")
    load.wait_for("ended", ENOUGH)
    leaders = [each["leader"] for each in load.said if each["what"] == "status"]
    before = leaders[-1]
    with measured.timed("another one leads after"):
        cluster.kubectl("exec", before, "--", "python", "-c", KILL, check=False)
        eventually_sync(
            lambda: [each["leader"] for each in load.said if each["what"] == "status"][-1] not in (before, None),
            within_s=300,
        )
    load.wait_for("ended", ENOUGH)
    cluster.admin("sh", "-c", switch, "switch", "auto")
    with measured.timed("standby again after"):
        cluster.warm()


@drill("nats-server killed", "The pod of nats-server is killed. Nothing is accepted while it is away.")
def nats_killed(cluster: Cluster, load: Load, measured: Measured) -> None:
    pods = cluster.pods("app.kubernetes.io/component=nats")
    if not pods:
        raise Skipped("nats-server is not the chart's")
    cluster.kubectl("delete", "pod", pods[0], "--force", "--grace-period=0")
    with measured.timed("ready again after"):
        eventually_sync(lambda: cluster.kubectl("get", "pod", pods[0], "--ignore-not-found"), within_s=60)
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pods[0]}", "--timeout=5m")
    load.wait_for("ended", ENOUGH)
    measured.seconds["longest without an accepted task"] = longest_pause_s(load.said)
    cluster.warm()


@drill(
    "node drained",
    "`kubectl drain` of the node of a lane, for lanes alone, and back.",
    cause="starting|no lane|draining",
)
def node_drained(cluster: Cluster, load: Load, measured: Measured) -> None:
    node = cluster.one("pod", lane_of(cluster, "anisora"))["spec"]["nodeName"]
    # on a cluster of one node, the other pods could go nowhere
    only = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=lane"
    with measured.timed("drained after"):
        drain = [
            "drain",
            node,
            "--pod-selector",
            only,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=30m",
        ]
        cluster.kubectl(*drain, timeout_s=2_000)
    load.wait_for("ended", ENOUGH)
    with measured.timed("warm again after"):
        cluster.kubectl("uncordon", node)
        cluster.warm()


@drill(
    "image changed",
    "Another tag of the workers' image: the lanes drain and come back one by one.",
    cause="starting|no lane|draining",
)
def image_changed(cluster: Cluster, load: Load, measured: Measured) -> None:
    tag = os.environ.get("WARMLANE_DRILL_OTHER_TAG", "")
    with measured.timed("all warm again after"):
        cluster.change(*(["--set", f"images.worker.tag={tag}"] if tag else ["--set", "podAnnotations.drill=again"]))
        cluster.warm()
    measured.notes.append(
        f"the other tag was {tag}" if tag else "no WARMLANE_DRILL_OTHER_TAG is set: an annotation was changed instead"
    )
    cluster.install()


@drill("quota", "A ResourceQuota allows no further pod, and a second lane of anisora is wanted.", cause="quota_denied")
def quota(cluster: Cluster, load: Load, measured: Measured) -> None:
    ended = {"Succeeded", "Failed"}  # these no longer count against the quota
    count = sum(pod["status"]["phase"] not in ended for pod in cluster.objects("pods"))
    cluster.kubectl("create", "quota", "drill", f"--hard=pods={count}")
    try:
        cluster.change("--set", "lanes.anisora.replicas=2")
        measured.notes.append(condition(cluster, "ReplicaFailure"))
        load.wait_for("ended", 2 * ENOUGH)
    finally:
        cluster.kubectl("delete", "quota", "drill")
        cluster.change()
    cluster.warm()


def condition(cluster: Cluster, kind: str) -> str:
    """The condition *kind* of the lane's Deployment."""

    def said() -> str:
        found = cluster.one("deployment", f"{NAME}-lane-anisora")
        conditions = {each["type"]: each for each in found["status"].get("conditions", [])}
        return f"{kind}: {conditions[kind]['message']}" if kind in conditions else ""

    return str(eventually_sync(said, within_s=60))


@drill("no card left", "A lane asks for a card (`nvidia.com/gpu`), and no node has one left.", cause="capacity_denied")
def no_card(cluster: Cluster, load: Load, measured: Measured) -> None:
    cards = sum(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in cluster.objects("nodes"))
    # an entry of its own, which apart from the card needs little that a small cluster may lack
    asks = "model=anisora", "card.by=device-plugin", "resources.requests.cpu=1m", "resources.requests.memory=64Mi"
    wanted = ",".join(f"lanes.more.{each}" for each in (*asks, f"replicas={cards + 1}"))
    with cluster.changed("--set", wanted):
        found = eventually_sync(lambda: unschedulable(cluster), within_s=300)
        measured.notes.append(f"{cards} cards in the cluster; the pod without one: {found}")
        load.wait_for("ended", 2 * ENOUGH)


def unschedulable(cluster: Cluster) -> str:
    """Why the scheduler placed a lane's pod on no node; empty where no pod waits for a card."""
    for pod in cluster.objects("pods", "app.kubernetes.io/component=lane"):
        for each in pod["status"].get("conditions", []):
            if each.get("reason") == "Unschedulable" and "nvidia.com/gpu" in each["message"]:
                return str(each["message"])
    return ""


@drill("out of memory", "A lane's memory limit is below what it needs.", cause="phr00t (unhealthy|crash_looping) ")
def out_of_memory(cluster: Cluster, load: Load, measured: Measured) -> None:
    limits = "lanes.phr00t.resources.limits.memory=250Mi,lanes.phr00t.resources.requests.memory=200Mi"
    with cluster.changed("--set", limits):
        eventually_sync(
            lambda: any(each.startswith(("phr00t unhealthy", "phr00t crash_looping")) for each in shown_in(load.said)),
            within_s=300,
        )
        measured.notes.append(f"the cluster says of its containers: {', '.join(ends_of(cluster)) or 'nothing'}")
        load.wait_for("ended", 2 * ENOUGH)


def ends_of(cluster: Cluster) -> list[str]:
    """How containers of phr00t's lanes ended that exited with an error."""
    found = []
    for pod in cluster.objects("pods", "warmlane/model=phr00t"):
        for each in pod["status"].get("containerStatuses", []):
            ended = each["lastState"].get("terminated") or each["state"].get("terminated")
            if ended and ended["exitCode"]:
                found.append(f"{ended['reason']}, exit {ended['exitCode']}")
    return found


@drill("network policy", "A pod that is not Warmlane's asks nats-server for a connection.")
def network_policy(cluster: Cluster, load: Load, measured: Measured) -> None:
    ask = f"import socket; socket.create_connection(('{NAME}-nats', 4222), 5); print('connected')"
    image = cluster.objects("deployments", "app.kubernetes.io/component=gateway")[0]["spec"]["template"]["spec"][
        "containers"
    ][0]
    pull = f"--image-pull-policy={image['imagePullPolicy']}"
    cluster.kubectl(
        "run", "stranger", f"--image={image['image']}", pull, "--restart=Never", "--command", "--", "python", "-c", ask
    )
    try:
        cluster.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/stranger", "--timeout=60s", check=False
        )
        if "connected" in cluster.kubectl("logs", "stranger", check=False):
            raise Skipped("the network plugin enforces no NetworkPolicy: a stranger reached nats-server")
        measured.notes.append("a stranger did not reach nats-server")
    finally:
        cluster.kubectl("delete", "pod", "stranger", "--wait=false")


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_one(cluster: Cluster, each: Drill, act: Act, count: int | None, options: Mapping[str, Any]) -> Outcome:
    """Does *act* under load."""
    measured = Measured()
    skipped = broke = ""
    name = each.name.replace(" ", "-") + f"-{int(time.time())}"
    with cluster.load(
        name, options["models"], clients=options["clients"], count=count, profile=options["profile"]
    ) as load:
        if count is None:
            load.wait_for("ended", ENOUGH)
        try:
            act(cluster, load, measured)
        except Skipped as reason:
            skipped = str(reason)
        except (AssertionError, RuntimeError) as error:
            broke = str(error)
        if count is None and not skipped and not broke:
            load.wait_for("ended", ENOUGH)
    if skipped:
        return Outcome(drill=each, skipped=skipped)
    return outcome_of(each, load.said, seconds=measured.seconds, notes=measured.notes, broke=broke)


@click.command()
@click.option("--namespace", default="warmlane-drill", show_default=True, help="Made for the drills, and removed.")
@click.option("--helm", "helm_arguments", multiple=True, help="A further argument of helm, as in --helm=--values=FILE.")
@click.option("--chart", default=CHART, type=click.Path(path_type=Path), help="Another one than this checkout's.")
@click.option("--models", default="anisora,phr00t", show_default=True)
@click.option("--clients", default=4, show_default=True, type=click.IntRange(1))
@click.option("--profile", default="tiny", show_default=True)
@click.option("--only", multiple=True, help="The name of a drill; may be repeated. [default: all]")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes.")
@click.option("--keep", is_flag=True, help="Leave everything in the namespace.")
def main(
    namespace: str,
    chart: Path,
    helm_arguments: tuple[str, ...],
    only: tuple[str, ...],
    out: Path | None,
    keep: bool,
    **options: Any,
) -> None:
    """Install the chart on the cluster that KUBECONFIG names, and drill it under load."""
    console = Console()
    if why := nothing_to_drill():
        console.print(f"skipped: {why}. docs/kubernetes.md says what the drills need.")
        return
    options["models"] = options["models"].split(",")
    cluster = Cluster(namespace, chart, helm_arguments)
    begun_s = time.monotonic()
    cluster.begin()
    ready_s = time.monotonic() - begun_s
    console.print(f"all ready after {ready_s:.1f} s", highlight=False)
    outcomes: list[Outcome] = []
    try:
        for each, act, count in DRILLS:
            if not only or each.name in only:
                outcomes.append(run_one(cluster, each, act, count, options))
                found = outcomes[-1]
                verdict = (
                    f"not done: {found.skipped}" if found.skipped else "; ".join(faults_of(found)) or "as it has to be"
                )
                console.print(f"{each.name}: {found.done} of {found.accepted} done; {verdict}", highlight=False)
    finally:
        if not keep:
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    if out is not None:
        version = cluster.version()
        nodes = cluster.objects("nodes")
        about = {
            "Kubernetes": version,
            "nodes": str(len(nodes)),
            "container runtime": nodes[0]["status"]["nodeInfo"]["containerRuntimeVersion"],
            "clients": str(options["clients"]),
            "profile": options["profile"],
            "installed and every lane warm after": f"{ready_s:.1f} s",
        }
        out.write_text(markdown(outcomes, about=about))
    if any(faults_of(each) for each in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
