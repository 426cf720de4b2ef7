"""compose.yaml, as far as it can be checked without a container engine. Its images: `test_compose_images.py`."""

import ipaddress
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import click
import pytest

from contracts.settings import load_settings
from contracts.topology import lane_key
from lane_worker.forking.fork_server import host_environment
from lane_worker.forking.host import EXIT_S
from lane_worker.forking.host_child import DEATH_S
from lane_worker.forking.slot import lock_path
from lane_worker.runtime.leaving import HAND_BACK_S, LEAVE_S
from ops.cli import COMMANDS, LazyGroup, cli
from ops.commands.durations import Duration
from ops.commands.up.processes import STOP_S, SUPERVISOR_EXTRA_S
from ops.lanes.supervisor import DRAIN_EXTRA_S
from ops.nats.access import ROLES, password_variable
from ops.nats.provisioning import wanted
from ops.telemetry.logs import LEVEL_VARIABLE
from tests.kit.compose import (
    ALL,
    CARDS,
    FILE,
    OURS,
    PROFILES,
    ROOT,
    SECRETS,
    Service,
    chosen,
    dockerfile,
    each_service,
    image_environment,
    interpolated,
    services,
    venv_tool,
)

# They end by themselves.
ONE_SHOT: Final = {"provision", "admin"}
# An image that has no program for a health check.
WITHOUT_A_PROBE: Final = {"otel-collector"}
ALLOCATOR: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK")


# ── the file as a whole ──────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_a_compose_file(tmp_path: Path) -> None:
    validate = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    valid = venv_tool(*validate, FILE)
    assert valid.returncode == 0, valid.stdout + valid.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text().replace("stop_grace_period", "stop_grace"))
    assert venv_tool(*validate, broken).returncode == 1


def test_no_anchor_is_given_twice() -> None:
    """The second would quietly take the place of the first."""
    anchors = re.findall(r"(?<=[\s-])&([\w-]+)", FILE.read_text())
    assert len(anchors) == len(set(anchors)) > 20


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_chooses_one_of_each(profile: str) -> None:
    """The servers, the monitoring, and the lanes, either one by one or under one supervisor."""
    hardware = "-gpu" if profile.endswith("gpu") else ""
    lanes = {"supervisor"} if profile.startswith("supervised") else {"lane-anisora", "lane-phr00t"}
    serving = {f"{name}{hardware}" for name in {"gateway", "degraded", "degraded-standby"} | lanes}
    always = {"nats", "provision"}
    shows = {"otel-collector", "jaeger", "prometheus", "grafana"}
    assert set(chosen(ALL, profile)) == serving | always  # one bad tag of what only shows it stops none of them
    assert set(chosen(ALL, profile, "observe")) == serving | always | shows


@pytest.mark.parametrize("profile", PROFILES)
def test_one_service_builds_each_image(profile: str) -> None:
    """Of several builds of one tag each leaves another image, and `up` starts containers anew without a change."""
    there = chosen(ALL, profile, "observe")
    builds = [each["image"] for each in there.values() if "build" in each]
    assert len(builds) == len(set(builds))
    for name, each in there.items():
        assert each["image"] in builds, name
        assert each["pull_policy"] == ("build" if "build" in each else "never")
    assert "build" not in ALL["admin"], "a command of an operator builds nothing"


@each_service
def test_a_container_has_bounds(name: str) -> None:
    each = ALL[name]
    assert each["pids_limit"] > 0
    is_worker = name.startswith(("lane", "degraded", "supervisor"))
    assert (each["mem_limit"], str(each["cpus"])) == (("0", "0") if is_worker else ("1g", "1.0"))
    bounded = services(SECRETS | CARDS | {"WARMLANE_WORKER_MEMORY": "64g", "WARMLANE_WORKER_CPUS": "4"})[name]
    assert not is_worker or (bounded["mem_limit"], bounded["cpus"]) == ("64g", "4")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_service_waits_for_is_there_in_its_profile(profile: str) -> None:
    there = chosen(ALL, profile)
    for name, each in (there | {"admin": ALL["admin"]}).items():
        assert set(each.get("depends_on", {})) <= set(there), name
        for other, how in each.get("depends_on", {}).items():
            assert (how["condition"] == "service_completed_successfully") == (other in ONE_SHOT)
            assert how["condition"] != "service_healthy" or "healthcheck" in there[other]


