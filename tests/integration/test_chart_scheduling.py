"""Which cards the chart's pods get, on the real scheduler: counted cards of a device plugin, and claims (ADR 0057),
with MIG, and one claim that the degraded worker shares with its standby (ADR 0058). Nodes and devices are only objects.
"""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.kit.kubernetes import ApiServer, Helm, api_server

pytestmark = pytest.mark.tools

# This cluster provides no volumes: videos are in S3, and nats-server is elsewhere.
ELSEWHERE: Final = (
    "--set=profile=production,artifacts.s3=s3://bucket/prefix,nats.mode=external,nats.url=nats://nats:4222"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("kubernetes")) as api:
        yield api


@pytest.fixture
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


class Place:
    """A namespace with the chart in it, on nodes of its own."""

    def __init__(self, server: ApiServer, helm: Helm, name: str) -> None:
        self.name, self._server, self._helm = name, server, helm
        server.kubectl("create", "namespace", name)

    def install(self, *arguments: str) -> None:
        node = f"--set=worker.nodeSelector.place={self.name}"
        self._helm.upgrade(
            f"--namespace={self.name}", f"--kubeconfig={self._server.kubeconfig}", ELSEWHERE, node, *arguments
        )

    def node(self, name: str, **capacity: str) -> None:
        self._server.node(name, **capacity)
        self._server.kubectl("label", "node", name, f"place={self.name}")

    def devices(self, node: str, driver: str, *attributes: dict[str, Any]) -> None:
        """Publishes what a DRA driver would publish of *node*: a device for each of *attributes*."""
        devices = [{"name": f"card-{number}", "attributes": each} for number, each in enumerate(attributes)]
        pool = {"name": f"{node}-{driver}", "generation": 1, "resourceSliceCount": 1}
        spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": devices}
        api = "resource.k8s.io/v1"
        self._server.apply(
            {"apiVersion": api, "kind": "ResourceSlice", "metadata": {"name": pool["name"]}, "spec": spec}
        )

    def device_class(self, name: str, expression: str) -> None:
        selectors = [{"cel": {"expression": expression}}]
        api = "resource.k8s.io/v1"
        self._server.apply(
            {"apiVersion": api, "kind": "DeviceClass", "metadata": {"name": name}, "spec": {"selectors": selectors}}
        )

    def workers(self) -> dict[str, str]:
        """The node of each worker, or why it has none, by the worker's Deployment and a number."""
        found: dict[str, str] = {}
        selector = "app.kubernetes.io/component in (lane, degraded)"
        for pod in self._server.get("pods", f"--namespace={self.name}", f"--selector={selector}"):
            owner = pod["metadata"]["labels"].get("warmlane/lane", "degraded")
            number = sum(name.startswith(owner) for name in found)
            found[f"{owner}-{number}"] = pod["spec"].get("nodeName") or why_not(pod)
        return found

    def settled(self, placed: int, left_for: str | None = None) -> dict[str, str]:
        """The same, once *placed* workers have a node, and one more is left without, for the reason *left_for*. The
        scheduler has other reasons before it has seen what was just made, such as a device or a volume."""

        def all_known() -> dict[str, str] | None:
            found = self.workers()
            reasons = [each for each in found.values() if not each.startswith("node-")]
            are_right = len(reasons) == 0 if left_for is None else len(reasons) == 1 and left_for in reasons[0]
            return found if len(found) == placed + len(reasons) and are_right else None

        try:
            found = self._server.eventually(all_known)
        except AssertionError:
            raise AssertionError(f"the workers are at {self.workers()}") from None
        assert found is not None
        return found


def why_not(pod: dict[str, Any]) -> str:
    for each in pod["status"].get("conditions", []):
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{each['reason']}: {each['message']}"
    return ""


def test_a_device_plugin_counts_the_cards(server: ApiServer, helm: Helm) -> None:
    """Three cards are enough for two lanes and the degraded worker; the third lane's pod says why it has none."""
    place = Place(server, helm, "counted")
    place.node("node-a", **{"nvidia.com/gpu": "3"})
    plugin = "--set=worker.card.by=device-plugin,degraded.replicas=1"
    place.install(plugin)
    assert set(place.settled(3).values()) == {"node-a"}
    place.install(plugin, "--set=lanes.anisora.replicas=2")
    found = place.settled(3, left_for="1 Insufficient nvidia.com/gpu")
    (why,) = (each for each in found.values() if each != "node-a")
    assert why.startswith("Unschedulable: ")


