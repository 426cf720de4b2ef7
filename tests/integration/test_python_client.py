"""`warmlane_client` against a real gateway, synchronous and with asyncio. The tests play the worker."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from ops.nats.link import NatsLink
from tests.kit.gateway import GatewayProcess
from tests.kit.patient import connected
from tests.kit.played import CONTENT, claimed, finished
from warmlane_client import (
    AsyncClient,
    Client,
    GatewayUnreachable,
    NotThere,
    NoVideo,
    Patience,
    Task,
    VideoRequest,
    Wait,
    WaitTimedOut,
    WrongRequest,
)

REQUEST: Final = VideoRequest(model="anisora", prompt="a red fox in fresh snow")
UNKNOWN: Final = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
async def client(gateway: GatewayProcess, http: httpx.AsyncClient) -> AsyncIterator[AsyncClient]:
    """With *http*, the lanes are warm, and no task waits after the test."""
    async with AsyncClient(gateway.url) as client:
        yield client


def test_a_whole_job_in_a_thread(gateway: GatewayProcess, tmp_path: Path) -> None:
    async def play(task_id: str) -> None:
        link = await connected(gateway.nats.url)
        await finished(link, gateway, task_id)
        await link.close()

    seen: list[str] = []
    shares: list[tuple[int, int]] = []
    with Client(gateway.url) as client:
        task = client.submit(REQUEST, idempotency_key="whole-job")
        assert client.submit(REQUEST, idempotency_key="whole-job").id == task.id

        def look(now: Task) -> None:
            seen.append(now.status)
            if now.status == "pending":  # the stream may or may not have begun
                asyncio.run(play(task.id))

        ended = client.wait(task, on_change=look)
        path = client.download(ended, tmp_path / "fox.mp4", on_bytes=lambda *share: shares.append(share))
        listed = client.tasks(status=("done",), model="anisora", limit=5)
        assert task.id in [each.id for each in client.every_task()]
        assert client.task(task.id) == ended or client.task(task.id).document == ended.document
        assert client.task(task).id == task.id
        assert client.cancel(task).status == client.cancel(task.id).status == "done"
        assert [model["name"] for model in client.settings()["models"]][:1] == ["anisora"]
    assert (ended.status, seen[0], seen[-1]) == ("done", "pending", "done")
    assert path.read_bytes() == CONTENT
    assert (shares[0], shares[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    assert task.id in [each.id for each in listed.tasks]
    assert [each.name for each in tmp_path.iterdir()] == ["fox.mp4"]


async def test_tasks_are_listed_by_when_they_were_made(gateway: GatewayProcess, client: AsyncClient) -> None:
    """This is the same in both clients."""
    batch = [
        await client.submit(VideoRequest(model="anisora", prompt="x", labels={"when": "listed"})) for _ in range(3)
    ]
    between: Any = {"created_after": batch[1].created_at, "created_before": batch[2].created_at}
    assert [each.id for each in (await client.tasks(labels={"when": "listed"}, **between)).tasks] == [batch[1].id]
    assert [each.id async for each in client.every_task(labels={"when": "listed"}, **between)] == [batch[1].id]

    def in_a_thread() -> list[str]:
        with Client(gateway.url) as other:
            page = other.tasks(**between)
            assert page.tasks == tuple(other.every_task(**between))
            return [each.id for each in page.tasks]

    assert await asyncio.to_thread(in_a_thread) == [batch[1].id]
    for each in batch:
        await client.cancel(each)


async def test_a_whole_job_with_asyncio(
    gateway: GatewayProcess, gateway_link: NatsLink, client: AsyncClient, tmp_path: Path
) -> None:
    seen: list[str] = []
    running = asyncio.Event()

    async def look(now: Task) -> None:
        seen.append(now.status)
        if now.status == "processing":
            running.set()

    task = await client.submit(REQUEST)
    waiting = asyncio.create_task(client.wait(task.id, on_change=look))
    await claimed(gateway_link, task.id)
    await running.wait()
    await _done(gateway, gateway_link, task.id)
    ended = await waiting
    await client.download(ended, tmp_path / "fox.mp4")
    assert (tmp_path / "fox.mp4").read_bytes() == CONTENT
    assert seen[-2:] == ["processing", "done"]
    assert (await anext(client.every_task(status=("done",)))).id == task.id


async def test_a_gateway_that_is_killed_in_the_middle_of_a_wait(
    gateway: GatewayProcess, gateway_link: NatsLink, client: AsyncClient
) -> None:
    seen: list[str] = []
    heard = asyncio.Event()

    def look(now: Task) -> None:
        seen.append(now.status)
        if now.status == "processing":
            heard.set()

    task = await client.submit(REQUEST)
    waiting = asyncio.create_task(client.wait(task, on_change=look))
    await claimed(gateway_link, task.id)
    await heard.wait()
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)
    await _done(gateway, gateway_link, task.id)
    assert (await waiting).status == "done"
    assert seen[-2:] == ["processing", "done"]


async def test_polls_alone_find_the_end_too(
    gateway: GatewayProcess, gateway_link: NatsLink, client: AsyncClient
) -> None:
    task = await client.submit(REQUEST)
    waiting = asyncio.create_task(client.wait(task, how=Wait(stream=False)))
    await finished(gateway_link, gateway, task.id)
    assert (await waiting).status == "done"


async def test_a_download_that_was_broken_off_goes_on(
    gateway: GatewayProcess, gateway_link: NatsLink, client: AsyncClient, tmp_path: Path
) -> None:
    """It uses the gateway's own ranges and tags. A part of another video would have another name."""
    task = await client.submit(REQUEST)
    await finished(gateway_link, gateway, task.id)
    done = await client.wait(task)  # the gateway may not have seen the end yet
    assert done.video is not None
    part = tmp_path / f".fox.mp4.{done.video.sha256[:12]}.part"
    part.write_bytes(CONTENT[:1000])
    shares: list[int] = []
    await client.download(done, tmp_path / "fox.mp4", on_bytes=lambda there, _: shares.append(there))
    assert (shares[0], (tmp_path / "fox.mp4").read_bytes() == CONTENT, part.exists()) == (1000, True, False)


