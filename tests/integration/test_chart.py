"""The Helm chart, for each of its values files: as Helm renders it, and as a real API server accepts it.
`make kubernetes` shows what runs of it on a real node."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

from contracts.settings import load_settings
from lane_worker.forking.fork_server import host_environment
from lane_worker.forking.host import EXIT_S
from lane_worker.forking.host_child import DEATH_S
from lane_worker.runtime.leaving import HAND_BACK_S, LEAVE_S
from ops.cli import LazyGroup, cli
from ops.nats.access import ROLES, password_variable
from tests.drills.scaling_rules import ScaledObject
from tests.kit.kubernetes import ApiServer, Helm, api_server
from tests.kit.tools import Tool, tool

pytestmark = pytest.mark.tools

ROOT: Final = Path(__file__).parents[2]
# Each file, and values that no file has: a name, and Helm's arguments.
VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "values.yaml": (),
    **{path.name: ("--values", str(path)) for path in sorted(Helm.CHART.glob("values-*.yaml"))},
    "everything": (
        "--set=admin.enabled=true,supervisor.lanes.anisora=2,monitoring.scrape=operator,monitoring.gatewayKeySecret=k",
        "--set=gateway.ingress.enabled=true,gateway.ingress.host=a.example.org,nats.caConfigMap=ca",
        "--set=gateway.replicas=1,nats.persistent=false,networkPolicies.workerTo[0].ports[0].port=4318",
        f"--set-file=settings={ROOT / 'contracts' / 'inference_settings.json'}",
    ),
    "scaled": ("--set=autoscaling.enabled=true,autoscaling.keySecret=k,lanes.anisora.scaled=true",),
    "scaled-by-prometheus": (
        "--set=autoscaling.enabled=true,autoscaling.trigger=prometheus,autoscaling.prometheus=http://prometheus:9090",
        "--set=lanes.anisora.scaled=true,lanes.phr00t.scaled=true",
    ),
    "mig-by-device-plugin": (
        "--set=profile=production,worker.card.by=device-plugin,worker.card.resource=nvidia.com/mig-3g.40gb",
    ),
    "mig-by-claim": (
        "--set=profile=production,worker.card.by=claim,worker.card.deviceClass=mig.nvidia.com",
        "--set-json=worker.card.selectors=[\"device.attributes['gpu.nvidia.com'].profile == '3g.40gb'\"]",
    ),
}
OURS: Final = ("gateway", "lane", "degraded", "supervisor", "provision", "admin")

each_values = pytest.mark.parametrize("values", [pytest.param(given, id=name) for name, given in VALUES.items()])


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server with the resources of KEDA and of the Prometheus operator."""
    with api_server(tmp_path_factory.mktemp("kubernetes")) as api:
        definitions: Tool
        for definitions in ("keda-crds", "prometheus-operator-crds"):
            api.kubectl("create", "--filename", str(tool(definitions)))
        api.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield api


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pods' specs, by component and name."""
    found = {}
    for each in objects:
        if each["kind"] in {"Deployment", "StatefulSet", "Job"}:
            template = each["spec"]["template"]
            component = template["metadata"]["labels"]["app.kubernetes.io/component"]
            found[f"{component}/{each['metadata']['name']}"] = template["spec"]
    return found


# ── at the API server ───────────────────────────────────────────────────────────────────────────────────────


@each_values
def test_a_real_api_server_takes_every_object(values: tuple[str, ...], helm: Helm, server: ApiServer) -> None:
    """The validation is strict: an unknown field is an error."""
    rendered = helm.rendered(*values)
    taken = server.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", given=rendered)
    assert taken.count("server dry run") == len(helm.objects(*values))


@each_values
def test_a_namespace_that_restricts_its_pods_takes_them(values: tuple[str, ...], helm: Helm, server: ApiServer) -> None:
    """The strictest of the Pod Security Standards. It only forbids that a folder of the node holds the models."""
    rendered = helm.rendered(*values)
    server.kubectl("label", "namespace", "default", "--overwrite", "pod-security.kubernetes.io/warn=restricted")
    said = server.warnings("apply", "--dry-run=server", "--filename=-", given=rendered)
    assert [each for each in said if "hostPath" not in each] == []
    assert bool(said) == ("hostPath" in rendered)