def docker_compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if asked.returncode == 0 and not asked.stdout.startswith("1."):
                return command
    pytest.skip("there is no Docker Compose here, which could say that it reads the file alike")


@pytest.mark.parametrize("profile", PROFILES)
def test_docker_compose_reads_it_as_the_tests_do(profile: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in (SECRETS | CARDS).items()))
    command = [*docker_compose(), "--file", str(FILE), "--env-file", str(tmp_path / "env"), "--profile", profile]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WARMLANE_", "COMPOSE_"))}
    config = subprocess.run(
        [*command, "config", "--format", "json"], capture_output=True, text=True, env=clean, check=False
    )
    assert config.returncode == 0, config.stderr
    composed = json.loads(config.stdout)["services"]
    mine = chosen(ALL, profile)
    assert set(composed) == set(mine)
    for name, each in mine.items():
        assert composed[name].get("command") == each.get("command"), name
        assert composed[name].get("environment", {}) == each.get("environment", {}), name
        assert [mount["target"] for mount in composed[name].get("volumes", [])] == [
            mount["target"] for mount in each.get("volumes", [])
        ]
        assert composed[name].get("healthcheck", {}).get("test") == each.get("healthcheck", {}).get("test"), name


@pytest.mark.parametrize("profile", PROFILES)
def test_the_volume_that_workers_share_is_filled_before_they_are_there(profile: str) -> None:
    """The engine copies what the image has at /data into an empty volume. Containers that are made at once would all do
    it, and on an engine one of them could not be made: "file exists"."""
    work = {"type": "volume", "source": "work", "target": "/data"}
    mounting = {name: each for name, each in chosen(ALL, profile).items() if work in each.get("volumes", [])}
    assert "provision" in mounting
    for name in mounting.keys() - {"provision"}:
        assert mounting[name]["depends_on"]["provision"]["condition"] == "service_completed_successfully"


def test_workers_of_one_card_share_its_lock_and_no_process_numbers() -> None:
    """Design §7. In a shared PID namespace the standby would die with the leader."""
    for name, standby in (("degraded", "degraded-standby"), ("degraded-gpu", "degraded-standby-gpu")):
        first, second = ALL[name], ALL[standby]
        assert (
            first["command"][first["command"].index("--slot") + 1]
            == second["command"][second["command"].index("--slot") + 1]
        )
        assert first["volumes"] == second["volumes"]
        assert {"type": "volume", "source": "work", "target": "/data"} in first["volumes"]
        assert "pid" not in first
        assert "pid" not in second


# ── cards (FR-010, FR-013) ───────────────────────────────────────────────────────────────────────────────────────────


def cards(each: Service) -> list[str]:
    devices = each.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    for device in devices:
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu", "compute", "utility"]
    return [card for device in devices for card in device["device_ids"]]


def test_the_allocator_is_set_in_every_image_and_service_with_a_card() -> None:
    """FR-010: in the image, in the service, and by the pipeline host, alike."""
    expected = {name: host_environment({})[name] for name in ALLOCATOR}
    with_a_card = {name for name, each in ALL.items() if cards(each)}
    assert with_a_card == {name for name in OURS if name.endswith("-gpu")} - {"gateway-gpu"}
    for name in with_a_card:
        path = dockerfile(ALL[name])
        assert path is not None
        assert image_environment(path).items() >= expected.items(), path
        assert ALL[name]["environment"].items() >= expected.items(), name
        # NVML, which proves a release, is a library of the driver's
        assert "utility" in image_environment(path)["NVIDIA_DRIVER_CAPABILITIES"].split(",")


def test_a_lane_has_a_card_of_its_own_and_the_degraded_workers_one_between_them() -> None:
    of = {name: cards(each) for name, each in ALL.items() if cards(each)}
    anisora, phr00t, degraded = CARDS.values()
    assert of == {
        "lane-anisora-gpu": [anisora],
        "lane-phr00t-gpu": [phr00t],
        "degraded-gpu": [degraded],
        "degraded-standby-gpu": [degraded],
        # it sets the first one that it sees aside
        "supervisor-gpu": [degraded, anisora, phr00t],
    }
    for name, held in of.items():
        command = ALL[name]["command"]
        if "--slot" in command:  # by UUID: NVML knows no other name
            assert [command[command.index("--slot") + 1]] == held


