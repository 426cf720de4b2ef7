"""`GET /tasks/events` over real HTTP: one stream for a page, whatever happens to the gateway."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from contracts import lifecycle
from contracts.keys import ANONYMOUS
from contracts.tasks import FailureCode, encode_task
from contracts.topology import TASKS
from ops.nats.api_keys import add, revoke
from ops.nats.link import NatsLink
from tests.integration.test_http_generate import problem
from tests.kit.event_source import EventSource
from tests.kit.gateway import System
from tests.kit.played import finished
from tests.kit.records import pending_task
from tests.kit.support import BOUND_S, KEEP_S, eventually


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, problem(answer)["code"]) == (status, code)
    return problem(answer)


class Page:
    """A page that follows tasks on one stream."""

    def __init__(self, stream: httpx.Response, source: EventSource) -> None:
        self._pieces = stream.aiter_bytes()
        self._source = source
        self._unread: list[tuple[str, dict[str, Any]]] = []

    @property
    def last_id(self) -> str:
        return self._source.last_id

    async def next(self) -> tuple[str, dict[str, Any]]:
        """The next event. Raises StopAsyncIteration where the stream has ended."""
        while not self._unread:
            async with asyncio.timeout(BOUND_S):
                piece = await anext(self._pieces)
            self._unread += [(each.name, json.loads(each.data)) for each in self._source.read(piece)]
        return self._unread.pop(0)

    async def until(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next event *name* with *fields*; earlier events are skipped."""
        while True:
            found, data = await self.next()
            if found == name and fields.items() <= data.items():
                return data

    async def until_it_is_at(self, revision: int) -> None:
        """Reads on until a client that reconnects would not get *revision* again."""
        while int(self.last_id or 0) < revision:
            async with asyncio.timeout(BOUND_S):
                piece = await anext(self._pieces)
            self._unread += [(each.name, json.loads(each.data)) for each in self._source.read(piece)]

    async def rest(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                found.append(await self.next())
        return found


@contextlib.asynccontextmanager
async def page(http: httpx.AsyncClient, last_id: str | None = None, **query: Any) -> AsyncIterator[Page]:
    """An open stream, whose event `open` is not read yet."""
    headers = {} if last_id is None else {"last-event-id": last_id}
    async with http.stream("GET", "/tasks/events", params=query, headers=headers) as stream:
        assert stream.status_code == 200, await stream.aread()
        assert stream.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        yield Page(stream, EventSource())


async def wait(link: NatsLink, model: str = "anisora", caller: str = ANONYMOUS) -> str:
    """Records by hand a task that waits for a lane; returns its id. No gateway has anything to do for it."""
    now = datetime.now(UTC)
    task = pending_task(
        str(uuid.uuid4()),
        model=model,
        caller=caller,
        created_at=now,
        queued_at=now,
        deadline_at=now + timedelta(hours=1),
    )
    await link.entries.create(TASKS, task.id, encode_task(task))
    return task.id


async def test_a_stream_of_a_label_carries_no_other_task(bare_system: System) -> None:
    http = bare_system.http
    async with page(http, label="shot:7") as seen:
        assert await seen.next() == ("open", {"resumed": False})
        for labels in ({"shot": "8"}, {}, {"shot": "7", "project": "spring"}):
            body = {"model": "anisora", "prompt": "x", "labels": labels}
            made = (await http.post("/generate", json=body, headers={"prefer": "respond-async"})).json()
        name, sent = await seen.next()
        assert (name, sent["id"], sent["labels"]) == ("task", made["id"], {"project": "spring", "shot": "7"})
        await http.delete(f"/tasks/{made['id']}")


async def test_a_page_sees_every_task_come_and_end(bare_system: System) -> None:
    http, link = bare_system.http, bare_system.link
    async with page(http) as seen:
        assert await seen.next() == ("open", {"resumed": False})
        assert seen.last_id.isdigit()
        first, second = await wait(link), await wait(link, "phr00t")
        for task_id in (first, second):
            sent = await seen.until("task", id=task_id)
            assert (sent["status"], sent["links"]["self"]) == ("pending", f"/tasks/{task_id}")
        await finished(link, bare_system.gateway, first)
        sent = await seen.until("task", id=first, status="done")
        assert sent == (await http.get(f"/tasks/{first}")).json()
        await http.delete(f"/tasks/{second}")
        sent = await seen.until("task", id=second, status="failed")
        assert sent["error"]["code"] == "cancelled"
        third = await wait(link)
        await seen.until("task", id=third)  # by then the watch has brought the gateway's own writes
        last_id = seen.last_id
    async with page(http, last_id) as again:
        assert await again.next() == ("open", {"resumed": True})
        fourth = await wait(link)
        # no earlier event is sent again
        name, sent = await again.next()
        assert (name, sent["id"]) == ("task", fourth)


async def test_a_page_hears_when_its_tasks_move_up(bare_system: System) -> None:
    http, link = bare_system.http, bare_system.link
    first, second, third = [await wait(link, "phr00t") for _ in range(3)]
    async with page(http, model="phr00t") as seen:
        await seen.until("open")
        at = (await http.get(f"/tasks/{third}")).json()["queue"]["position"]
        for leaving in (first, second):
            await http.delete(f"/tasks/{leaving}")
        moved = 0
        while moved != at - 2:
            places = (await seen.until("places"))["places"]
            moved = next((each["position"] for each in places if each["id"] == third), moved)
            assert all(set(each) == {"id", "position", "expected_wait_s"} for each in places)


async def test_filters_say_what_left(bare_system: System) -> None:
    link = bare_system.link
    async with page(bare_system.http, model="anisora-v3.2", status="pending,processing") as seen:
        await seen.until("open")
        await wait(link, "phr00t")
        task_id = await wait(link)
        assert (await seen.until("task"))["id"] == task_id
        await finished(link, bare_system.gateway, task_id)
        assert await seen.until("left") == {"id": task_id}
        following = await wait(link)
        assert (await seen.until("task"))["id"] == following


async def test_no_end_is_lost_when_the_gateway_is_killed(bare_system: System) -> None:
    """One task ends while no gateway lives, and another after it came back. A page that reconnects hears of both."""
    gateway, link, http = bare_system.gateway, bare_system.link, bare_system.http
    before, after = [await wait(link) for _ in range(2)]
    async with page(http) as seen:
        await seen.until("open")
        await seen.until("task", id=await wait(link))
        last_id = seen.last_id
        gateway.kill()
        with contextlib.suppress(httpx.TransportError):
            await seen.rest()
    task, revision = await bare_system.record(before)
    task = lifecycle.fail(task, code=FailureCode.INFERENCE_FAILED, message="x", now=datetime.now(UTC))
    await link.entries.update(TASKS, before, encode_task(task), revision=revision)
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    async with page(http, last_id) as again:
        assert await again.next() == ("open", {"resumed": True})
        name, sent = await again.next()
        assert (name, sent["id"], sent["status"]) == ("task", before, "failed")
        await http.delete(f"/tasks/{after}")
        assert (await again.until("task", id=after))["status"] == "failed"


async def test_an_end_that_was_seen_does_not_come_again(bare_system: System) -> None:
    """The gateway writes the end itself, and knows it before the watch does. It is killed once the page has heard."""
    gateway, link, http = bare_system.gateway, bare_system.link, bare_system.http
    task_id = await wait(link)
    async with page(http) as seen:
        await seen.until("open")
        await http.delete(f"/tasks/{task_id}")
        assert (await seen.until("task", id=task_id, status="failed"))["error"]["code"] == "cancelled"
        _, revision = await bare_system.record(task_id)
        await seen.until_it_is_at(revision)  # a comment on the stream says so: nothing else happens
        gateway.kill()
        with contextlib.suppress(httpx.TransportError):
            assert await seen.rest() == []
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    async with page(http, seen.last_id) as again:
        assert await again.next() == ("open", {"resumed": True})
        following = await wait(link)
        name, sent = await again.next()
        assert (name, sent["id"]) == ("task", following)


async def test_a_client_of_one_task_hears_its_end_once_whatever_becomes_of_the_gateway(bare_system: System) -> None:
    """The client reconnects as a browser does, with its last id, until the gateway ends that. The gateway is killed
    twice: before the task ends, which happens while no gateway lives, and right after the client heard of the end."""
    gateway, link, http = bare_system.gateway, bare_system.link, bare_system.http
    task_id = await wait(link)
    heard: list[tuple[str, str]] = []
    source = EventSource()

    async def listen() -> int:
        headers = {"last-event-id": source.last_id} if source.last_id else {}
        with contextlib.suppress(httpx.TransportError):
            async with http.stream("GET", f"/tasks/{task_id}/events", headers=headers) as stream:
                async for piece in stream.aiter_bytes():
                    for message in source.read(piece):
                        heard.append((message.last_id, json.loads(message.data)["status"]))
                        if len(heard) == 1:
                            await asyncio.to_thread(gateway.kill)
                            task, revision = await bare_system.record(task_id)
                            ended = lifecycle.fail(
                                task, code=FailureCode.INFERENCE_FAILED, message="x", now=datetime.now(UTC)
                            )
                            await link.entries.update(TASKS, task_id, encode_task(ended), revision=revision)
                        elif len(heard) == 2:
                            await asyncio.to_thread(gateway.kill)
                return stream.status_code
        return 0

    for _ in range(2):
        assert await listen() in (0, 200)
        await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    _, revision = await bare_system.record(task_id)
    assert [status for _, status in heard] == ["pending", "failed"]
    assert heard[-1][0] == str(revision)
    assert await listen() == 204
    assert len(heard) == 2


async def test_a_page_whose_id_is_not_known_lists_again(bare_system: System) -> None:
    async with page(bare_system.http, "999999999") as seen:
        assert await seen.next() == ("open", {"resumed": False})
        assert await seen.next() == ("reset", {"reason": "unknown"})
        await seen.until("task", id=await wait(bare_system.link))


@pytest.mark.parametrize(
    ("query", "headers", "detail"),
    [
        ("status=ended", {}, "status: expected pending, processing, done or failed"),
        ("model=nobody", {}, "model: no model has this name"),
        ("wait=3601", {}, "wait: expected a number from 0 to 3600"),
        ("since=1", {}, "'since': no such query parameter"),
        ("", {"last-event-id": "x"}, "Last-Event-ID: send the id of an event of this stream"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_no_stream(
    bare_system: System, method: str, query: str, headers: dict[str, str], detail: str
) -> None:
    answer = await bare_system.http.request(method, f"/tasks/events?{query}", headers=headers)
    if method == "GET":
        assert refused(answer, 400, "invalid_query")["detail"].startswith(detail)
    else:
        assert (answer.status_code, answer.content) == (400, b"")


async def test_a_stream_ends_when_it_was_asked_to_and_its_head_does_not_open_it(bare_system: System) -> None:
    async with page(bare_system.http, wait=0.1) as seen:
        assert [name for name, _ in await seen.rest()] == ["open"]
    head = await bare_system.http.head("/tasks/events")
    assert (head.status_code, head.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")


async def test_a_page_sees_its_callers_tasks_and_those_of_nobody_else(bare_system: System) -> None:
    """Once its key is revoked, a page sees nothing more. From here on the gateway is closed."""
    now, link = datetime.now(UTC), bare_system.link
    keys = {
        name: await add(link, name, (*scopes,), now=now)
        for name, scopes in (("alice", ("submit", "read")), ("bob", ("submit", "read")), ("operator", ("admin",)))
    }
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=bare_system.gateway.url,
                    timeout=BOUND_S,
                    headers={"authorization": f"Bearer {key.text}"},
                )
            )
            for name, key in keys.items()
        }

        async def answers(name: str, status: int) -> bool:
            return (await clients[name].get("/settings")).status_code == status

        await eventually(lambda: answers("operator", 200))
        assert refused(await bare_system.http.get("/tasks/events"), 401, "unauthorized")
        bare_system.http.headers["authorization"] = f"Bearer {keys['operator'].text}"  # for the fixture's own requests
        pages = {name: await stack.enter_async_context(page(client)) for name, client in clients.items()}
        for seen in pages.values():
            await seen.until("open")
        tasks = {name: await wait(link, caller=name) for name in ("alice", "bob")}
        for name in ("alice", "bob"):
            found, sent = await pages[name].next()
            assert (found, sent["id"]) == ("task", tasks[name])
            assert (await pages["operator"].until("task", id=tasks[name]))["status"] == "pending"
        # an id from another caller's stream shows none of that caller's tasks
        async with page(clients["bob"], pages["alice"].last_id) as again:
            await again.until("open")
            await clients["alice"].delete(f"/tasks/{tasks['alice']}")
            await clients["bob"].delete(f"/tasks/{tasks['bob']}")
            sent = await again.until("task", status="failed")
            assert sent["id"] == tasks["bob"]
        await revoke(link, keys["bob"].id, now=now)
        await eventually(lambda: answers("bob", 401))
        last = await wait(link, caller="bob")
        await pages["operator"].until("task", id=last)
        assert last not in [sent.get("id") for _, sent in await pages["bob"].rest()]
