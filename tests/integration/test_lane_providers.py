"""What holds of every provider of lanes, and what only a cluster reports: `warmlane supervisor` beside a real gateway,
on this machine's slots and on a real API server with its controllers, its scheduler and its access rules. No pod runs
there: a test writes the status of pods in the kubelet's place.

The supervisor's account is the chart's: what its Role does not allow, it cannot do here either.
"""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.lanes import LaneHeartbeat, LaneState
from contracts.topology import lane_key
from ops.lanes.kubernetes.deletion_cost import BUSY, WARM
from ops.nats.bucket import Bucket
from ops.nats.buckets import HEARTBEATS
from tests.kit.gateway import System
from tests.kit.kubernetes import ApiServer, api_server
from tests.kit.kubernetes_proxy import Answer, proxy_to, status_of
from tests.kit.lane_providers import (
    CRASHED,
    ENTRY,
    ONE,
    OUT_OF_MEMORY,
    OnCluster,
    OnThisMachine,
    Provider,
    supervised,
)
from tests.kit.support import eventually

pytestmark = [pytest.mark.tools, pytest.mark.usefixtures("forks")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("kubernetes")) as api:
        yield api


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OnCluster]:
    name = f"n{abs(hash(request.node.name)) % 10**8}"
    yield OnCluster(server, tmp_path / "cluster", name)
    server.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(params=["process", "kubernetes"])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Provider:
    if request.param == "process":
        return OnThisMachine(tmp_path / "data")
    made: OnCluster = request.getfixturevalue("cluster")
    return made


# ── what holds of every provider ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_lane_without_room_is_denied_for_capacity(
    provider: Provider, bare_system: System, tmp_path: Path
) -> None:
    options, environment = provider.options()
    async with supervised(bare_system, tmp_path / "data", *options, ONE, **environment) as rig:
        denied = await rig.says("phr00t", LaneState.CAPACITY_DENIED, provider.no_room)
        assert denied.slot == ""
        await rig.routes("phr00t", "degraded: capacity")


async def test_the_operators_quota_denies_and_allows_again(
    provider: Provider, bare_system: System, tmp_path: Path
) -> None:
    quota = tmp_path / "quota.json"
    quota.write_text('{"max_lanes": {"phr00t": 0}}')
    options, environment = provider.options()
    async with supervised(bare_system, tmp_path / "data", *options, ONE, f"--quota={quota}", **environment) as rig:
        await rig.says("phr00t", LaneState.QUOTA_DENIED, "the quota file allows 0 of phr00t")
        await rig.routes("phr00t", "degraded: quota")
        quota.write_text('{"max_lanes": {"phr00t": 1}}')
        await rig.says("phr00t", LaneState.CAPACITY_DENIED, provider.no_room)
        await rig.routes("phr00t", "degraded: capacity")
        await rig.has_only("phr00t", LaneState.CAPACITY_DENIED)


async def test_a_lane_that_ends_again_and_again_crash_loops(
    provider: Provider, bare_system: System, tmp_path: Path
) -> None:
    more = provider.make_room()
    options, environment = provider.options()
    async with supervised(bare_system, tmp_path / "data", *options, ONE, *more, **environment) as rig:
        await provider.end_again_and_again(rig)
        await rig.says("phr00t", LaneState.CRASH_LOOPING, provider.ends)
        await rig.routes("phr00t", "degraded: capacity")


# ── what only a cluster says ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_quota_of_the_namespace_denies_a_lane(cluster: OnCluster, bare_system: System, tmp_path: Path) -> None:
    """FR-021 (a): the provider's quota, in the cluster's own words, and only as long as it exists."""
    options, environment = cluster.options()
    spec = {"hard": {"requests.nvidia.com/gpu": "1"}}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "cards"}, "spec": spec}
    cluster.server.apply(quota, namespace=cluster.name)
    used = "get", "quota", "cards", f"--namespace={cluster.name}", "--output=jsonpath={.status.used}"
    cluster.server.eventually(lambda: "nvidia.com/gpu" in cluster.server.asked(*used))
    async with supervised(bare_system, tmp_path / "data", *options, "--lanes=phr00t=2", **environment) as rig:
        denied = await rig.says("phr00t", LaneState.QUOTA_DENIED, "exceeded quota: cards", "limited: requests.nvidia")
        assert denied.worker == f"{ENTRY}-0"
        await rig.routes("phr00t", "degraded: quota")
        assert cluster.replicas() == 2
        cluster.server.kubectl("delete", "quota", "cards", f"--namespace={cluster.name}")
        await rig.is_gone(denied.worker)
        await rig.routes("phr00t", "degraded: capacity")