def test_mig_slices_are_counted_alike(server: ApiServer, helm: Helm) -> None:
    place = Place(server, helm, "sliced")
    place.node("node-b", **{"nvidia.com/mig-3g.40gb": "2", "nvidia.com/gpu": "4"})
    place.install("--set=worker.card.by=device-plugin,worker.card.resource=nvidia.com/mig-3g.40gb,degraded.replicas=1")
    found = place.settled(2, left_for="1 Insufficient nvidia.com/mig-3g.40gb")
    assert sorted(each == "node-b" for each in found.values()) == [False, True, True]


def test_two_degraded_workers_share_one_card_by_a_claim(server: ApiServer, helm: Helm) -> None:
    """Two lanes, a leader and its standby share three cards; the claim keeps leader and standby on one node. A third
    lane finds no card. MIG slices of the right profile are claimed in the same way."""
    place = Place(server, helm, "claimed")
    card = {"type": {"string": "gpu"}}
    for node, cards in (("node-c", 2), ("node-d", 1)):
        place.node(node)
        place.devices(node, "gpu.nvidia.com", *[card] * cards)
    place.device_class(
        "gpu.nvidia.com", "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'"
    )
    volume = {"capacity": {"storage": "100Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}
    server.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "locks"}, "spec": volume})
    claim = "--set=worker.card.by=claim,degraded.card.by=shared-claim,degraded.replicas=2"
    place.install(claim)
    found = place.settled(4)
    assert set(found.values()) == {"node-c", "node-d"}
    assert found["degraded-0"] == found["degraded-1"]
    reserved = server.get("resourceclaim", "w-warmlane-degraded", "--namespace=claimed")["status"]
    assert len(reserved["reservedFor"]) == 2
    assert len(reserved["allocation"]["devices"]["results"]) == 1
    place.install(claim, "--set=lanes.phr00t.replicas=2")
    place.settled(4, left_for="cannot allocate all claims")


def test_mig_slices_are_claimed_by_their_profile(server: ApiServer, helm: Helm) -> None:
    place = Place(server, helm, "partitioned")
    place.node("node-e")
    sizes = ("1g.10gb", "3g.40gb", "3g.40gb", "3g.40gb")
    place.devices(
        "node-e", "gpu.nvidia.com", *({"type": {"string": "mig"}, "profile": {"string": size}} for size in sizes)
    )
    place.device_class(
        "mig.nvidia.com", "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig'"
    )
    profile = "device.attributes['gpu.nvidia.com'].profile == '3g.40gb'"
    place.install(
        "--set=worker.card.by=claim,worker.card.deviceClass=mig.nvidia.com,degraded.replicas=1",
        f'--set-json=worker.card.selectors=["{profile}"]',
    )
    assert set(place.settled(3).values()) == {"node-e"}
    claims = server.get("resourceclaims", "--namespace=partitioned")
    taken = {result["device"] for each in claims for result in each["status"]["allocation"]["devices"]["results"]}
    assert taken == {"card-1", "card-2", "card-3"}


def test_a_node_is_drained_of_one_lane_of_a_model_at_a_time(server: ApiServer, helm: Helm) -> None:
    """The PodDisruptionBudget ensures this, once the lanes are ready."""
    place = Place(server, helm, "drained")
    place.node("node-f", **{"nvidia.com/gpu": "5"})
    place.install("--set=worker.card.by=device-plugin,degraded.replicas=1,lanes.anisora.replicas=2")
    place.settled(4)
    pods = server.get("pods", "--namespace=drained", "--selector=warmlane/lane=anisora")
    names = [pod["metadata"]["name"] for pod in pods]
    for name in names:
        ready = '{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}'
        server.kubectl(
            "patch", "pod", name, "--namespace=drained", "--subresource=status", "--type=merge", f"--patch={ready}"
        )

    def allowed() -> int:
        budget = server.get("poddisruptionbudget", "w-warmlane-lane-anisora", "--namespace=drained")
        return int(budget["status"].get("disruptionsAllowed", 0))

    server.eventually(lambda: allowed() == 1)
    eviction = '{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"%s","namespace":"drained"}}'
    path = "/api/v1/namespaces/drained/pods/%s/eviction"
    server.kubectl("create", "--raw", path % names[0], "--filename=-", given=eviction % names[0])
    assert "violate the pod's disruption budget" in server.refused(
        "create", "--raw", path % names[1], "--filename=-", given=eviction % names[1]
    )
