"""Fixtures of all tests: a real nats-server each."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts.settings import Catalog, load_settings
from ops.nats_link import NatsLink
from ops.provision import provision, wanted
from tests.support import NatsServer

KEEP_S = 3_600.0


@pytest.fixture
def catalog() -> Catalog:
    """The packaged settings, tiny profile."""
    return load_settings().catalog("tiny")


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running server with nothing in it."""
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def link(nats_server: NatsServer, catalog: Catalog) -> AsyncIterator[NatsLink]:
    """A connection to a provisioned server."""
    link = await NatsLink.connect(nats_server.url, name="test")
    await provision(link, wanted(catalog, keep_s=KEEP_S))
    yield link
    await link.close()