async def test_a_cancelled_task_has_no_video(client: AsyncClient, tmp_path: Path) -> None:
    task = await client.submit(REQUEST)
    with pytest.raises(WaitTimedOut):
        await client.wait(task, how=Wait(timeout_s=0.0))
    with pytest.raises(NoVideo, match="it is pending"):
        await client.download(task.id, tmp_path / "fox.mp4")
    cancelled = await client.cancel(task.id)
    ended = await client.wait(task)
    assert ended.error is not None
    assert (cancelled.status, ended.error.code) == ("failed", "cancelled")
    with pytest.raises(NoVideo, match="cancelled"):
        await client.download(ended, tmp_path / "fox.mp4")
    assert list(tmp_path.iterdir()) == []


async def test_a_batch_is_tasks_in_its_order_or_an_error(client: AsyncClient) -> None:
    requests: list[VideoRequest | dict[str, Any]] = [REQUEST, {"model": "phr00t", "prompt": "a lantern"}]
    tasks = await client.submit_many(requests, idempotency_key="shots")
    assert [task.model for task in tasks] == ["anisora", "phr00t"]
    assert [task.id for task in await client.submit_many(requests, idempotency_key="shots")] == [
        task.id for task in tasks
    ]
    with pytest.raises(WrongRequest) as refused:
        await client.submit_many([REQUEST, {"model": "phr00t", "prompt": "x", "steps": 5}])
    wrong = refused.value.problem.errors
    assert wrong is not None
    assert [each.pointer for each in wrong] == ["/requests/1/steps"]
    for task in tasks:
        await client.cancel(task.id)


async def test_refusals_say_what_is_wrong(client: AsyncClient) -> None:
    with pytest.raises(WrongRequest) as refused:
        await client.submit({"model": "anisora", "prompt": " ", "width": 7})
    wrong = refused.value.problem.errors
    assert wrong is not None
    assert [each.pointer for each in wrong] == ["/prompt", "/width"]
    assert refused.value.request_id
    for call in (client.task, client.cancel, client.wait):
        with pytest.raises(NotThere) as missing:
            await call(UNKNOWN)
        assert missing.value.code == "task_not_found"


async def test_nobody_there() -> None:
    patience = Patience(lost_attempts=1)
    async with AsyncClient("http://127.0.0.1:1", patience=patience) as client:
        with pytest.raises(GatewayUnreachable, match=r"no gateway answers at http://127\.0\.0\.1:1"):
            await client.submit(REQUEST)
    with pytest.raises(GatewayUnreachable), Client("http://127.0.0.1:1", patience=patience) as waiting:
        waiting.submit(REQUEST)


def test_a_key_is_in_no_text() -> None:
    with Client("http://127.0.0.1:1", key="wl_secret") as client:
        assert "wl_secret" not in repr(client) + repr(vars(client))


async def _done(gateway: GatewayProcess, link: NatsLink, task_id: str) -> None:
    """Finishes a claimed task."""
    await finished(link, gateway, task_id, claim=False)
