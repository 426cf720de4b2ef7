"""API keys and TLS without the gateways of `test_access.py`: `warmlane keys`, a server that is away, `warmlane up`."""

import asyncio
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trustme
from click.testing import CliRunner

from contracts.keys import Presented
from contracts.settings import load_settings
from gateway.boards.key_board import KeyBoard
from ops.cli import cli
from ops.machine.processes import warmlane_command
from ops.machine.tls import tls_of
from ops.nats.api_keys import add, forget_revoked, read_keys, revoke
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.integration.test_waiting import WaitingGateway
from tests.kit.gateway import GatewayProcess
from tests.kit.keyed import ASYNC, BODY, KEEP, Certificate, by, make, run
from tests.kit.patient import connected
from tests.kit.support import (
    BOUND_S,
    KEEP_S,
    NatsServer,
    clean_environment,
    eventually,
    eventually_sync,
    free_port,
    shared_forks,
)


async def test_the_last_known_keys_stay_in_force_while_the_server_is_away(tmp_path: Path) -> None:
    """From the first key on a gateway stays closed, even after the last key was revoked and after a restart."""
    gateway = GatewayProcess(tmp_path)
    with contextlib.ExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        link = await connected(gateway.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        nats = ("--nats-url", gateway.nats.url)

        # without any key, a gateway for other machines waits for one, and a gateway on the loopback is open
        (tmp_path / "for-others").mkdir()
        for_others = WaitingGateway(gateway.nats, tmp_path / "for-others", "--host", "0.0.0.0")
        leave.callback(for_others.end)
        async with httpx.AsyncClient(base_url=for_others.url, timeout=BOUND_S) as http:

            async def asks_for_a_key() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return "warmlane keys add" in (await http.get("/readyz")).text
                return False

            await eventually(asks_for_a_key)
            assert (await http.get("/settings")).json()["code"] == "starting"
        await asyncio.to_thread(gateway.start, *KEEP)
        leave.callback(gateway.stop)
        assert '"open"' in gateway.log()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
            answer = await http.post("/generate", json=BODY, headers=ASYNC)
            assert answer.status_code == 202
            before = f"/tasks/{answer.json()['id']}"
            assert (await http.get(before)).status_code == 200

            # a web page whose own name leads to this gateway cannot use it, though the browser is on this machine
            rebound = await http.post("/generate", json=BODY, headers=ASYNC | {"host": "attacker.example:8000"})
            assert (rebound.status_code, rebound.json()["code"]) == (403, "foreign_host")
            assert (await http.get("/healthz", headers={"host": "attacker.example"})).status_code == 200

            made = await asyncio.to_thread(run, "keys", "add", "alice", "--scope", "read", *nats)
            assert made.returncode == 0, made.stderr
            key = {"authorization": f"Bearer {made.stdout.strip()}"}

            async def answers(headers: dict[str, str], status: int, path: str = "/settings") -> None:
                async def look() -> bool:
                    return (await http.get(path, headers=headers)).status_code == status

                await eventually(look)

            await answers({}, 401)
            await answers(key, 200)
            await answers(key, 404, before)

            gateway.nats.kill()

            async def notices() -> bool:
                return "nats_disconnected" in gateway.log()

            await eventually(notices)
            assert (await http.get("/settings", headers=key)).status_code == 200
            assert (await http.get("/settings")).status_code == 401
            gateway.nats.start()

            key_id = made.stdout.split("_")[1]
            revoked = await asyncio.to_thread(run, "keys", "revoke", key_id, *nats)
            assert revoked.returncode == 0, revoked.stderr
            assert "no key is in force now" in revoked.stderr
            await answers(key, 401)
            await answers({}, 401)
        await asyncio.to_thread(gateway.stop)
        await asyncio.to_thread(gateway.start, *KEEP)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:
            assert (await http.get("/settings")).status_code == 401
        await link.close()


async def test_a_revoked_key_goes_after_a_month_and_leaves_every_gateway_closed(link: NatsLink) -> None:
    now = datetime.now(UTC)
    for days in (29, 30):
        presented = await add(link, f"left-{days}", ("read",), now=now - timedelta(days=60))
        await revoke(link, presented.id, now=now - timedelta(days=days))
    assert await forget_revoked(link, now=now) == 1
    stored = await read_keys(link)
    assert [key.caller for key in stored.keys] == ["left-29"]
    assert await forget_revoked(link, now=now + timedelta(days=30)) == 1
    stored = await read_keys(link)
    assert (stored.keys, stored.was_one_made) == ((), True)
    board = KeyBoard(opens_without_keys=True)
    await board.start(link)
    assert not board.is_open


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two words", "--scope", "read"], "1 to 64 letters"),
        (["anonymous", "--scope", "read"], "not anonymous"),
        (["alice"], "--scope"),
        (["alice", "--scope", "write"], "'submit', 'read', 'metrics', 'admin'"),
        (["alice", "--scope", "read", "--rate", "0.01"], "--burst 100"),
        (["alice", "--scope", "read", "--rate", "50000"], "shorter --burst"),
    ],
)
def test_what_keys_add_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["keys", "add", *arguments, "--nats-url", "nats://127.0.0.1:1"])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_up_for_others_needs_a_key_first_and_then_speaks_https(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    data_dir = tmp_path / "data"
    port, nats_port = free_port(), free_port()
    options = ["up", "--host", "0.0.0.0", "--port", str(port), "--nats-port", str(nats_port)]
    options += ["--data-dir", str(data_dir), "--lanes", "anisora=0,phr00t=0", *certificate.options]
    refused = run(*options)
    assert refused.returncode == 1
    assert "warmlane keys add" in refused.stderr
    assert "without --host" in refused.stderr
    for number in (port, nats_port):
        socket.create_server(("127.0.0.1", number)).close()  # no process is left running

    server = NatsServer(data_dir / "nats")
    server.start()

    async def prepare() -> Presented:
        link = await NatsLink.connect(server.url, name="test")
        presented = await make(link, "alice", "read")
        await link.close()
        return presented

    presented = asyncio.run(prepare())
    server.stop()
    output = tmp_path / "up.log"
    with output.open("wb") as log:
        environment = clean_environment() | shared_forks()
        up = subprocess.Popen(warmlane_command(*options), stdout=log, stderr=log, env=environment)
    try:
        url = f"https://127.0.0.1:{port}"

        def is_logged() -> bool:
            assert up.poll() is None, output.read_text()
            return url in output.read_text()

        eventually_sync(is_logged, within_s=120)
        assert "open:" not in output.read_text()
        with httpx.Client(base_url=url, verify=certificate.trust(), timeout=BOUND_S) as http:
            assert http.get("/tasks").status_code == 401
            assert http.get("/tasks", headers=by(presented)).status_code == 200
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=60) == 0, output.read_text()


