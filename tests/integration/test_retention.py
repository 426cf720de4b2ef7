"""Retention: videos and input images are removed with their record, orphans too, and nothing else."""

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.generation.images import ImageFile, widest_limits
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, ImageReference, TaskStatus, ThumbnailFile, VideoFile, encode_task
from contracts.topology import TASKS
from contracts.uploads import upload_path
from gateway.boards.key_board import ANYBODY
from gateway.boards.snapshots import Snapshot
from gateway.boards.task_index import paths_of
from gateway.http.lookup import find, find_ended
from gateway.images import uploads
from gateway.services import Services
from tests.kit.gateway_parts import services_on
from tests.kit.records import pending_task
from tests.kit.samples import picture
from tests.kit.support import NatsServer, eventually

KEEP_S = 60.0  # longer than any test here; what is older than that may go
GONE = "0199a000-0000-7000-8000-000000000001"


@pytest.fixture
async def services(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Services]:
    """The gateway's services. Their own janitor comes after a quarter of the keep, and does not interfere."""
    async with services_on(nats_server, catalog, tmp_path, keep_s=KEEP_S) as services:
        yield services


@pytest.fixture
async def forgetful(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Services]:
    """The gateway's services with a keep of a few seconds."""
    async with services_on(nats_server, catalog, tmp_path, keep_s=4.0) as services:
        yield services


def done_task() -> GenerationTask:
    """A finished task with an image and a thumbnail, in its second placement."""
    now = datetime.now(UTC)
    image = ImageReference(sha256="ab" * 32, media_type="image/png", bytes=1, width=1, height=1)
    parameters = replace(pending_task().parameters, image=image)
    task = pending_task(epoch=1, created_at=now, queued_at=now, parameters=parameters)
    task = lifecycle.claim(task, owner="o", worker="w", lease_s=20, now=now)
    thumbnail = ThumbnailFile(path=task.thumbnail_path, bytes=1, sha256="ab" * 32)
    video = VideoFile(
        path=task.video_path, bytes=1, sha256="0", width=1, height=1, frames=1, fps=1, thumbnail=thumbnail
    )
    return lifecycle.finish(task, video=video, memory=None, now=now)


def store(services: Services, folder: Path, path: str, *, age_s: float) -> Path:
    file = folder / "artifacts" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    os.utime(file, (time.time() - age_s, time.time() - age_s))
    return file


async def test_orphans_go_and_what_a_record_names_stays(services: Services, tmp_path: Path) -> None:
    task = done_task()
    assert task.image_path is not None
    await services.link.entries.create(TASKS, task.id, encode_task(task))
    video = store(services, tmp_path, task.video_path, age_s=100)
    image = store(services, tmp_path, task.image_path, age_s=100)
    thumbnail = store(services, tmp_path, task.thumbnail_path, age_s=100)
    loser = store(services, tmp_path, f"videos/{task.id}.0.mp4", age_s=100)
    losers_thumbnail = store(services, tmp_path, f"thumbnails/{task.id}.0.webp", age_s=100)
    orphan = store(services, tmp_path, f"videos/{GONE}.0.mp4", age_s=100)
    fresh = store(services, tmp_path, f"images/{GONE}.abcd", age_s=0)
    await services.clean()
    assert [file.exists() for file in (video, image, thumbnail, fresh)] == [True] * 4
    assert [file.exists() for file in (loser, losers_thumbnail, orphan)] == [False] * 3


async def test_a_video_that_another_gateway_shows_is_not_called_unfinished(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This gateway has not heard of the end yet: before it calls a video unfinished, it asks the server."""
    monkeypatch.setattr(services.tasks, "_take_in", lambda entry: None)
    done = done_task()
    begun = await services.tasks.create(replace(done, status=TaskStatus.PROCESSING, video=None, finished_at=None))
    await services.link.entries.update(TASKS, done.id, encode_task(done), revision=begun.revision)
    assert (await find(services, ANYBODY, done.id)).task.status is TaskStatus.PROCESSING
    assert (await find_ended(services, ANYBODY, done.id)).task.video == done.video


async def test_uploads_go_when_they_expire_and_not_before(services: Services, tmp_path: Path) -> None:
    """The janitor judges by their names, whatever age the store reports: so a copy of the store keeps them as long."""
    limits = widest_limits(services.catalog)
    assert limits is not None
    now = datetime.now(UTC)
    kept = await services.uploads.add("c", ImageFile(picture("PNG")), limits, now=now)
    (fresh,) = (tmp_path / "artifacts" / "uploads").iterdir()
    os.utime(fresh, (1, 1))
    over = store(services, tmp_path, upload_path(kept.ref, "c", int(now.timestamp())), age_s=0)
    foreign = store(services, tmp_path, "uploads/not-ours", age_s=10_000)
    assert await services.clean() == 1
    assert [file.exists() for file in (fresh, foreign, over)] == [True, True, False]
    assert await services.uploads.find("c", kept.ref, limits, now=now) == kept
    assert await services.uploads.find("c", kept.ref, limits, now=kept.expires_at) is None


async def test_a_caller_has_so_many_uploads_and_no_more(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IMAGES_PER_CALLER", 2)
    limits = widest_limits(services.catalog)
    assert limits is not None
    now = datetime.now(UTC)

    async def add(caller: str, width: int) -> str:
        return (await services.uploads.add(caller, ImageFile(picture("PNG", (width, 9))), limits, now=now)).ref

    first = await add("c", 1)
    await add("c", 2)
    with pytest.raises(uploads.TooManyImages):
        await add("c", 3)
    assert await add("c", 1) == first
    await add("d", 3)
    await services.clean()  # it counts what is stored
    with pytest.raises(uploads.TooManyImages):
        await add("c", 3)
    assert await services.uploads.remove("c", first, now=now)
    await add("c", 3)


async def test_orphans_are_removed_many_at_a_time(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy gateway answers each look-up late: with one look-up at a time, orphans would grow faster than they go."""
    read, reads, together = services.tasks.read, itertools.count(1), asyncio.Event()

    async def read_together(task_id: str) -> Snapshot | None:
        if next(reads) == 3:  # these services' own janitor may also look up one of them
            together.set()
        await together.wait()
        return await read(task_id)

    monkeypatch.setattr(services.tasks, "read", read_together)
    files = [store(services, tmp_path, f"videos/{uuid.uuid4()}.0.mp4", age_s=100) for _ in range(3)]
    async with asyncio.timeout(20):
        await services.clean()
    assert not any(file.exists() for file in files)


async def test_files_go_when_the_server_drops_the_record(forgetful: Services, tmp_path: Path) -> None:
    """The bucket's own age limit ends a record, and the janitor follows it."""
    task = done_task()
    assert task.image_path is not None
    await forgetful.link.entries.create(TASKS, task.id, encode_task(task))
    files = [store(forgetful, tmp_path, path, age_s=0) for path in (task.video_path, task.image_path)]

    async def expired() -> bool:
        return await forgetful.link.entries.get(TASKS, task.id) is None

    await eventually(expired)
    # the running janitor of these services comes every second at this keep

    async def cleaned() -> bool:
        return not any(file.exists() for file in files)

    await eventually(cleaned)
    assert paths_of(forgetful.tasks.index, task.id) == ()


async def test_the_file_of_a_running_task_stays(services: Services, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    task = lifecycle.claim(pending_task(created_at=now, queued_at=now), owner="o", worker="w", lease_s=20, now=now)
    await services.link.entries.create(TASKS, task.id, encode_task(task))
    video = store(services, tmp_path, task.video_path, age_s=3_600)
    await asyncio.gather(services.clean(), services.clean())
    assert video.exists()
