"""A request that will almost certainly not start in time is refused at once, where the settings say so (ADR 0039)."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import msgspec
import pytest

from contracts.lanes import Leadership
from contracts.order import OrderState
from contracts.settings import load_settings
from contracts.topology import DEGRADED, LEADER, LEADER_KEY
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, KEEP_S, eventually

RUN_S = 100.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    process.nats.start()

    async def prepare() -> None:
        link = await connected(process.nats.url)
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await link.close()

    asyncio.run(prepare())
    process.start("--keep", f"{KEEP_S:g}s", WARMLANE_REFUSE_EXPECTED="1")
    yield process
    process.stop()
    process.nats.stop()


@pytest.fixture
async def system(gateway: GatewayProcess) -> AsyncIterator[System]:
    """A system in which a task of anisora has just begun; a run of that model takes RUN_S."""
    link = await connected(gateway.nats.url)
    await js_of(link).purge_stream(DEGRADED)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:
        system = System(gateway, link, http)
        running = (await system.submit())["id"]
        await system.claim(running)

        async def known() -> bool:
            return bool((await http.get(f"/tasks/{running}")).json()["status"] == "processing")

        await eventually(known)
        yield system
        tasks = (await http.get("/tasks", params={"status": ["pending", "processing"], "limit": 100})).json()["tasks"]
        for task in tasks:
            await http.delete(f"/tasks/{task['id']}")
        await nobody_leads(link)
    await link.close()


async def nobody_leads(link: NatsLink) -> None:
    entry = await link.entries.get(LEADER, LEADER_KEY)
    if entry is not None and entry.value is not None:
        await link.entries.delete(LEADER, LEADER_KEY, revision=entry.revision)


async def leads(system: System, *measured: str) -> None:
    """Reports a leader that has measured runs of these models; returns when the gateway knows."""
    now = datetime.now(UTC)
    order = OrderState(
        at=now,
        order="swap-aware",
        swap_share=0.2,
        slice_max_s=120.0,
        turn_share=0.2,
        loaded="anisora",
        loaded_at=now,
        free_at=now + timedelta(seconds=RUN_S),
        run_s=dict.fromkeys(measured, RUN_S),
    )
    leadership = Leadership(worker="degraded-0", owner="o", slot="cpu-0", pid=1, since=now, order=order)
    await system.link.entries.put(LEADER, LEADER_KEY, msgspec.json.encode(leadership))

    async def known() -> bool:
        leader = (await system.http.get("/admin/queue")).json()["leader"]
        # an earlier test's leader may still be there
        return leader is not None and datetime.fromisoformat(leader["since"]) == now

    await eventually(known)


async def test_it_is_refused_at_once_and_leaves_nothing_behind(system: System) -> None:
    await leads(system, "anisora")
    before = await system.depth()
    answer = await system.post(prefer="respond-async")
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (
        503,
        "queue_overloaded",
        "expected",
    )
    assert answer.json()["detail"].startswith("no worker is expected to be free for it within 30 s")
    assert int(answer.headers["retry-after"]) >= 1
    assert await system.depth() == before
    text = (await system.http.get("/metrics")).text
    assert re.search(r'^warmlane_requests_overloaded_total\{[^}]*limit="expected"[^}]*\} 1', text, re.MULTILINE)


async def test_a_request_with_a_key_is_queued_all_the_same(system: System) -> None:
    """An earlier try of it may be queued already without having a record."""
    await leads(system, "anisora")
    answer = await system.post(prefer="respond-async", **{"idempotency-key": "mine"})
    assert answer.status_code == 202


async def test_what_was_not_measured_is_not_foreseen(system: System) -> None:
    await leads(system, "phr00t")
    assert (await system.post(prefer="respond-async")).status_code == 202


async def test_without_a_leader_nothing_is_foreseen(system: System) -> None:
    """A leader may still come."""
    await nobody_leads(system.link)

    async def gone() -> bool:
        return bool((await system.http.get("/admin/queue")).json()["leader"] is None)

    await eventually(gone)
    assert (await system.post(prefer="respond-async")).status_code == 202
