"""Two gateways that share only a nats-server and a bucket: what one stores the other serves, and a bucket that
misbehaves holds up no other request. The tests play the workers; the store is moto."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts import lifecycle
from contracts.memory import MemoryReading
from contracts.settings import load_settings
from contracts.tasks import GenerationTask, ThumbnailFile, decode_task, encode_task
from contracts.topology import TASKS
from gateway.services import Services
from ops.artifact_place import BucketPlace, in_bucket
from ops.artifacts import CHUNK_BYTES, Artifacts
from ops.commands.api.client import CommandClient
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.gateway import GatewayProcess, warm_lanes
from tests.kit.records import video_of
from tests.kit.s3_servers import BUCKET, Manner, Moto, aws_environment, running, use
from tests.kit.samples import data_uri, picture
from tests.kit.support import BOUND_S, KEEP_S, NO_TLS, as_admin, eventually

PLACE = BucketPlace(BUCKET, "warmlane")
IMAGE = data_uri(picture("PNG"))
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
CONTENT = bytes(range(256)) * (CHUNK_BYTES // 256) + b"and a little more"


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    server = Moto()
    with running(server):
        yield server


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory, moto: Moto) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two gateways, each with a data folder of its own. The second gives links."""
    first = GatewayProcess(tmp_path_factory.mktemp("first"))
    second = GatewayProcess(tmp_path_factory.mktemp("second"), beside=first)
    second.data_dir = second.folder

    async def prepare() -> None:
        link = await NatsLink.connect(first.nats.url, name="test")
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await link.close()

    with contextlib.ExitStack() as leave:
        leave.callback(first.nats.stop)
        first.nats.start()
        asyncio.run(prepare())
        options = ("--artifacts", str(PLACE), "--keep", f"{KEEP_S:g}s")
        for gateway, more in ((first, ()), (second, ("--download-links", "60s"))):
            leave.callback(gateway.stop)
            gateway.start(*options, *more, **aws_environment(moto.endpoint))
        yield first, second


@pytest.fixture
async def link(gateways: tuple[GatewayProcess, GatewayProcess]) -> AsyncIterator[NatsLink]:
    link = await NatsLink.connect(as_admin(gateways[0].nats.address), name="test")
    await warm_lanes(link, *gateways, models=["anisora"])
    yield link
    await link.close()


@pytest.fixture
def store(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifacts]:
    """The store as a worker on another machine sees it. It is well again when the test ends."""
    use(monkeypatch, moto.endpoint)
    yield in_bucket(PLACE)
    moto.release()


@pytest.fixture
async def https(gateways: tuple[GatewayProcess, GatewayProcess]) -> AsyncIterator[list[httpx.AsyncClient]]:
    async with contextlib.AsyncExitStack() as leave:
        yield [
            await leave.enter_async_context(httpx.AsyncClient(base_url=each.url, timeout=BOUND_S, verify=NO_TLS))
            for each in gateways
        ]


