"""A system with API keys: who calls, the certificate, and a gateway that speaks HTTPS."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme
from click.testing import CliRunner

from contracts.keys import Presented, Scope
from contracts.lanes import LaneState
from contracts.settings import load_settings
from ops.cli import cli
from ops.nats.api_keys import add
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit import warm_cli
from tests.kit.gateway import GatewayProcess, System, report_lane
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, KEEP_S, clean_environment, eventually

BODY = {"model": "anisora", "prompt": "a red fox"}
ASYNC = {"prefer": "respond-async"}
KEEP = ("--keep", f"{KEEP_S:g}s")


def by(presented: Presented) -> dict[str, str]:
    return {"authorization": f"Bearer {presented.text}"}


def run(*arguments: str, key: Presented | None = None) -> subprocess.CompletedProcess[str]:
    """`warmlane …`, with the key in its environment."""
    environment = clean_environment() | ({} if key is None else {"WARMLANE_API_KEY": key.text})
    return warm_cli.run(*arguments, env=environment)


async def make(link: NatsLink, caller: str, *scopes: Scope, rate_per_s: float | None = None) -> Presented:
    return await add(link, caller, scopes, rate_per_s=rate_per_s, burst_s=3_600, now=datetime.now(UTC))


class Certificate:
    """A certificate for this machine, signed by an authority of its own; the files are in *folder*."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        authority.cert_pem.write_to_path(self.ca)
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(self.key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)

    @property
    def options(self) -> list[str]:
        return ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


class TlsGateway(GatewayProcess):
    """A gateway that speaks HTTPS, with a certificate of its own."""

    def __init__(self, folder: Path, *, beside: GatewayProcess) -> None:
        super().__init__(folder, beside=beside)
        self.url = f"https://127.0.0.1:{self.port}"
        self.certificate = Certificate(folder)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return httpx.get(f"{self.url}/healthz", verify=self.certificate.trust(), timeout=BOUND_S).status_code == 200
        except httpx.TransportError:
            return False


class Keyed:
    """Two gateways on one server: one on the loopback, one that speaks HTTPS on every address of this machine."""

    def __init__(self, gateway: GatewayProcess, tls: TlsGateway, keys: dict[str, Presented]) -> None:
        self.gateway, self.tls, self.keys = gateway, tls, keys


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """Two gateways, keys of several callers, and lanes that were reported warm."""
    first = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    second = TlsGateway(tmp_path_factory.mktemp("tls"), beside=first)
    first.nats.start()

    async def prepare() -> dict[str, Presented]:
        link = await connected(first.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        for model in ("anisora", "phr00t"):
            await report_lane(link, model, LaneState.WARM)
        keys = {
            "alice": await make(link, "alice", "submit", "read"),
            "alice-reads": await make(link, "alice", "read"),
            "bob": await make(link, "bob", "submit", "read"),
            "operator": await make(link, "operator", "admin"),
        }
        await link.close()
        return keys

    keys = asyncio.run(prepare())
    with contextlib.ExitStack() as leave:
        leave.callback(first.nats.stop)
        for gateway, options in ((first, []), (second, ["--host", "0.0.0.0", *second.certificate.options])):
            gateway.start(*KEEP, *options)
            leave.callback(gateway.stop)
        yield Keyed(first, second, keys)


@pytest.fixture
async def system(keyed: Keyed) -> AsyncIterator[System]:
    """Lanes that are warm now, and a client without a key. No task of this test goes to the degraded queue, or back to
    its lane, in the middle of a later one."""
    link = await connected(keyed.gateway.nats.url)
    for model in ("anisora", "phr00t"):
        await report_lane(link, model, LaneState.WARM)
    async with httpx.AsyncClient(base_url=keyed.gateway.url, timeout=BOUND_S) as http:
        yield System(keyed.gateway, link, http)
        operator, live = by(keyed.keys["operator"]), "/tasks?status=pending&status=processing&limit=100"
        while tasks := (await http.get(live, headers=operator)).json()["tasks"]:
            for task in tasks:
                await http.delete(f"/tasks/{task['id']}", headers=operator)
    await link.close()


async def submit(system: System, key: Presented, **headers: str) -> str:
    answer = await system.http.post("/generate", json=BODY, headers=by(key) | ASYNC | headers)
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["id"]
    return task_id


# ── in which order ───────────────────────────────────────────────────────────────────────────────────────────────────


async def worn_out(system: System, url: str, caller: str, *scopes: Scope) -> dict[str, str]:
    """The headers of a key whose rate limit is used up."""
    presented = await make(system.link, caller, *scopes, rate_per_s=1 / 3_600)

    async def is_worn_out() -> bool:
        return (await system.http.get(f"{url}/settings", headers=by(presented))).status_code == 429

    await eventually(is_worn_out)
    return by(presented)


def exchange(port: int, head: bytes, body: bytes = b"") -> bytes:
    """What the gateway answers to these bytes, until it closes the connection or has sent a whole head."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND_S) as connection:
        connection.sendall(head + body)
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(65_536) or b"\r\n\r\n"
    return answer.lower()


# ── since when, until when ───────────────────────────────────────────────────────────────────────────────────────────


async def every_gateway_answers(keyed: Keyed, key: Presented, status: int) -> None:
    for gateway in (keyed.gateway, keyed.tls):
        async with httpx.AsyncClient(
            base_url=gateway.url, verify=keyed.tls.certificate.trust(), timeout=BOUND_S
        ) as http:

            async def answers(http: httpx.AsyncClient = http) -> bool:
                return (await http.get("/settings", headers=by(key))).status_code == status

            await eventually(answers)


async def every_gateway_knows(keyed: Keyed, link: NatsLink) -> None:
    """Returns when every gateway knows what became of the keys before this call: they learn it in this order."""
    await every_gateway_answers(keyed, await make(link, "witness", "read"), 200)


def asked(keyed: Keyed, *arguments: str, key: str | None, tls: bool = False, **more: str) -> tuple[int, str]:
    """Runs a client command in this process; returns its exit status and output."""
    environment: dict[str, str | None] = {"WARMLANE_API_KEY": None if key is None else keyed.keys[key].text}
    url = keyed.tls.url if tls else keyed.gateway.url
    result = CliRunner().invoke(cli, [*arguments, "--url", url], env=environment | more)
    return result.exit_code, result.stdout + result.stderr
