"""Over kills of both gateways and of nats-server, no delivery is lost, and none reports what did not happen."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx

from contracts.lanes import Leadership
from contracts.nesting import decode_json
from contracts.settings import load_settings
from contracts.topology import LEADER, WEBHOOKS_LEADER_KEY
from ops.nats.errors import TransportUnavailable, WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.gateway import GatewayProcess, System
from tests.kit.receivers import receiving
from tests.kit.support import BOUND_S, KEEP_S, eventually
from tests.kit.webhooks import OPTIONS, finish, register, submit


async def leading(link: NatsLink, *living: GatewayProcess) -> GatewayProcess:
    """The gateway among *living* that delivers, once one does."""

    async def look() -> GatewayProcess | None:
        try:
            entry = await link.entries.get(LEADER, WEBHOOKS_LEADER_KEY)
        except TransportUnavailable:
            return None
        if entry is None or entry.value is None:
            return None
        pid = decode_json(entry.value, Leadership).pid
        return next((each for each in living if each.pid == pid), None)

    found = await eventually(look)
    assert found is not None
    return found


async def until_done(system: System, task_id: str) -> None:
    """Ends the task, as soon as the server lets that happen."""

    async def look() -> bool:
        try:
            task, _ = await system.record(task_id)
            if not task.status.is_terminal:
                await finish(system, task_id)
            return task.status.is_terminal
        except (TransportUnavailable, WrongRevision):
            return False

    await eventually(look)


async def test_every_ended_task_is_told_whoever_is_killed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = GatewayProcess(tmp_path / "one")
    one.nats.start()
    link = await NatsLink.connect(one.nats.url, name="test")
    await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
    other = GatewayProcess(tmp_path / "other", beside=one)
    try:
        for gateway in (one, other):
            await asyncio.to_thread(gateway.start, *OPTIONS)
        async with receiving() as receiver, httpx.AsyncClient(base_url=one.url, timeout=BOUND_S) as http:
            system = System(one, link, http)
            _, secret = await register(system, receiver.url)
            ids, running = [await submit(system) for _ in range(18)], await submit(system)
            for task_id in (*ids, running):
                await system.claim(task_id, lease_s=600)
            cancelled = [await submit(system) for _ in range(3)]
            for task_id in cancelled:
                await http.delete(f"/tasks/{task_id}")

            async def work() -> None:
                for task_id in ids:
                    await until_done(system, task_id)

            working = asyncio.create_task(work())
            first = await leading(link, one, other)
            second = other if first is one else one
            first.kill()
            await leading(link, second)
            await asyncio.to_thread(first.start, *OPTIONS)
            one.nats.kill()
            one.nats.start()
            await leading(link, one, other)
            second.kill()
            await working
            await asyncio.to_thread(second.start, *OPTIONS)
            for task_id in ids:
                await receiver.gets(task_id, "task.claimed", "task.done")
            for task_id in cancelled:
                await receiver.gets(task_id, "task.failed")
            await receiver.gets(running, "task.claimed")
            came = Counter(each.id for each in receiver.received)
            assert len(came) == 2 * len(ids) + 1 + len(cancelled)
            for each in receiver.received:
                each.verified(secret)
    finally:
        await link.close()
        for gateway in (one, other):
            gateway.stop()
        one.nats.stop()
