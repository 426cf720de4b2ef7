"""A system with API keys: who calls, the certificate, and a gateway that speaks HTTPS."""

import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx
import trustme

from contracts.keys import Presented, Scope
from ops.nats.api_keys import add
from ops.nats.link import NatsLink
from tests.kit import warm_cli
from tests.kit.gateway import GatewayProcess
from tests.kit.support import KEEP_S, clean_environment

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
    """Of this machine, by an authority of its own; the files are in *folder*."""

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
            return httpx.get(f"{self.url}/healthz", verify=self.certificate.trust()).status_code == 200
        except httpx.TransportError:
            return False


class Keyed:
    """Two gateways on one server: one on the loopback, one that speaks HTTPS on every address of this machine."""

    def __init__(self, gateway: GatewayProcess, tls: TlsGateway, keys: dict[str, Presented]) -> None:
        self.gateway, self.tls, self.keys = gateway, tls, keys
