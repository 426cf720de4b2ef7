"""Where the password of a role comes from, and who holds it: data folder, environment, `warmlane nats-server`."""

import asyncio
import json
import stat
import subprocess
from pathlib import Path

import pytest

from contracts.topology import TASKS
from ops.machine.processes import warmlane_command
from ops.nats.access import ROLES, access, environment_for, make_users, password_variable
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision
from tests.integration.test_nats_users import WANT
from tests.kit.support import BOUND_S, clean_environment, eventually_sync, free_port

# ── where a password comes from ──────────────────────────────────────────────────────────────────────────────────────


def test_the_embedded_servers_users_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    url = "nats://127.0.0.1:4222"
    made = make_users(tmp_path, url)
    assert make_users(tmp_path, url) == made
    assert len(set(made.values())) == len(ROLES)
    assert all(len(password) > 40 and password[0].isalpha() for password in made.values())
    folder = tmp_path / "nats-auth"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.name for file in folder.iterdir()} == {f"{role}.json" for role in ROLES}
    for role in ROLES:
        file = folder / f"{role}.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        context = json.loads(file.read_text())  # as the NATS CLI reads it: nats --context FILE
        assert context["url"] == url
        assert (context["user"], context["password"]) == (role, made[password_variable(role)])
        assert context["inbox_prefix"] == f"_INBOX_{role}"
    moved = make_users(tmp_path, "nats://127.0.0.1:4333")
    assert moved == made
    assert json.loads((folder / "lane.json").read_text())["url"] == "nats://127.0.0.1:4333"


def test_the_address_then_the_environment_then_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "nats://127.0.0.1:4222"
    nobody = access("lane", url, data_dir=tmp_path)
    assert (nobody.user, nobody.password) == (None, None)
    made = make_users(tmp_path, url)
    kept = access("lane", url, data_dir=tmp_path)
    assert (kept.user, kept.password) == ("lane", made["WARMLANE_NATS_LANE_PASSWORD"])
    elsewhere = access("lane", "nats://127.0.0.1:4333", data_dir=tmp_path)
    assert elsewhere.user is None  # these passwords are for another server
    monkeypatch.setenv("WARMLANE_NATS_LANE_PASSWORD", "given")
    assert access("lane", url, data_dir=tmp_path).password == "given"
    assert access("gateway", url, data_dir=tmp_path).password == made["WARMLANE_NATS_GATEWAY_PASSWORD"]
    named = access("lane", "nats://me:s%40cret@h1:4222,nats://h2:4222", data_dir=tmp_path)
    assert (named.urls, named.user, named.password) == ("nats://h1:4222,nats://h2:4222", "me", "s@cret")
    assert "s@cret" not in repr(named)
    assert named.arguments() == ["--nats-url", "nats://h1:4222,nats://h2:4222"]


def test_a_process_is_not_given_the_passwords_of_others() -> None:
    mine = environment_for("lane", clean_environment())
    assert [name for name in mine if name.endswith("_PASSWORD")] == ["WARMLANE_NATS_LANE_PASSWORD"]
    assert not [name for name in environment_for(None, clean_environment()) if name.endswith("_PASSWORD")]


# ── `warmlane nats-server` ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_embedded_server_by_itself(tmp_path: Path) -> None:
    """The server has the store and the users of `warmlane up`, as for a restore."""
    port = free_port()
    command = warmlane_command("nats-server", "--nats-port", str(port), "--data-dir", str(tmp_path))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=clean_environment(), stdout=log, stderr=log)
    url = f"nats://127.0.0.1:{port}"

    async def use() -> None:
        link = await NatsLink.connect(access("admin", url, data_dir=tmp_path), name="test", wait_s=BOUND_S)
        await provision(link, WANT)
        await link.entries.put(TASKS, "kept", b"x")
        await link.close()

    try:
        eventually_sync(lambda: access("admin", url, data_dir=tmp_path).user == "admin")
        asyncio.run(use())
        # a command that needs nothing else from the folder finds its password there, too
        result = subprocess.run(
            warmlane_command("keys", "list", "--nats-url", url, "--data-dir", str(tmp_path)),
            env=environment_for(None, clean_environment()),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, "no API key yet" in result.stdout) == (0, True), result.stderr
        assert (tmp_path / "nats" / "jetstream").is_dir()
        second = warmlane_command("nats-server", "--nats-port", str(free_port()), "--data-dir", str(tmp_path))
        refused = subprocess.run(
            second, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.returncode == 1
        assert f"is in use by `warmlane nats-server` (pid {process.pid}, NATS port {port})" in refused.stderr
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert make_users(tmp_path, url)["WARMLANE_NATS_ADMIN_PASSWORD"] not in shown
    finally:
        process.terminate()
        process.wait(timeout=60)