# ── certificates that cannot be used ─────────────────────────────────────────────────────────────────────────────────


def tls_error(*arguments: str) -> tuple[int, str]:
    """The error of `warmlane gateway` about these files, before it does anything else."""
    result = CliRunner().invoke(cli, ["gateway", "--nats-url", "nats://127.0.0.1:1", *arguments])
    return result.exit_code, " ".join(result.stderr.split())


def test_files_that_make_no_tls(tmp_path: Path) -> None:
    first, second = (trustme.CA().issue_cert("127.0.0.1") for _ in range(2))
    cert, key, other = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "other.pem"
    first.cert_chain_pems[0].write_to_path(cert)
    first.private_key_pem.write_to_path(key)
    second.private_key_pem.write_to_path(other)
    usable = tls_of(cert, key)
    assert usable is not None
    assert usable.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls_error("--tls-cert", str(cert))[0] == 2
    assert "--tls-key is missing" in tls_error("--tls-cert", str(cert))[1]
    assert "--tls-cert is missing" in tls_error("--tls-key", str(key))[1]
    status, printed = tls_error("--tls-cert", str(cert), "--tls-key", str(other))
    assert (status, f"{other} is not the key of the certificate in --tls-cert {cert}" in printed) == (1, True)
    assert "holds no certificate" in tls_error("--tls-cert", str(key), "--tls-key", str(key))[1]
    assert "holds no private key" in tls_error("--tls-cert", str(cert), "--tls-key", str(cert))[1]
    cut = tmp_path / "cut.pem"
    cut.write_text(cert.read_text()[:200])
    status, printed = tls_error("--tls-cert", str(cut), "--tls-key", str(key))
    assert (status, str(cut) in printed) == (1, True)
    if shutil.which("openssl"):
        locked = tmp_path / "locked.pem"
        command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
        subprocess.run(command, check=True, capture_output=True)
        assert "has a passphrase" in tls_error("--tls-cert", str(cert), "--tls-key", str(locked))[1]