async def submitted(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/generate", json={"model": "anisora", "prompt": "x"} | fields)
    assert answer.status_code == 202, answer.text
    task: dict[str, Any] = answer.json()
    return task


async def finished(link: NatsLink, store: Artifacts, task_id: str) -> GenerationTask:
    """Does what a worker does, with CONTENT as the video."""
    entry = await link.entries.get(TASKS, task_id)
    assert entry is not None
    assert entry.value is not None
    now = datetime.now(UTC)
    task = lifecycle.claim(decode_task(entry.value), owner="hand", worker="anisora-0", lease_s=600, now=now)
    await store.put(task.video_path, CONTENT)
    await store.put(task.thumbnail_path, b"a frame")
    thumbnail = ThumbnailFile(path=task.thumbnail_path, bytes=7, sha256=hashlib.sha256(b"a frame").hexdigest())
    video = video_of(task, CONTENT, thumbnail=thumbnail)
    done = lifecycle.finish(task, video=video, memory=MemoryReading(rss_bytes=1), now=now)
    await link.entries.update(TASKS, task_id, encode_task(done), revision=entry.revision)
    return done


async def video_at(https: list[httpx.AsyncClient], link: NatsLink, store: Artifacts) -> str:
    """The path of a finished video, which both gateways know."""
    task_id = (await submitted(https[0]))["id"]
    await finished(link, store, task_id)
    for http in https:

        async def known(http: httpx.AsyncClient = http) -> bool:
            return bool((await http.get(f"/tasks/{task_id}")).json().get("status") == "done")

        await eventually(known)
    return f"/tasks/{task_id}/video"


async def test_either_gateway_serves_what_somebody_stored(
    https: list[httpx.AsyncClient], link: NatsLink, store: Artifacts
) -> None:
    path = await video_at(https, link, store)
    for http in https:
        whole = await http.get(f"{path}?redirect=false")
        assert (whole.status_code, whole.content) == (200, CONTENT)
        part = await http.get(f"{path}?redirect=false", headers={"Range": f"bytes={CHUNK_BYTES - 1}-"})
        assert (part.status_code, part.content) == (206, CONTENT[-18:])
        assert (await http.get(path.replace("/video", "/thumbnail"))).content == b"a frame"
    for stored in await store.list():
        await store.delete(stored.path)
    for http in https:
        assert (await http.get(path)).status_code == 410


async def test_the_janitor_removes_what_no_record_names(
    gateways: tuple[GatewayProcess, GatewayProcess],
    https: list[httpx.AsyncClient],
    link: NatsLink,
    store: Artifacts,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    task_id = (await submitted(https[0]))["id"]
    done = await finished(link, store, task_id)
    await store.put(f"videos/{UNKNOWN}.0.mp4", b"nobody's")
    monkeypatch.setattr("gateway.services.ORPHAN_GRACE_S", 0.0)
    third = Services(
        catalog=load_settings().catalog("tiny"),
        nats=gateways[0].nats.url,
        artifacts_dir=tmp_path,
        artifacts=PLACE,
        keep_s=KEEP_S,
    )
    async with third.running():
        removed = 0

        async def cleaned() -> bool:
            nonlocal removed
            removed += await third.clean()
            return await store.size(f"videos/{UNKNOWN}.0.mp4") is None

        await eventually(cleaned)
    assert removed >= 1
    assert {done.video_path, done.thumbnail_path} <= {each.path for each in await store.list()}


async def test_an_image_goes_through_the_bucket(
    https: list[httpx.AsyncClient], link: NatsLink, store: Artifacts
) -> None:
    task = await submitted(https[0], image=IMAGE)
    entry = await link.entries.get(TASKS, task["id"])
    assert entry is not None
    assert entry.value is not None
    image_path = decode_task(entry.value).image_path
    assert image_path is not None
    assert await store.get(image_path) is not None
    assert (await https[1].delete(f"/tasks/{task['id']}")).json()["status"] == "failed"


async def test_links_are_given_where_the_operator_wants_them(
    gateways: tuple[GatewayProcess, GatewayProcess],
    https: list[httpx.AsyncClient],
    link: NatsLink,
    store: Artifacts,
    tmp_path: Path,
) -> None:
    path = await video_at(https, link, store)
    assert (await https[0].get(path)).status_code == 200  # the first gateway gives no links
    sent = await https[1].get(path)
    assert (sent.status_code, sent.headers["cache-control"], sent.content) == (302, "private, no-store", b"")
    # httpx does not send the key to another host
    followed = await https[1].get(path, follow_redirects=True, headers={"Range": "bytes=0-9"})
    assert (followed.status_code, followed.content) == (206, CONTENT[:10])
    known = await https[1].get(path, headers={"If-None-Match": sent.headers["etag"]})
    assert known.status_code == 304
    head = await https[1].head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))

    def download() -> None:
        with CommandClient(gateways[1].url) as client:
            task, _ = client.task(path.split("/")[2])
            client.download(task, tmp_path / "video.mp4")

    await asyncio.to_thread(download)
    assert (tmp_path / "video.mp4").read_bytes() == CONTENT


@pytest.mark.parametrize("manner", ["denies", "breaks"])
async def test_a_bucket_that_refuses_is_said_to_be_unavailable(
    https: list[httpx.AsyncClient], link: NatsLink, store: Artifacts, moto: Moto, manner: Manner
) -> None:
    path = await video_at(https, link, store)
    moto.manner = manner
    for http in https:
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    refused = await https[0].post("/generate", json={"model": "anisora", "prompt": "x", "image": IMAGE})
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
    await submitted(https[0])  # requests that need no store go on
    moto.release()
    assert (await https[0].get(path)).content == CONTENT


async def test_a_bucket_that_hangs_holds_up_nobody_else(
    https: list[httpx.AsyncClient], link: NatsLink, store: Artifacts, moto: Moto
) -> None:
    path = await video_at(https, link, store)
    moto.asked.clear()
    moto.manner = "hangs"
    downloads = [asyncio.create_task(https[0].get(path)) for _ in range(8)]
    await eventually(lambda: asyncio.sleep(0, len(moto.asked) >= 8))  # all of them wait for the bucket
    assert (await https[0].get("/healthz")).status_code == 200
    await finished_otherwise(https[0])
    assert not any(download.done() for download in downloads)
    moto.release()
    for download in downloads:
        assert (await download).content == CONTENT


async def finished_otherwise(http: httpx.AsyncClient) -> None:
    """Takes a task from its request to its end, by cancelling it."""
    task = await submitted(http)
    assert (await http.delete(f"/tasks/{task['id']}")).json()["status"] == "failed"


async def test_a_gateway_does_not_start_on_a_bucket_that_ignores_conditions(
    gateways: tuple[GatewayProcess, GatewayProcess], moto: Moto, tmp_path: Path, store: Artifacts
) -> None:
    third = GatewayProcess(tmp_path, beside=gateways[0])
    moto.manner = "ignores-conditions"
    with pytest.raises(AssertionError, match="ignores conditional writes"):
        await asyncio.to_thread(lambda: third.start("--artifacts", str(PLACE), **aws_environment(moto.endpoint)))