def test_what_has_no_card_is_tiny_and_what_has_one_is_production() -> None:
    for name, each in OURS.items():
        expected = "production" if name.endswith("-gpu") else "tiny"
        assert each["environment"]["WARMLANE_PROFILE"] == expected, name
        assert any(mount["target"] == "/data/models" for mount in each.get("volumes", [])) == bool(cards(each))
    # provision and admin are of no profile: what they make and change is the same in both
    made = [wanted(load_settings().catalog(profile), keep_s=60) for profile in ("tiny", "production")]
    assert made[0] == made[1]


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def command_of(each: Service) -> tuple[click.Command, list[str]]:
    name, *arguments = each["command"]
    assert isinstance(cli, LazyGroup)
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found, arguments


@pytest.mark.parametrize("name", [name for name in OURS if name != "admin"])
def test_its_command_and_environment_are_understood(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read by the command's own parser, with the files that it names in their places."""
    each = ALL[name]
    found, arguments = command_of(each)
    files = {mount["target"]: ROOT / mount["source"] for mount in each.get("volumes", []) if mount["type"] == "bind"}

    def here(text: str) -> str:
        for target, source in files.items():
            text = text.replace(target, str(source))
        return text.replace("/data", str(tmp_path))

    for variable in os.environ:
        if variable.startswith("WARMLANE_"):
            monkeypatch.delenv(variable)
    for variable, value in each["environment"].items():
        if value is not None:
            monkeypatch.setenv(variable, here(value))
    context = found.make_context(str(found.name), [here(argument) for argument in arguments])
    options: dict[str, Any] = context.params
    assert options["profile"] == each["environment"]["WARMLANE_PROFILE"]
    assert options["nats_url"] == "nats://nats:4222"
    known = {parameter.envvar for parameter in found.params}
    asked = {variable for variable in each["environment"] if variable.startswith("WARMLANE_")}
    assert asked - known <= {password_variable(role) for role in ROLES} | {LEVEL_VARIABLE}
    catalog = load_settings(options["settings"]).catalog(options["profile"])
    if "model" in options:
        model = catalog.resolve(options["model"])
        assert model is not None
        lane_key(model.name, options["name"])
    if "slot" in options:
        lock_path(tmp_path, options["slot"])


# What an operator may set of a gateway, beside what the containers need as it is: values, and what is made of them.
ASKED: Final[dict[str, tuple[str, str, Any]]] = {
    "WARMLANE_KEEP": ("2d", "keep_s", 172_800.0),
    "WARMLANE_ROOT_PATH": ("/warmlane", "root_path", "/warmlane"),
    "WARMLANE_TRUSTED_PROXIES": (
        *("10.1.0.0/16, 10.2.0.1", "trusted_proxies"),
        (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.2.0.1")),
    ),
    "WARMLANE_ALLOWED_HOSTS": ("video.example.org", "allowed_hosts", ("video.example.org",)),
    "WARMLANE_CORS_ORIGINS": ("https://app.example.org", "cors_origins", ("https://app.example.org",)),
    "WARMLANE_IMAGES_ALLOW_HOST": (
        *("*.example.org 10.1.0.0/16", "image_hosts"),
        ("*.example.org", ipaddress.ip_network("10.1.0.0/16")),
    ),
    "WARMLANE_IMAGES_KEEP": ("1h", "images_keep_s", 3_600.0),
    "WARMLANE_ACCESS_LOG": ("all", "access_log", "all"),
    "WARMLANE_TRACE_READS": ("1", "trace_reads", True),
    "WARMLANE_JAEGER_URL": ("http://127.0.0.1:16686", "jaeger_url", "http://127.0.0.1:16686"),
    "WARMLANE_DISPLACE": ("1", "displace", True),
    "WARMLANE_REFUSE_EXPECTED": ("1", "refuse_expected", True),
}


@pytest.mark.parametrize("name", ["gateway", "gateway-gpu"])
def test_what_the_env_file_says_reaches_the_gateway(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it does not say stays at the command's own default."""
    command, arguments = command_of(ALL[name])
    asked = {variable: text for variable, (text, _, _) in ASKED.items()}

    def options(given: dict[str, str]) -> dict[str, Any]:
        for variable in ASKED:
            monkeypatch.delenv(variable, raising=False)
        for variable, text in given.items():
            monkeypatch.setenv(variable, text)
        parsed = command.make_context(str(command.name), arguments).params
        return {option: parsed[option] for _, option, _ in ASKED.values()}

    def passed(variables: dict[str, str]) -> dict[str, str]:
        environment = services(SECRETS | CARDS | variables)[name]["environment"]
        return {variable: environment[variable] for variable in ASKED}

    monkeypatch.delenv("WARMLANE_SETTINGS", raising=False)
    assert options(passed(asked)) == {option: value for _, option, value in ASKED.values()}
    assert options(passed({})) == options({})


def test_the_log_level_of_the_env_file_is_that_of_every_process() -> None:
    composed = services(SECRETS | CARDS | {LEVEL_VARIABLE: "debug"})
    assert {composed[name]["environment"].get(LEVEL_VARIABLE) for name in OURS if name not in ONE_SHOT} == {"debug"}
    assert {OURS[name]["environment"].get(LEVEL_VARIABLE) for name in OURS if name not in ONE_SHOT} == {"info"}


def seconds(text: str) -> float:
    found = Duration().convert(text, None, None)
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize("profile", ["tiny", "production"])
def test_a_drain_can_finish_before_the_engine_kills_the_worker(profile: str) -> None:
    catalog = load_settings().catalog(profile)
    drain_s = catalog.windows.drains_s(catalog.models.values())
    # so long a worker takes to stop its task and to hand it back; what is left is for the card
    assert LEAVE_S + HAND_BACK_S + EXIT_S + DEATH_S <= DRAIN_EXTRA_S
    needed_s = {
        "gateway": STOP_S,
        # as long as the task in hand may take, and then to give it back and to let go of the card
        "lane": drain_s + DRAIN_EXTRA_S,
        "degraded": drain_s + DRAIN_EXTRA_S,
        "supervisor": drain_s + DRAIN_EXTRA_S + SUPERVISOR_EXTRA_S,
    }
    running = {name: each for name, each in OURS.items() if each["environment"]["WARMLANE_PROFILE"] == profile}
    for name in set(running) - ONE_SHOT:
        assert seconds(running[name]["stop_grace_period"]) > needed_s[name.partition("-")[0]], name
        # PID 1 hands the signal on, and reaps
        assert running[name]["init"] is True


@each_service
def test_its_health_is_looked_at(name: str) -> None:
    each = ALL[name]
    assert ("healthcheck" in each) == (name not in ONE_SHOT | WITHOUT_A_PROBE)
    if name in OURS and name not in ONE_SHOT:
        # a worker's port of /metrics is the one that is looked at
        port = each["command"][-1]
        assert f"http://127.0.0.1:{port}/" in each["healthcheck"]["test"][4]
        assert each["healthcheck"]["test"][:4] == ["CMD", "python", "-m", "ops.commands.healthcheck"]


def test_the_table_of_variables_is_that_of_the_file() -> None:
    """docs/operate/deploy.md names every variable that .env may hold, with its default."""
    text = (ROOT / "docs" / "operate" / "deploy.md").read_text()
    used = set(re.findall(r"\$\{(\w+)", FILE.read_text())) | set(re.findall(r"^  (AWS_\w+):$", FILE.read_text(), re.M))
    shown = {match[1] for match in re.finditer(r"^\| `([A-Z]\w+)` \|", text, re.MULTILINE)}
    roles = {password_variable(role) for role in ROLES}
    assert shown == (used - roles) | {"COMPOSE_PROFILES", "WARMLANE_NATS_ROLE_PASSWORD"}
    for name, default in re.findall(r"\$\{(\w+):-([^}]+)\}", FILE.read_text()):
        if not name.endswith("_GPU"):
            assert re.search(rf"^\| `{name}` \| `{re.escape(default)}` \|", text, re.MULTILINE), name


def test_the_documentation_runs_commands_that_exist() -> None:
    text = (ROOT / "docs" / "operate" / "deploy.md").read_text()
    named = set(re.findall(r"\badmin\s+([a-z][a-z-]*)", " ".join(re.findall(r"docker compose run[^#`]*", text))))
    assert {"keys", "slots", "status", "backup"} <= named <= set(COMMANDS)
    assert set(re.findall(r"\bdocker compose (?:exec|kill|logs --follow) ([a-z-]+)", text)) <= set(ALL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$$", "$"),
        ("a${X}b", "a1b"),
        ("${Y}", ""),
        ("${X:-2}", "1"),
        ("${Y:-2}", "2"),
        ("${E:-2}", "2"),
        ("${Y:-}", ""),
        ("${X:?is not set}", "1"),
    ],
)
def test_variables_are_interpolated_as_compose_does_it(text: str, expected: str) -> None:
    assert interpolated(text, {"X": "1", "E": ""}) == expected
