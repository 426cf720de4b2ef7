"""compose.yaml: which service holds which password, may do what, and reaches whom."""

import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from ops.nats.access import ROLES, password_variable
from tests.kit.compose import (
    ALL,
    FILE,
    OURS,
    PROFILES,
    ROOT,
    SECRETS,
    NotSet,
    chosen,
    each_service,
    services,
)
from tests.unit.ops.test_compose import ONE_SHOT

# ── variables and passwords ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_password_nothing_starts_and_the_error_says_what_to_do(name: str) -> None:
    with pytest.raises(NotSet, match=rf"{name} .*sh ops/deploy/new-env\.sh"):
        services({**SECRETS, name: ""})


def test_nothing_but_passwords_is_required() -> None:
    """Compose substitutes the variables of every service, so a card that is not set must not stop profiles without
    cards."""
    found = services(SECRETS)
    assert found["lane-anisora-gpu"]["command"][6] == "WARMLANE_ANISORA_GPU-is-not-set"


def test_new_env_writes_what_is_asked_for_and_keeps_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("WARMLANE_GRAFANA_PASSWORD=mine\nWARMLANE_PORT=8080")  # the last line without an end

    def run() -> dict[str, str]:
        subprocess.run(["sh", str(ROOT / "ops" / "deploy" / "new-env.sh"), str(file)], check=True, capture_output=True)
        return dict(line.split("=", 1) for line in file.read_text().splitlines())

    written = run()
    assert set(written) == {*SECRETS, "COMPOSE_PROFILES", "WARMLANE_PORT"}
    assert (written["WARMLANE_GRAFANA_PASSWORD"], written["WARMLANE_PORT"]) == ("mine", "8080")
    assert written["COMPOSE_PROFILES"] == "cpu"
    made = [written[password_variable(role)] for role in ROLES]
    assert len(set(made)) == len(ROLES)
    # nats.conf: a number would not be read as the text that it is
    assert all(re.fullmatch(r"[a-z][0-9a-f]{48}", password) for password in made)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run() == written
    services(written)


@each_service
def test_a_service_holds_no_password_but_its_own(name: str) -> None:
    held = {variable for variable, value in ALL[name].get("environment", {}).items() if (value or "").startswith("pw-")}
    roles: dict[str, set[str]] = {
        "nats": set(ROLES),
        "provision": {"admin"},
        "admin": {"admin"},
        "gateway": {"gateway"},
        "lane": {"lane"},
        "degraded": {"degraded"},
        "supervisor": {"supervisor", "lane"},  # lanes are its own processes, and get theirs from it
    }
    own: set[str] = {password_variable(role) for role in ROLES if role in roles.get(name.partition("-")[0], set())}
    assert held == (own or ({"GF_SECURITY_ADMIN_PASSWORD"} if name == "grafana" else set()))


def test_no_password_stands_on_a_command_line() -> None:
    assert "pw-" not in str([each.get("command") for each in ALL.values()])
    assert "pw-" not in str([each.get("healthcheck") for each in ALL.values()])


# ── hardening ────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_service
def test_a_container_is_no_root_and_cannot_write_its_image(name: str) -> None:
    each = ALL[name]
    user, _, _group = str(each["user"]).partition(":")
    assert int(user) > 0
    assert each["read_only"] is True
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]
    scratch = [place.partition(":")[0] for place in each["tmpfs"] if ":size=" in place]
    scratch += [mount["target"] for mount in each.get("volumes", []) if mount["type"] == "volume"]
    assert "/tmp" in scratch
    assert not set(each) & {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"}
    assert all("docker.sock" not in mount["source"] for mount in each.get("volumes", []))
    assert each["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")


@each_service
def test_what_is_of_the_checkout_can_only_be_read_and_is_there(name: str) -> None:
    for mount in ALL[name].get("volumes", []):
        if mount["type"] == "bind":
            assert mount["read_only"] is True
            assert mount["bind"] == {"create_host_path": False}, "a folder of root's in the place of a forgotten file"
            if mount["source"] != "./models":
                assert (ROOT / mount["source"]).exists(), mount["source"]


@each_service
def test_only_this_machine_reaches_what_is_published(name: str) -> None:
    for port in ALL[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    if name.startswith(("nats", "otel")):
        assert "ports" not in ALL[name]


def test_others_are_let_in_to_the_gateway_alone() -> None:
    opened = services(SECRETS | {"WARMLANE_BIND": "0.0.0.0"})
    open_to_all = {name for name, each in opened.items() for port in each.get("ports", []) if port.startswith("0.")}
    assert open_to_all == {"gateway", "gateway-gpu"}
    for name in open_to_all:  # and such a gateway does not start before there is a key
        assert opened[name]["command"][1:3] == ["--host", "0.0.0.0"]


def test_monitoring_services_cannot_reach_nats_server() -> None:
    assert ALL["nats"]["networks"] == ["core"]
    networks = yaml.safe_load(FILE.read_text())["networks"]
    assert networks["core"] == {"internal": True}
    assert {name for name, each in ALL.items() if "front" in each["networks"]} == {"gateway", "gateway-gpu"}
    assert {name for name, each in ALL.items() if "core" in each["networks"]} == {"nats", *OURS}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_client_finds_the_gateway_of_every_profile_by_one_name(profile: str) -> None:
    host = ALL["admin"]["environment"]["WARMLANE_URL"].removeprefix("http://").removesuffix(":8000")
    names = []
    for name, each in chosen(ALL, profile).items():
        networks = each["networks"] if isinstance(each["networks"], dict) else {key: {} for key in each["networks"]}
        names += [name, *networks.get("core", {}).get("aliases", [])]
    assert names.count(host) == 1


def test_the_gateway_has_videos_and_images_and_nothing_of_the_workers() -> None:
    for name in ("gateway", "gateway-gpu"):
        targets = {mount["target"] for mount in ALL[name]["volumes"]}
        # /data, because a gateway makes the key that seals the secrets of webhooks there, and its root is read-only
        assert targets == {"/data", "/data/artifacts", "/etc/warmlane/inference_settings.json"}
        sources = {mount["source"] for mount in ALL[name]["volumes"] if mount["type"] == "volume"}
        assert sources == {"gateway", "artifacts"}