async def test_a_kubelet_that_cannot_run_a_lane_and_the_lanes_own_word(
    cluster: OnCluster, bare_system: System, tmp_path: Path
) -> None:
    """The lane's own report stands, unless the cluster reports that the process that wrote it is gone."""
    cluster.make_room()
    options, environment = cluster.options()
    async with supervised(bare_system, tmp_path / "data", *options, ONE, **environment) as rig:
        name = await asyncio.to_thread(cluster.placed)
        back_off = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "warmlane-worker:1"'}
        cluster.kubelet_says(name, {"waiting": back_off})
        said = await rig.says("phr00t", LaneState.CAPACITY_DENIED, "ImagePullBackOff: Back-off pulling image")
        assert said.worker == name

        heartbeats = Bucket(bare_system.link, HEARTBEATS)
        key = lane_key("phr00t", name)
        own = LaneHeartbeat(
            model="phr00t",
            worker=name,
            state=LaneState.WARM,
            health_age_s=0.0,
            slot="GPU-1",
            pid=7,
            started_at=datetime(2026, 11, 27, 10, tzinfo=UTC),
        )
        cluster.kubelet_says(name, {"running": {"startedAt": "2026-11-27T10:00:00Z"}})
        await heartbeats.put(key, own)
        await rig.routes("phr00t", "lane")
        assert [each.slot for each in rig.now("phr00t")] == ["GPU-1"]

        cluster.kubelet_says(name, CRASHED, OUT_OF_MEMORY, restarts=1)
        await rig.says("phr00t", LaneState.CRASH_LOOPING, "OOMKilled, exit code 137", "started again 1 times")
        await rig.logs("lane_ended", lane=name, times=1)

        # the next process reports before the kubelet has reported that it runs
        last = await heartbeats.put(key, msgspec.structs.replace(own, started_at=own.started_at + timedelta(hours=1)))
        await rig.routes("phr00t", "lane")
        await heartbeats.delete(key, revision=last)


async def test_a_node_that_is_lost(cluster: OnCluster, bare_system: System, tmp_path: Path) -> None:
    lost = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    cluster.install(f"--set-json=worker.tolerations={json.dumps([lost | {'tolerationSeconds': 0}])}")
    cluster.make_room()
    options, environment = cluster.options()
    async with supervised(bare_system, tmp_path / "data", *options, ONE, **environment) as rig:
        await asyncio.to_thread(cluster.placed)
        node = f"{cluster.name}-node"
        cluster.server.kubectl("taint", "node", node, "node.kubernetes.io/unreachable=:NoExecute")
        await rig.says("phr00t", LaneState.UNHEALTHY, f"its node {node} is lost: DeletionByTaintManager")


async def test_replicas_are_kept_as_they_are_wanted(cluster: OnCluster, bare_system: System, tmp_path: Path) -> None:
    options, environment = cluster.options()
    more = "--lanes=phr00t=3", "--profile=production"  # it needs no card for itself
    async with supervised(bare_system, tmp_path / "data", *options, *more, **environment) as rig:
        await rig.logs("scaled", deployment=ENTRY, replicas=3)
        cluster.server.kubectl("scale", "deployment", ENTRY, f"--namespace={cluster.name}", "--replicas=5")
        await rig.scaled(2)
        assert cluster.replicas() == 3
    assert cluster.replicas() == 3, "lanes stay when their supervisor leaves"


async def test_a_scale_in_takes_the_lane_that_costs_least(
    cluster: OnCluster, bare_system: System, tmp_path: Path
) -> None:
    """The real ReplicaSet controller first deletes the lane that loads, then the idle one, and never the busy one. It
    would otherwise choose the busy one first, because that has been ready for the shortest time."""
    cluster.make_room()
    cluster.install("--set=supervisor.lanes=null,lanes.phr00t.scaled=true")
    scale = "scale", "deployment", ENTRY, f"--namespace={cluster.name}"
    cluster.server.kubectl(*scale, "--replicas=3")
    loads, warm, busy = cluster.all_placed(3)
    now = datetime.now(UTC)
    for name, hours in ((loads, 100), (warm, 10), (busy, 0)):
        cluster.kubelet_says_ready(name, since=now - timedelta(hours=hours))
    heartbeats = Bucket(bare_system.link, HEARTBEATS)
    for name, state in ((loads, LaneState.LOADING), (warm, LaneState.WARM), (busy, LaneState.BUSY)):
        own = LaneHeartbeat(
            model="phr00t", worker=name, state=state, health_age_s=0.0, slot=f"GPU-{name}", pid=7, started_at=now
        )
        await heartbeats.put(lane_key("phr00t", name), own)
    async with proxy_to(cluster.server.url, cluster.authority) as proxy:
        cluster.url = proxy.url
        slow = Answer(429, status_of(429, "TooManyRequests", "please try again later"), {"Retry-After": "1"})
        proxy.instead = lambda asked: slow if asked.startswith("PATCH") else None
        options, environment = cluster.options()
        async with supervised(bare_system, tmp_path / "data", *options, "--deletion-cost", **environment) as rig:
            await rig.logs("not_annotated", pod=busy)  # and does not try again for a second
            assert set(cluster.costs().values()) == {""}
            proxy.instead = lambda _: None
            expected = {loads: "", warm: str(WARM), busy: str(BUSY)}
            await eventually(lambda: asyncio.to_thread(lambda: cluster.costs() == expected))
            cluster.server.kubectl(*scale, "--replicas=2")
            assert set(await asyncio.to_thread(cluster.all_placed, 2)) == {warm, busy}
            cluster.server.kubectl(*scale, "--replicas=1")
            assert await asyncio.to_thread(cluster.all_placed, 1) == [busy]


