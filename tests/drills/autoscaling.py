"""`make autoscaling`: the chart on the cluster that KUBECONFIG names, which must have KEDA. A load rises and falls, and
lanes follow it by Warmlane's own demand. The drill makes a namespace of its own and removes it again.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from tests.drills.autoscaling_report import LanePod, Look, Seen, judge, markdown, merged
from tests.drills.kubernetes_cluster import CHART, NAME, Cluster, Load, nothing_to_drill
from tests.kit.support import eventually_sync

MODEL: Final = "anisora"
LANE: Final = f"{NAME}-lane-{MODEL}"
SELECTED: Final = f"app.kubernetes.io/component=lane,warmlane/model={MODEL}"
CRD: Final = "scaledobjects.keda.sh"
SECRET: Final = "demand"
LOOK_EVERY_S: Final = 2.0
# How long a load stays the same after its lanes have followed it: a lane that the autoscaler adds or removes without
# need shows in this time.
STAYS_S: Final = 30.0
# Enough for the autoscaler, a cold start and a cool-down for each lane, on a slow machine.
FOLLOWS_S: Final = 1_800.0


class Watch:
    """Looks at the cluster until it is ended."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.looks: list[Look] = []
        self.pods: dict[str, LanePod] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(timeout=60)

    def wait_for(self, ready: int, staying: int) -> None:
        """Returns when so many lanes are warm, and so many not asked to leave."""

        def is_so() -> bool:
            last = self.looks[-1] if self.looks else None
            return last is not None and last.ready >= ready and last.staying == staying == last.wanted

        eventually_sync(is_so, within_s=FOLLOWS_S, every_s=0.5)

    def _follow(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self.looks.append(self._look())
            except (RuntimeError, KeyError, ValueError):  # the API server was busy; the next look sees it
                continue

    def _look(self) -> Look:
        found = json.loads(self._cluster.kubectl("get", "pods,deployments,hpa", "--output", "json"))["items"]
        of = {kind: [each for each in found if each["kind"] == kind] for kind in ("Pod", "Deployment")}
        pods = [each for each in of["Pod"] if each["metadata"]["labels"].get("warmlane/model") == MODEL]
        self.pods = merged(self.pods, pods)
        staying = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
        lane = next(each for each in of["Deployment"] if each["metadata"]["name"] == LANE)
        return Look(
            at=datetime.now(UTC),
            wanted=lane["spec"]["replicas"],
            demand_for_each=demand_shown(found),
            ready=sum(_is_ready(each) for each in staying),
            staying=len(staying),
        )


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


def demand_shown(found: list[dict[str, Any]]) -> float | None:
    """The demand for each lane that the autoscaler read last."""
    for each in found:
        if each["kind"] == "HorizontalPodAutoscaler":
            for metric in each.get("status", {}).get("currentMetrics") or []:
                if text := metric.get("external", {}).get("current", {}).get("averageValue"):
                    return float(text[:-1]) / 1_000 if text.endswith("m") else float(text)
    return None


def let_keda_scale(cluster: Cluster, options: dict[str, Any]) -> None:
    """Makes a key with the scope `metrics` for KEDA, and the chart's ScaledObject. Returns when that is ready."""
    key = cluster.admin("warmlane", "keys", "add", "keda", "--scope", "metrics", "--rate", "0").split()[-1]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"key": key}}
    cluster.kubectl("apply", "--filename", "-", given=json.dumps(secret))
    scaled = {
        "enabled": "true",
        "keySecret": SECRET,
        "maxLanes": options["most"],
        "coolDownSeconds": options["cool_down_s"],
    }
    values = ",".join(f"autoscaling.{name}={value}" for name, value in scaled.items())
    cluster.install("--set", values, *lanes(options), "--set", f"lanes.{MODEL}.scaled=true")
    is_ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    eventually_sync(
        lambda: cluster.kubectl("get", "scaledobject", LANE, f"--output={is_ready}") == "True", within_s=120, every_s=1
    )


