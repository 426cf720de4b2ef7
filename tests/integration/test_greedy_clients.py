"""1,000 event streams and 1,000 idle connections at once, against a real gateway process."""

import asyncio
import json

import httpx
import psutil

from gateway.boards.open_streams import PER_CALLER_MAX, WAITS_PER_CALLER_MAX
from gateway.server.limits import HEAD_MAX_BYTES, raise_fd_limit
from tests.kit.gateway import GatewayProcess
from tests.kit.loopback import Talk
from tests.kit.support import eventually

STREAMS = 1_000
IDLE = 1_000
# Generous: measured are 30 to 60 kB for a stream, and a few kB for an idle connection.
STREAM_MAX_BYTES = 250_000
IDLE_MAX_BYTES = 50_000


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def connections_of(pid: int) -> int:
    """The number of clients' connections, without the one to nats-server."""
    process = psutil.Process(pid)
    (port,) = [listening.laddr.port for listening in process.net_connections() if listening.status == "LISTEN"]
    return sum(each.laddr.port == port and each.status == "ESTABLISHED" for each in process.net_connections())


async def follow(port: int, task_id: str) -> tuple[Talk, int]:
    talk = await Talk.to(port)
    await talk.say(f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: [::1]\r\n\r\n".encode())
    head = await talk.reader.readuntil(b"\r\n\r\n")
    return talk, int(head.split()[1])


async def test_a_thousand_streams_and_a_thousand_idle_connections(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    raise_fd_limit(STREAMS + IDLE)
    task = (await http.post("/generate", json={"model": "anisora", "prompt": "x"})).json()
    before_bytes = resident_bytes(gateway.pid)

    idle = await asyncio.gather(*(Talk.to(gateway.port) for _ in range(IDLE)))

    async def all_there() -> bool:
        return connections_of(gateway.pid) >= IDLE

    await eventually(all_there)
    with_idle_bytes = resident_bytes(gateway.pid)

    followed = await asyncio.gather(*(follow(gateway.port, task["id"]) for _ in range(STREAMS)))
    with_streams_bytes = resident_bytes(gateway.pid)
    statuses = [status for _, status in followed]
    assert (statuses.count(200), statuses.count(429)) == (PER_CALLER_MAX, STREAMS - PER_CALLER_MAX)
    refused = next(talk for talk, status in followed if status == 429)
    assert json.loads(await refused.reader.readuntil(b'"retry_after_s":5.0}'))["code"] == "too_many_streams"

    # the gateway serves other clients meanwhile
    answer = await http.get(f"/tasks/{task['id']}/events")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.post("/generate", json={"model": "phr00t", "prompt": "x"})).status_code == 202

    # every open stream hears of the change, and ends by itself
    assert (await http.delete(f"/tasks/{task['id']}")).json()["status"] == "failed"
    ends = await asyncio.gather(
        *(talk.reader.readuntil(b"\r\n0\r\n\r\n") for talk, status in followed if status == 200)
    )
    assert all(b'"status":"failed"' in end for end in ends)

    per_idle_bytes = (with_idle_bytes - before_bytes) // IDLE
    per_stream_bytes = (with_streams_bytes - with_idle_bytes) // PER_CALLER_MAX
    print(f"{per_idle_bytes} bytes for an idle connection, {per_stream_bytes} bytes for an open stream")
    assert per_idle_bytes < IDLE_MAX_BYTES
    assert per_stream_bytes < STREAM_MAX_BYTES

    for talk in (*idle, *(talk for talk, _ in followed)):
        await talk.close()

    async def all_gone() -> bool:
        return connections_of(gateway.pid) <= 1  # `http` has one

    await eventually(all_gone)


async def test_a_stream_whose_client_goes_is_counted_down(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    task = (await http.post("/generate", json={"model": "anisora", "prompt": "x"})).json()
    for _ in range(2):  # the second round finds the places of the first one free
        followed = await asyncio.gather(*(follow(gateway.port, task["id"]) for _ in range(PER_CALLER_MAX)))
        assert {status for _, status in followed} == {200}
        for talk, _ in followed:
            talk.writer.transport.abort()

        async def all_gone() -> bool:
            talk, status = await follow(gateway.port, task["id"])
            await talk.close()
            return status == 200 and connections_of(gateway.pid) <= 2

        await eventually(all_gone)


async def test_requests_that_wait_are_bounded_and_those_whose_client_goes_make_room(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    raise_fd_limit(WAITS_PER_CALLER_MAX)
    stays, *others = await asyncio.gather(*(Talk.to(gateway.port) for _ in range(WAITS_PER_CALLER_MAX)))
    # only now: the task waits for a lane for 30 s, and on a busy machine the connections alone take a while
    task = (await http.post("/generate", json={"model": "anisora", "prompt": "x"})).json()
    for talk in (*others, stays):  # on a busy machine a thousand take a while, and the last one waits for 20 s alone
        path = f"/tasks/{task['id']}?wait={20 if talk is stays else 60}"
        await talk.say(f"GET {path} HTTP/1.1\r\nHost: [::1]\r\n\r\n".encode())

    async def is_full() -> httpx.Response | None:
        answer = await http.get(f"/tasks/{task['id']}?wait=0.05")
        return answer if answer.status_code == 429 else None

    refused = await eventually(is_full)
    assert refused is not None
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("too_many_waits", "5")
    # the gateway answers an accepted request at once, and says that it did not wait
    body = {"model": "anisora", "prompt": "x"}
    answer = await http.post("/generate", json=body, headers={"prefer": "wait=60, respond-async"})
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.headers["preference-applied"] == "respond-async"
    # requests that need not wait do not count
    assert (await http.get(f"/tasks/{task['id']}")).json()["status"] == "pending"

    answered = asyncio.create_task(stays.reader.readuntil(b"\r\n\r\n"))
    for talk in others:
        talk.writer.transport.abort()

    async def has_room() -> bool:
        answers = await asyncio.gather(*(http.get(f"/tasks/{task['id']}?wait=0.2") for _ in range(2)))
        return all(answer.status_code == 200 for answer in answers)

    await eventually(has_room)
    # the waits of the others are longer, so they have not just ended
    assert not answered.done()
    assert (await http.delete(f"/tasks/{task['id']}")).status_code == 200
    assert (await answered).startswith(b"HTTP/1.1 200 ")
    await stays.close()


async def test_a_head_that_is_too_large_for_a_real_gateway(gateway: GatewayProcess) -> None:
    talk = await Talk.to(gateway.port)
    await talk.say(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\na: " + b"b" * HEAD_MAX_BYTES)
    answer = await talk.answer()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"
    await talk.close()