def test_it_would_not_take_a_field_that_there_is_not(helm: Helm, server: ApiServer) -> None:
    for right, wrong in (("readOnlyRootFilesystem", "readOnlyRootFileSystem"), ("honorLabels", "honourLabels")):
        rendered = helm.rendered(*VALUES["everything"])
        assert right in rendered
        refused = server.refused(
            "apply", "--dry-run=server", "--validate=strict", "--filename=-", given=rendered.replace(right, wrong)
        )
        assert f'unknown field "{"spec" if "honor" in right else "spec.template.spec"}' in refused


def test_passwords_are_made_once_and_stay(helm: Helm, server: ApiServer) -> None:
    server.kubectl("create", "namespace", "passwords")
    arguments = ("--namespace=passwords", f"--kubeconfig={server.kubeconfig}")
    helm.upgrade(*arguments)
    first = server.get("secret", "w-warmlane-secrets", "--namespace=passwords")["data"]
    helm.upgrade(*arguments, "--set=logLevel=debug")
    assert server.get("secret", "w-warmlane-secrets", "--namespace=passwords")["data"] == first
    made = [base64.b64decode(first[f"nats-{role}"]).decode() for role in ROLES]
    assert len(set(made)) == len(ROLES)
    assert all(re.fullmatch(r"w[0-9A-Za-z]{48}", password) for password in made)
    assert set(first) == {"webhooks-key", *(f"nats-{role}" for role in ROLES)}
    assert len(base64.urlsafe_b64decode(base64.b64decode(first["webhooks-key"]))) == 32


# ── as Helm renders it ───────────────────────────────────────────────────────────────────────────────────────────────


@each_values
def test_helm_finds_nothing(values: tuple[str, ...], helm: Helm) -> None:
    helm.lint(*values)


