"""Held requests: a caller that hangs up gives up its place, unless another caller waits for the same task (FR-017, ADR
0011)."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts import lifecycle
from contracts.tasks import TaskStatus, encode_task
from contracts.topology import DEGRADED, TASKS, work_subject
from tests.kit.gateway import GatewayProcess, System
from tests.kit.samples import data_uri, picture
from tests.kit.support import KEEP_S, eventually

IMAGE = data_uri(picture("PNG"))


@pytest.fixture
def system(bare_system: System) -> System:
    return bare_system


@pytest.fixture
async def second_gateway(bare_gateway: GatewayProcess, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """Another gateway of the same system."""
    gateway = GatewayProcess(tmp_path, beside=bare_gateway)
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    yield gateway
    gateway.stop()


class Caller:
    """A held client, on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def post(cls, port: int, *, key: str | None = None, image: str | None = None) -> "Caller":
        body = json.dumps({"model": "anisora", "prompt": "x"} | ({} if image is None else {"image": image})).encode()
        head = [
            "POST /generate HTTP/1.1",
            "Host: [::1]",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if key is not None:
            head.append(f"Idempotency-Key: {key}")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        return cls(reader, writer)

    async def answer(self) -> int:
        """The status of the answer."""
        return int((await self.reader.readline()).split()[1])

    async def hang_up(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def logged(gateway: GatewayProcess, event: str, task_id: str, *, times: int = 1) -> None:
    """Returns when *gateway* has logged *event* of the task *times* times."""

    async def look() -> bool:
        return sum(event in line and task_id in line for line in gateway.log().splitlines()) >= times

    await eventually(look)


async def withdrawn(system: System, task_id: str) -> None:
    task = await system.becomes(task_id, TaskStatus.FAILED, epoch=0)
    assert task.error is not None
    assert (task.error.code, task.withdrawn, task.was_refused) == ("cancelled", True, True)

    async def nothing_left() -> bool:
        return await system.depth() == 0 and not list(system.gateway.artifacts.rglob(f"{task_id}.*"))

    await eventually(nothing_left)


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
async def test_a_caller_that_hangs_up_frees_its_place(half: bool, system: System) -> None:
    """No message and no image are left, and the record says what became of the task."""
    caller = await Caller.post(system.gateway.port, image=IMAGE)
    task_id = await system.only_task()
    assert list(system.gateway.artifacts.rglob(f"{task_id}.*"))
    if half:
        caller.writer.write_eof()
    else:
        await caller.hang_up()
    await withdrawn(system, task_id)


async def test_a_caller_that_hangs_up_before_it_is_held_frees_its_place(system: System) -> None:
    callers = [await Caller.post(system.gateway.port) for _ in range(10)]
    for caller in callers:
        await caller.hang_up()

    async def none_waits() -> bool:
        pending = (await system.http.get("/tasks", params={"status": "pending", "limit": 100})).json()["tasks"]
        held = [task for task in pending if not (await system.record(task["id"]))[0].promised]
        return await system.depth() == 0 and not held

    await eventually(none_waits)


async def test_a_task_is_withdrawn_when_its_last_caller_has_hung_up(system: System) -> None:
    """Two callers share one key. When one leaves, nothing changes. After both have left, the key makes a new task."""
    first = await Caller.post(system.gateway.port, key="two")
    task_id = await system.only_task()
    second = await Caller.post(system.gateway.port, key="two")
    await logged(system.gateway, "caller_held", task_id, times=2)
    await first.hang_up()
    await logged(system.gateway, "still_awaited", task_id)
    assert (await system.record(task_id))[0].status is TaskStatus.PENDING
    third = await Caller.post(system.gateway.port, key="two")
    await logged(system.gateway, "caller_held", task_id, times=3)
    await second.hang_up()
    await third.hang_up()
    await withdrawn(system, task_id)
    again = asyncio.create_task(system.post(**{"idempotency-key": "two"}))
    new_id = await system.only_task()
    assert new_id != task_id
    await system.claim(new_id)
    assert (await again).json()["id"] == new_id


async def test_a_caller_at_another_gateway_keeps_the_task(system: System, second_gateway: GatewayProcess) -> None:
    first = await Caller.post(system.gateway.port, key="far")
    task_id = await system.only_task()
    second = await Caller.post(second_gateway.port, key="far")
    await logged(second_gateway, "caller_held", task_id)
    await first.hang_up()
    await logged(system.gateway, "still_awaited", task_id)
    assert (await system.record(task_id))[0].status is TaskStatus.PENDING
    await second.hang_up()
    await withdrawn(system, task_id)


async def test_a_task_that_was_promised_is_not_withdrawn(system: System) -> None:
    """After the first `202` no closed connection withdraws the task. Held callers get an answer too."""
    held = await Caller.post(system.gateway.port, key="promised")
    task_id = await system.only_task()
    promised = await system.submit(**{"idempotency-key": "promised"})
    assert (promised["id"], promised["status"]) == (task_id, "pending")
    assert await held.answer() == 202
    await held.hang_up()
    late = await system.post(**{"idempotency-key": "promised"})
    assert (late.status_code, late.json()["id"]) == (202, task_id)
    record, _ = await system.record(task_id)
    assert (record.status, record.promised) == (TaskStatus.PENDING, True)


async def test_a_waiting_caller_whose_task_was_withdrawn_is_submitted_again(system: System) -> None:
    """A gateway that did not know of this caller has withdrawn the task: the caller gets the next task of its key."""
    caller = await Caller.post(system.gateway.port, key="race")
    task_id = await system.only_task()
    record, revision = await system.record(task_id)
    await system.link.entries.update(
        TASKS, task_id, encode_task(lifecycle.withdraw(record, now=datetime.now(UTC))), revision=revision
    )
    await system.link.messages.purge(DEGRADED, work_subject("degraded", "anisora", task_id))
    new_id = await system.only_task()
    assert new_id != task_id
    await system.claim(new_id)
    assert await caller.answer() == 202


async def test_a_gateway_that_leaves_promises_what_it_holds(system: System, second_gateway: GatewayProcess) -> None:
    """At SIGTERM held callers get `202`, and their tasks stay in the queue."""
    caller = await Caller.post(second_gateway.port)
    task_id = await system.only_task()
    await logged(second_gateway, "caller_held", task_id)
    await asyncio.to_thread(second_gateway.stop)
    assert await caller.answer() == 202
    record, _ = await system.record(task_id)
    assert (record.status, record.promised) == (TaskStatus.PENDING, True)
    assert await system.depth() == 1
