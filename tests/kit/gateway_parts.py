"""The parts of a gateway, in the process of the test."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from contracts.settings import Catalog
from gateway.services import Services
from ops.nats.provisioning import provision, wanted
from tests.kit.patient import connected
from tests.kit.support import KEEP_S, NatsServer


@contextlib.asynccontextmanager
async def services_on(
    server: NatsServer, catalog: Catalog, folder: Path, *, keep_s: float = KEEP_S
) -> AsyncIterator[Services]:
    """The services of a gateway on *server*, which this provisions first. Their artifacts are in a folder in
    *folder*."""
    link = await connected(server.url)
    await provision(link, wanted(catalog, keep_s=keep_s))
    await link.close()
    services = Services(catalog=catalog, nats=server.url, artifacts_dir=folder / "artifacts", keep_s=keep_s)
    async with services.running():
        yield services
