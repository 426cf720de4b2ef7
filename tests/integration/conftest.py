"""Fixtures of a real gateway process on a real nats-server, with lanes that are reported warm, or without."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from contracts.topology import DEGRADED
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.gateway import MODELS, GatewayProcess, System, provisioned_gateway, warm_lanes
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, NO_TLS


@pytest.fixture(scope="module")
def bare_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module. It has never heard of a lane."""
    with provisioned_gateway(tmp_path_factory.mktemp("gateway")) as process:
        yield process


@pytest.fixture
async def bare_system(bare_gateway: GatewayProcess) -> AsyncIterator[System]:
    """`bare_gateway` with empty queues, and without tasks that would return to them.

    In the middle of any later test, a lane task that no lane takes goes to the degraded queue, after 30 s, and so does
    a task that was claimed by hand, when its lease is over.
    """
    link = await connected(bare_gateway.nats.url)
    await js_of(link).purge_stream(DEGRADED)
    async with httpx.AsyncClient(base_url=bare_gateway.url, timeout=BOUND_S, verify=NO_TLS) as http:
        yield System(bare_gateway, link, http)
        while tasks := (await http.get("/tasks?status=pending&status=processing&limit=100")).json()["tasks"]:
            for task in tasks:
                await http.delete(f"/tasks/{task['id']}")
    await link.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the tests of a module; both models have a lane that was reported warm."""
    with provisioned_gateway(tmp_path_factory.mktemp("gateway"), *MODELS) as process:
        yield process


@pytest.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway, which knows again that the lanes are warm. No task of the test waits after it: after
    30 s it would go to the degraded queue, in the middle of any later test."""
    link = await connected(gateway.nats.url)
    await warm_lanes(link, gateway)
    await link.close()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S, verify=NO_TLS) as client:
        yield client
        answer = await client.get("/tasks?status=pending&limit=100")
        while answer.status_code == 200 and (tasks := answer.json()["tasks"]):  # a gateway with keys has its last test
            for task in tasks:
                await client.delete(f"/tasks/{task['id']}")
            answer = await client.get("/tasks?status=pending&limit=100")


@pytest.fixture
async def gateway_link(gateway: GatewayProcess) -> AsyncIterator[NatsLink]:
    """A connection to the gateway's server."""
    link = await connected(gateway.nats.url)
    yield link
    await link.close()