def lanes(options: dict[str, Any]) -> list[str]:
    """Helm's options for one model only, whose runs take a while: a small cluster has room for its lanes."""
    steps = f"lanes.{MODEL}.env.WARMLANE_STEP_SECONDS={options['step_s']}"
    return ["--set", "lanes.phr00t.replicas=0,degraded.replicas=1", "--set-string", steps]


@contextmanager
def clients(cluster: Cluster, name: str, count: int, options: dict[str, Any]) -> Iterator[Load]:
    """*count* clients, each of which requests one video after the other until the block ends."""
    run = f"{name}-{int(time.time())}"
    with cluster.load(run, [MODEL], clients=count, count=None, profile=options["profile"]) as load:
        load.wait_for("accepted", 1)
        yield load


def rise_and_fall(cluster: Cluster, options: dict[str, Any], console: Console) -> Seen:
    """One client all the time, and more of them in between."""
    watch = Watch(cluster)
    with ExitStack() as ending:
        watch.begin()
        ending.callback(watch.end)
        with clients(cluster, "always", 1, options) as always:
            watch.wait_for(1, 1)
            time.sleep(STAYS_S)
            rose_at = datetime.now(UTC)
            with clients(cluster, "more", options["most"], options) as more:
                watch.wait_for(options["most"], options["most"])
                console.print(f"{options['most']} lanes are warm", highlight=False)
                time.sleep(STAYS_S)
            fell_at = datetime.now(UTC)
            watch.wait_for(1, 1)
            console.print("one lane again", highlight=False)
            time.sleep(STAYS_S)
    return Seen(
        rose_at=rose_at,
        fell_at=fell_at,
        looks=watch.looks,
        pods=list(watch.pods.values()),
        # the states of lanes are taken from the load that ran all the time
        said=[*(line for line in more.said if line["what"] != "status"), *always.said],
        most=options["most"],
    )


@click.command()
@click.option("--namespace", default="warmlane-scale", show_default=True, help="Made for the drill, and removed.")
@click.option("--helm", "helm_arguments", multiple=True, help="A further argument of helm, as in --helm=--values=FILE.")
@click.option("--chart", default=CHART, type=click.Path(path_type=Path), help="Another one than this checkout's.")
@click.option("--most", default=3, show_default=True, type=click.IntRange(2), help="How many lanes there may be.")
@click.option("--cool-down", "cool_down_s", default=60, show_default=True, type=click.IntRange(0), help="Seconds.")
@click.option("--step-seconds", "step_s", default=1.5, show_default=True, help="How long each step of a run takes.")
@click.option("--profile", default="tiny", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes.")
@click.option("--keep", is_flag=True, help="Leave everything in the namespace.")
def main(
    namespace: str, chart: Path, helm_arguments: tuple[str, ...], out: Path | None, keep: bool, **options: Any
) -> None:
    """Let lanes follow a load that rises and falls, by KEDA, on the cluster that KUBECONFIG names."""
    console = Console()
    if why := nothing_to_drill():
        console.print(f"skipped: {why}. docs/kubernetes.md says what the drills need.")
        return
    cluster = Cluster(namespace, chart, helm_arguments)
    if not cluster.kubectl("get", "crd", CRD, "--ignore-not-found"):
        console.print(f"skipped: the cluster has no {CRD}. Install KEDA there (https://keda.sh/docs/latest/deploy/).")
        return
    try:
        cluster.begin(*lanes(options))
        let_keda_scale(cluster, options)
        seen = rise_and_fall(cluster, options, console)
        version = cluster.version()
        about = {
            "Kubernetes": version,
            "nodes": str(len(cluster.objects("nodes"))),
            "profile": f"{options['profile']}, {options['step_s']:g} s for each step",
            "lanes": f"1 to {options['most']}, a cool-down of {options['cool_down_s']} s",
            "clients": f"1, and {options['most']} more while the load is high",
        }
    finally:
        if not keep:
            cluster.kubectl("delete", "namespace", namespace, "--wait=false", check=False)
    verdict = judge(seen)
    for name, value in verdict.figures.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print("; ".join(verdict.faults) or "as it has to be", highlight=False)
    if out is not None:
        out.write_text(markdown(seen, verdict, about=about))
    if verdict.faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
