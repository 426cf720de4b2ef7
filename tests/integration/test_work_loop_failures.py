"""A work loop whose runs fail, or whose videos cannot be stored: what the record says, and what is left behind."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.settings import Windows
from contracts.tasks import (
    FailureCode,
    TaskStatus,
)
from lane_worker.forking.host_messages import WrittenVideo
from lane_worker.runtime.outcome import GaveUp, Result, Succeeded, Unsuccessful
from lane_worker.runtime.scratch import LOCK
from ops import artifact_place
from ops.artifact_place import BucketPlace, in_bucket
from ops.nats.link import NatsLink
from tests.kit.looping import (
    OTHER_ID,
    becomes,
    fresh_task,
    queue,
    recorded,
    windows,
    worker,
)
from tests.kit.s3_servers import BUCKET, Manner, Moto, running, use
from tests.kit.steered import CONTENT, MEMORY, RECEIPT, Worker
from tests.kit.support import eventually

__all__ = ["windows", "worker"]  # fixtures

VIDEO_GONE = Succeeded(
    path=Path("/nowhere/video.mp4"),
    video=WrittenVideo(bytes=1, sha256="0" * 64, width=96, height=64, frames=17, fps=16),
    memory=MEMORY,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    inference_s=0.1,
    encode_s=0.1,
)


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with running(server := Moto()):
        yield server


@pytest.mark.parametrize(
    ("result", "status", "code"),
    [
        (
            Unsuccessful(FailureCode.OUT_OF_MEMORY, "full", MEMORY, RECEIPT),
            TaskStatus.FAILED,
            FailureCode.OUT_OF_MEMORY,
        ),
        (Unsuccessful(FailureCode.INFERENCE_TIMEOUT, "slow", None), TaskStatus.FAILED, FailureCode.INFERENCE_TIMEOUT),
    ],
)
async def test_a_failure_is_settled(
    result: Result, status: TaskStatus, code: FailureCode, link: NatsLink, worker: Worker
) -> None:
    worker.runner.result = result
    worker.runner.may_end.set()
    task = fresh_task()
    await queue(link, task)
    failed = await becomes(link, task.id, status)
    assert failed.error is not None
    assert failed.error.code is code
    assert isinstance(result, Unsuccessful)
    assert (failed.memory, failed.swap) == (result.memory, result.swap)


async def test_a_folder_that_is_removed_between_two_tasks_costs_nothing(link: NatsLink, worker: Worker) -> None:
    worker.runner.may_end.set()
    for number in range(2):
        task = replace(fresh_task(), id=f"{number:08d}-ac96-774b-bcce-b302099a8057")
        await queue(link, task)
        await becomes(link, task.id, TaskStatus.DONE)
        shutil.rmtree(worker.folder)


@pytest.mark.parametrize(
    ("result", "event"),
    [
        pytest.param(GaveUp("the host died"), "lease_released", id="host-died"),
        pytest.param(GaveUp("the worker is leaving", on_purpose=True), "handed_back", id="asked-to-stop"),
        pytest.param(
            VIDEO_GONE, "lease_released", id="video-removed"
        ),  # a person has removed files: the store is not at fault
    ],
)
async def test_giving_up_ends_the_lease_at_once(result: Result, event: str, link: NatsLink, worker: Worker) -> None:
    """The sweeper requeues the task: the worker only reports that it cannot go on (ADR 0004)."""
    worker.runner.result = result
    worker.runner.may_end.set()
    task = fresh_task()
    await queue(link, task)

    async def released() -> bool:
        current, _ = await recorded(link, task.id)
        return current.lease_expires_at is not None and current.lease_expires_at <= datetime.now(UTC)

    await eventually(released)
    current, _ = await recorded(link, task.id)
    assert current.status is TaskStatus.PROCESSING
    assert (current.timeline[-1].event, current.handed_back) == (event, event == "handed_back")


async def test_a_video_that_cannot_be_stored(link: NatsLink, worker: Worker) -> None:
    (worker.artifacts / "videos").write_text("a file where the folder should be")
    worker.runner.may_end.set()
    task = fresh_task()
    await queue(link, task)
    failed = await becomes(link, task.id, TaskStatus.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.memory, failed.swap) == (FailureCode.STORAGE_FAILED, MEMORY, RECEIPT)
    await worker.idle.wait()
    assert [path.name for path in worker.folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("manner", ["denies", "breaks", "hangs"])
async def test_a_bucket_that_takes_no_video(
    link: NatsLink, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto: Moto, manner: Manner
) -> None:
    """The task ends, with its memory cleaned up and its lease kept until then. The next task succeeds once the bucket
    is back."""
    use(monkeypatch, moto.endpoint)
    patient = in_bucket(BucketPlace(BUCKET, ""))
    for name, value in {"REQUEST_S": 0.5, "RETRIES_S": 0.5}.items():
        monkeypatch.setattr(artifact_place, name, value)
    store = in_bucket(BucketPlace(BUCKET, ""))
    worker = Worker(link, windows, tmp_path, "one", store=store)
    worker.runner.may_end.set()
    try:
        moto.manner = manner
        task, following = fresh_task(), replace(fresh_task(), id=OTHER_ID)
        await queue(link, task)
        failed = await becomes(link, task.id, TaskStatus.FAILED)
        moto.release()
        store._store = patient._store  # on a slow machine a bucket may take longer than half a second
        assert failed.error is not None
        assert (failed.error.code, failed.memory, failed.swap) == (FailureCode.STORAGE_FAILED, MEMORY, RECEIPT)
        await worker.idle.wait()
        assert (failed.attempt, [path.name for path in worker.folder.iterdir()]) == (1, [LOCK])
        await queue(link, following)
        done = await becomes(link, following.id, TaskStatus.DONE)
        assert done.video is not None
        assert await patient.get(done.video.path) == CONTENT
    finally:
        moto.release()
        await worker.close()


async def test_a_video_is_published_also_where_its_thumbnail_cannot_be_stored(link: NatsLink, worker: Worker) -> None:
    (worker.artifacts / "thumbnails").write_text("a file where the folder should be")
    worker.runner.may_end.set()
    task = fresh_task()
    await queue(link, task)
    done = await becomes(link, task.id, TaskStatus.DONE)
    assert done.video is not None
    assert done.video.thumbnail is None
    assert (worker.artifacts / done.video.path).read_bytes() == CONTENT
