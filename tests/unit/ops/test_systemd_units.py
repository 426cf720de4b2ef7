"""The units of ops/deploy/systemd: what systemd itself says of them, and that they agree with the settings."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from contracts.settings import load_settings
from ops.cli import COMMANDS, cli
from ops.lanes.supervisor import DRAIN_EXTRA_S
from ops.nats.access import AUTH_FOLDER, ROLES

FOLDER: Final = Path(__file__).parents[3] / "ops" / "deploy" / "systemd"
UNITS: Final = sorted(path.name for path in FOLDER.glob("*.service"))
# `systemd-analyze security` counts from 0, closed, to 10, open; workers keep the cards.
EXPOSURE_MAX: Final = {"gateway": 1.5, "nats": 1.5, "provision": 1.5}
WORKERS: Final = ("lane@", "degraded@", "supervisor")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here, which judges units"
)


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (FOLDER / unit).read_text(), re.MULTILINE)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for path in FOLDER.glob("warmlane*"):
        # on this machine nobody has installed it
        text = path.read_text().replace("/usr/local/lib/warmlane/bin/warmlane", "/bin/true")
        (tmp_path / path.name.replace("@.", "@one.")).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir() if path.suffix in {".service", ".target"})
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "warmlane" in line]
    assert ours == []


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_closed_as_far_as_its_work_allows(unit: str) -> None:
    threshold = EXPOSURE_MAX.get(unit.removeprefix("warmlane-").removesuffix(".service"), 2.0)
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold * 10:g}", str(FOLDER / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_runs_a_command_with_the_password_of_its_role_alone(unit: str) -> None:
    (line,) = values(unit, "ExecStart")
    command = line.split()[1]
    assert command in COMMANDS
    credentials = {each.partition(":")[0] for each in values(unit, "LoadCredential")}
    role = {"nats-server": None, "provision": "admin"}.get(command, command)
    also = {"lane.json"} if role == "supervisor" else set()  # for the lanes that it starts
    assert credentials == ({f"{role}.json"} | also if role else set())
    for credential in values(unit, "LoadCredential"):
        assert credential.partition(":")[2] == f"/var/lib/warmlane/{AUTH_FOLDER}/{credential.partition(':')[0]}"
    assert role is None or role in ROLES
    assert (values(unit, "InaccessiblePaths") == [f"-/var/lib/warmlane/{AUTH_FOLDER}"]) == bool(credentials)


@pytest.mark.parametrize("name", WORKERS)
def test_a_drain_has_the_time_that_it_may_take(name: str) -> None:
    (text,) = values(f"warmlane-{name}.service", "TimeoutStopSec")
    catalog = load_settings().catalog("production")
    needed_s = catalog.windows.drains_s(catalog.models.values()) + DRAIN_EXTRA_S + 5
    assert 60 * float(text.removesuffix("min")) > needed_s


@pytest.mark.parametrize("unit", UNITS)
def test_every_part_belongs_to_the_target_and_says_when_it_is_ready(unit: str) -> None:
    assert values(unit, "PartOf") == values(unit, "WantedBy") == ["warmlane.target"]
    assert values(unit, "Type") == (["oneshot"] if "provision" in unit else ["notify"])


def test_the_file_that_comes_with_the_units_can_be_used_by_every_part() -> None:
    file = FOLDER / "warmlane.toml"
    result = CliRunner().invoke(cli, ["config", "check", "--config", str(file)])
    assert result.exit_code == 0, result.output
    assert set(tomllib.loads(file.read_text())["lane"]) == {"anisora-0", "phr00t-0"}