def test_the_supervisors_account_may_do_no_more_than_it_needs(cluster: OnCluster) -> None:
    account = f"--as=system:serviceaccount:{cluster.name}:w-warmlane-supervisor"
    allowed = cluster.server.kubectl("auth", "can-i", "--list", "--no-headers", f"--namespace={cluster.name}", account)
    # every account may ask about itself, and read the API's own description
    own = [
        line.split() for line in allowed.splitlines() if "selfsubject" not in line and not line.strip().startswith("[/")
    ]
    assert sorted(" ".join(line) for line in own) == [
        "deployments.apps [] [] [list watch]",
        f"deployments.apps/scale [] [{ENTRY}] [patch]",
        "pods [] [] [list watch patch]",
    ]
    cluster.install("--set=supervisor.lanes=null,lanes.phr00t.scaled=true")
    allowed = cluster.server.kubectl("auth", "can-i", "--list", "--no-headers", f"--namespace={cluster.name}", account)
    assert "scale" not in allowed, "nobody asked it to scale"
    assert "[list watch patch]" in allowed, "somebody else scales"
    cluster.install("--set=supervisor.lanes=null")
    allowed = cluster.server.kubectl("auth", "can-i", "--list", "--no-headers", f"--namespace={cluster.name}", account)
    assert "patch" not in allowed, "nobody scales"


# ── what the server cannot be made to say ────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_forgets_and_throttles(cluster: OnCluster, bare_system: System, tmp_path: Path) -> None:
    async with proxy_to(cluster.server.url, cluster.authority) as proxy:
        cluster.url = proxy.url
        options, environment = cluster.options()
        async with supervised(bare_system, tmp_path / "data", *options, ONE, **environment) as rig:
            await rig.says("phr00t", LaneState.CAPACITY_DENIED, cluster.no_room)
            gone = status_of(410, "Expired", "too old resource version: 1 (2)")
            proxy.instead = lambda asked: Answer(200, {"type": "ERROR", "object": gone}) if "watch=" in asked else None
            proxy.cut()
            await rig.logs("relisted", error="410: too old resource version: 1 (2)")

            slow = status_of(429, "TooManyRequests", "please try again later")
            proxy.instead = lambda _: Answer(429, slow, {"Retry-After": "1"})
            proxy.cut()
            await rig.says(
                "phr00t", LaneState.CAPACITY_DENIED, cluster.no_room, "cannot be seen: 429: please try again"
            )
            asked = len(proxy.seen)
            proxy.instead = lambda _: None
            cluster.make_room()
            await rig.says("phr00t", LaneState.STARTING)
            assert asked < len(proxy.seen)


async def test_a_server_that_vanishes_changes_nothing(cluster: OnCluster, bare_system: System, tmp_path: Path) -> None:
    """The supervisor keeps reporting what it knew last, and says so. It scales nothing while it cannot see."""
    async with proxy_to(cluster.server.url, cluster.authority) as proxy:
        cluster.url = proxy.url
        options, environment = cluster.options()
        quota = tmp_path / "quota.json"
        quota.write_text('{"max_lanes": {}}')
        options = (*options, "--lanes=phr00t=2", f"--quota={quota}")
        async with supervised(bare_system, tmp_path / "data", *options, **environment) as rig:
            await rig.logs("scaled", deployment=ENTRY, replicas=2)
            await rig.says("phr00t", LaneState.CAPACITY_DENIED, cluster.no_room)
            proxy.is_away = True
            proxy.cut()
            await rig.says("phr00t", LaneState.CAPACITY_DENIED, cluster.no_room, "the cluster cannot be seen")
            tried = len(proxy.seen)
            quota.write_text('{"max_lanes": {"phr00t": 0}}')
            await rig.logs("quota_changed")
            await rig.routes("phr00t", "degraded: quota")
            assert cluster.replicas() == 2
            assert not [each for each in proxy.seen[tried:] if each.startswith("PATCH")]
            proxy.is_away = False
            await rig.logs("scaled", deployment=ENTRY, replicas=0)
            assert cluster.replicas() == 0