@each_values
def test_every_container_is_confined(values: tuple[str, ...], helm: Helm) -> None:
    found = pods(helm.objects(*values))
    assert {name.partition("/")[0] for name in found} >= {"gateway", "lane", "degraded", "provision"}
    for name, pod in found.items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == security["fsGroup"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        if not name.startswith("supervisor/"):  # the only one that asks the API server
            assert pod["automountServiceAccountToken"] is False, name
        assert not set(pod) & {"hostNetwork", "hostPID", "hostIPC"}, name
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name


@each_values
def test_what_serves_says_whether_it_lives_and_is_ready(values: tuple[str, ...], helm: Helm) -> None:
    for name, pod in pods(helm.objects(*values)).items():
        (container,) = pod["containers"]
        if name.startswith(("provision/", "admin/")):
            continue
        ready = container["readinessProbe"]["httpGet"]["path"]
        assert ready == ("/healthz" if name.startswith("nats/") else "/readyz"), name
        assert "livenessProbe" in container, name


@each_values
def test_a_process_holds_no_password_but_its_own(values: tuple[str, ...], helm: Helm) -> None:
    for name, pod in pods(helm.objects(*values)).items():
        component = name.partition("/")[0]
        role = {"provision": "admin"}.get(component, component)
        own = {password_variable(each) for each in ROLES if role in {each, "nats"}}
        assert password_variables(pod) == own, name
        files = {item["key"] for volume in pod["volumes"] for item in volume.get("secret", {}).get("items", [])}
        assert files == (
            set() if role == "nats" else {f"nats-{role}"} | ({"webhooks-key"} if role == "gateway" else set())
        ), name


def password_variables(pod: dict[str, Any]) -> set[str]:
    (container,) = pod["containers"]
    names = {each["name"].removesuffix("_FILE") for each in container["env"]}
    return {name for name in names if re.fullmatch(r"WARMLANE_NATS_[A-Z]+_PASSWORD", name)}


@each_values
def test_a_worker_has_time_to_finish_its_run(values: tuple[str, ...], helm: Helm) -> None:
    """`timeouts.total_s` is how long a drain lasts by default."""
    for name, pod in pods(helm.objects(*values)).items():
        if name.startswith(("lane/", "degraded/")):
            profile = next(each["value"] for each in pod["containers"][0]["env"] if each["name"] == "WARMLANE_PROFILE")
            longest_s = max(model.timeouts.total_s for model in load_settings().catalog(profile).models.values())
            afterwards_s = HAND_BACK_S + LEAVE_S + EXIT_S + DEATH_S
            assert pod["terminationGracePeriodSeconds"] > longest_s + afterwards_s, name


@each_values
def test_the_commands_understand_what_they_are_given(
    values: tuple[str, ...], helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands' own parsers read it. A variable that no command reads is a mistake of the chart."""
    assert isinstance(cli, LazyGroup)
    for name, pod in pods(helm.objects(*values)).items():
        (container,) = pod["containers"]
        if name.partition("/")[0] not in OURS or "command" in container:
            continue
        command = cli.get_command(click.Context(cli), container["args"][0])
        assert command is not None
        read = {each.envvar for each in command.params if isinstance(each, click.Option)}
        with monkeypatch.context() as patch:
            for each in container["env"]:
                value = each.get("value", "from-the-pod")
                if each["name"] in {"WARMLANE_SETTINGS", "WARMLANE_NATS_CA"} or each["name"].endswith("_FILE"):
                    (tmp_path / "file").write_text("{}")
                    value = str(tmp_path / "file")
                patch.setenv(each["name"], value)
                known = {"WARMLANE_LOG_LEVEL", "WARMLANE_WEBHOOKS_KEY", *map(password_variable, ROLES)}
                if each["name"].startswith("WARMLANE_"):
                    assert each["name"].removesuffix("_FILE") in read | known, (name, each["name"])
            context = command.make_context(container["args"][0], container["args"][1:])
            if name.startswith(("lane/", "degraded/")):
                assert context.params["slot"] == "auto"


@each_values
def test_a_lane_has_a_card_for_itself(values: tuple[str, ...], helm: Helm) -> None:
    """A lane with a card also has the allocator's settings (FR-010)."""
    objects = helm.objects(*values)
    for name, pod in pods(objects).items():
        (container,) = pod["containers"]
        cards = {key: count for key, count in container["resources"]["limits"].items() if key.startswith("nvidia.com/")}
        claims = pod.get("resourceClaims", [])
        env = {each["name"]: each.get("value") for each in container["env"]}
        if not name.startswith(("lane/", "degraded/")):
            assert not cards, name
            assert not claims, name
        elif env["WARMLANE_PROFILE"] != "tiny":
            assert len(cards) + len(claims) == 1, name
            assert set(cards.values()) <= {1}, name
            own = {key: host_environment({})[key] for key in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
            assert env.items() >= own.items(), name
            if name.startswith("lane/") and claims:
                assert "resourceClaimTemplateName" in claims[0], "a claim by name would be shared"


def test_who_shares_a_card_shares_the_folder_of_its_lock(helm: Helm) -> None:
    pod = next(
        pod for name, pod in pods(helm.objects(*VALUES["values-large.yaml"])).items() if name.startswith("degraded/")
    )
    assert pod["resourceClaims"] == [{"name": "card", "resourceClaimName": "w-warmlane-degraded"}]
    (data,) = (each for each in pod["volumes"] if each["name"] == "data")
    assert data["persistentVolumeClaim"]["claimName"] == "w-warmlane-degraded"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("profile=production", "profile production needs a card for each worker: set worker.card.by to"),
        ("worker.card.by=magic", "at '/worker/card/by': value must be one of 'none', 'device-plugin', 'claim'"),
        ("gateways.replicas=3", "additional properties 'gateways' not allowed"),
        ("lanes.anisora.replica=3", "at '/lanes/anisora': additional properties 'replica' not allowed"),
        ("lanes.anisora.card.by=shared-claim", "a lane has its card for itself"),
        ("nats.mode=external", "nats.url: where the nats-server is"),
        ("nats.mode=both", "nats.mode is single or external"),
        ("monitoring.scrape=maybe", "monitoring.scrape is annotations, operator or none"),
        ("gateway.ingress.enabled=true", "gateway.ingress.host: the name by which clients call"),
        ("autoscaling.enabled=true", "autoscaling.keySecret: a Secret with an API key of the scope metrics"),
        ("autoscaling.enabled=true,autoscaling.keySecret=k,supervisor.lanes.anisora=2", "would both set the replicas"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(given: str, why: str, helm: Helm) -> None:
    assert why in helm.refused(f"--set={given}")


def test_a_provision_that_would_do_the_same_is_not_another_job(helm: Helm) -> None:
    def job(*values: str) -> str:
        return next(str(each["metadata"]["name"]) for each in helm.objects(*values) if each["kind"] == "Job")

    assert job() == job("--set=gateway.replicas=3")
    assert len({job(), job("--set=keep=3d"), job("--set=images.gateway.tag=next")}) == 3


def test_a_lane_that_is_scaled_follows_its_demand_and_never_goes_to_none(helm: Helm) -> None:
    for values in ("scaled", "scaled-by-prometheus"):
        objects = {(each["kind"], each["metadata"]["name"]): each for each in helm.objects(*VALUES[values])}
        lane, scaled = (
            objects["Deployment", "w-warmlane-lane-anisora"],
            objects["ScaledObject", "w-warmlane-lane-anisora"],
        )
        assert "replicas" not in lane["spec"]
        assert scaled["spec"]["scaleTargetRef"] == {"name": "w-warmlane-lane-anisora"}
        assert scaled["spec"]["minReplicaCount"] == 1
        rules = ScaledObject.of_chart()  # the rules of the simulation
        assert scaled["spec"]["maxReplicaCount"] == rules.most
        behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behavior["scaleUp"] == {"stabilizationWindowSeconds": 0}
        assert behavior["scaleDown"] == {
            "stabilizationWindowSeconds": rules.cool_down_s,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": rules.cool_down_s}],
        }
        (trigger,) = scaled["spec"]["triggers"]
        target = trigger["metadata"].get("targetValue", trigger["metadata"].get("threshold"))
        assert float(target) == rules.tasks_per_lane
        assert 'warmlane_demand{model="anisora"}' in str(trigger["metadata"])
        # above the longest run and its drain: a lane that is asked to leave finishes its task
        assert lane["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 1_800
    assert (
        "replicas"
        in {each["metadata"]["name"]: each for each in helm.objects(*VALUES["scaled"]) if each["kind"] == "Deployment"}[
            "w-warmlane-lane-phr00t"
        ]["spec"]
    )


def test_dashboards_alerts_and_the_configuration_are_those_of_the_repository(helm: Helm) -> None:
    objects = {(each["kind"], each["metadata"]["name"]): each for each in helm.objects(*VALUES["everything"])}
    dashboards = sorted((ROOT / "ops" / "dashboards").glob("*.json"))
    for path in dashboards:
        held = objects["ConfigMap", f"w-warmlane-dashboard-{path.stem}"]["data"][f"warmlane-{path.name}"]
        assert json.loads(held) == json.loads(path.read_text())
    assert sum("-dashboard-" in name for _, name in objects) == len(dashboards)
    rules = yaml.safe_load((ROOT / "ops" / "alerts" / "warmlane.rules.yaml").read_text())
    assert objects["PrometheusRule", "w-warmlane"]["spec"] == rules
    assert objects["ConfigMap", "w-warmlane-nats"]["data"]["nats.conf"] == (ROOT / "nats.conf").read_text()
    assert not [path for path in (Helm.CHART / "files").rglob("*") if path.is_file() and not path.is_symlink()]
