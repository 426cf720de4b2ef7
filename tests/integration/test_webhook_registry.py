"""How many endpoints a caller may have, however many gateways it uses."""

import asyncio
from datetime import UTC, datetime

from cryptography.fernet import Fernet

from contracts.webhooks import ENDPOINTS_PER_CALLER_MAX, WebhookEndpoint
from gateway.boards.endpoint_board import EndpointBoard
from gateway.webhooks.registry import Registry, TooManyEndpoints
from gateway.webhooks.sealing import Sealer
from ops.nats.bucket import Bucket
from ops.nats.buckets import ENDPOINTS
from ops.nats.link import NatsLink
from tests.kit.gateway import System
from tests.kit.webhooks import gateway, register, system

__all__ = ["gateway", "system"]  # fixtures

URL = "http://127.0.0.1:9/hook"


def registry_on(link: NatsLink) -> Registry:
    """The registry of a gateway that has seen none of the registered endpoints."""
    return Registry(link, EndpointBoard(), Sealer(Fernet.generate_key().decode()))


async def add(registry: Registry, caller: str = "alice") -> WebhookEndpoint | None:
    """Registers an endpoint, and returns it; None where there are too many."""
    try:
        return (await registry.add(caller, URL, (), now=datetime.now(UTC)))[0]
    except TooManyEndpoints:
        return None


async def registered(link: NatsLink, caller: str = "alice") -> set[str]:
    values = [entry.value for entry in await Bucket(link, ENDPOINTS).entries()]
    return {value.id for value in values if value is not None and value.caller == caller and value.url is not None}


async def test_a_gateway_that_is_behind_registers_none_too_many(link: NatsLink) -> None:
    """A caller's secrets for the addresses in its requests do not count as endpoints, and other callers' endpoints do
    not count either."""
    await registry_on(link).for_requests("alice", now=datetime.now(UTC))
    await add(registry_on(link), "bob")
    made = [await add(registry_on(link)) for _ in range(ENDPOINTS_PER_CALLER_MAX + 2)]
    ids = {each.id for each in made if each is not None}
    assert [each is not None for each in made] == [True] * ENDPOINTS_PER_CALLER_MAX + [False] * 2
    assert await registered(link) == ids
    await registry_on(link).remove(ids.pop())
    assert await add(registry_on(link)) is not None


async def test_gateways_that_register_at_once_have_none_too_many_together(link: NatsLink) -> None:
    """Each endpoint that a client got in an answer stays, and no other one does."""
    before = [await add(registry_on(link)) for _ in range(ENDPOINTS_PER_CALLER_MAX - 3)]
    at_once = await asyncio.gather(*(add(registry_on(link)) for _ in range(8)))
    answered = {each.id for each in (*before, *at_once) if each is not None}
    assert await registered(link) == answered
    assert len(answered) <= ENDPOINTS_PER_CALLER_MAX


async def test_a_gateway_that_missed_a_removal_refuses_nothing_for_it(link: NatsLink) -> None:
    """Whoever removed an endpoint, at whichever gateway, may register another one at once."""
    behind, other = registry_on(link), registry_on(link)
    made = [await add(behind) for _ in range(ENDPOINTS_PER_CALLER_MAX)]
    assert made[0] is not None
    await other.remove(made[0].id)
    assert await add(behind) is not None


async def test_a_gateway_knows_its_own_changes_at_once(link: NatsLink) -> None:
    """It need not wait for the watch, which brings them again later."""
    board = EndpointBoard()
    registry = Registry(link, board, Sealer(Fernet.generate_key().decode()))
    made, _ = await registry.add("alice", URL, (), now=datetime.now(UTC))
    assert board.of("alice") == (made,)
    off = await registry.disable(made.id, "test", now=datetime.now(UTC))
    assert board.of("alice") == (off,)
    own = await registry.for_requests("alice", now=datetime.now(UTC))
    assert board.for_requests("alice") == own
    await registry.remove(made.id)
    assert board.of("alice") == ()


async def test_one_too_many_is_refused_with_what_to_do(system: System) -> None:
    ids = [(await register(system, URL))[0] for _ in range(ENDPOINTS_PER_CALLER_MAX)]
    refused = await system.http.post("/webhooks", json={"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_webhooks")
    assert "remove one first" in refused.json()["detail"]
    assert (await system.http.delete(f"/webhooks/{ids[0]}")).status_code == 204
    await register(system, URL)
