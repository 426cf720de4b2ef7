"""What other processes may do between two steps of an acceptance: here, while its image is being stored."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog, load_settings
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, decode_task, encode_task, keyed_task_id
from contracts.topology import DEGRADED, TASKS
from gateway.boards.deadlines import Deadlines
from gateway.boards.snapshots import Snapshot
from gateway.placing.overload import Overloaded
from gateway.rules.webhook_events import happened
from gateway.services import Services
from ops.artifacts import StorageFailed
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.gateway_parts import services_on
from tests.kit.samples import data_uri, picture
from tests.kit.support import KEEP_S, NatsServer, eventually, settings_file

FIRST, SECOND = (keyed_task_id("someone", "key", n) for n in range(2))


@pytest.fixture
async def services(nats_server: NatsServer, catalog: Catalog, tmp_path: Path) -> AsyncIterator[Services]:
    """The parts of a gateway, which has never heard of a lane."""
    async with services_on(nats_server, catalog, tmp_path) as services:
        yield services


@pytest.fixture
def request_(catalog: Catalog) -> AcceptedRequest:
    return validate({"model": "anisora", "prompt": "x", "image": data_uri(picture("PNG"))}, catalog)


def meanwhile(services: Services, record: Callable[[GenerationTask], GenerationTask]) -> None:
    """After the publish of the next request, and before its record, another process records *record* of its task."""
    put = services.artifacts.put

    async def put_late(path: str, content: bytes | Path) -> None:
        services.artifacts.put = put  # type: ignore[method-assign]
        message = await js_of(services.link).get_last_msg(DEGRADED, "degraded.anisora.*")
        await services.link.entries.create(TASKS, FIRST, encode_task(record(decode_task(message.data or b""))))
        await put(path, content)

    services.artifacts.put = put_late  # type: ignore[method-assign]  # only the moment is chosen


async def never() -> None:
    await asyncio.Event().wait()


def accept(services: Services, request: AcceptedRequest, *, held: bool = True) -> asyncio.Task[Snapshot]:
    until_gone = never if held else None
    return asyncio.create_task(
        services.admission.accept(request, caller="someone", key="key", traceparent=None, until_gone=until_gone)
    )


def claimed(task: GenerationTask) -> GenerationTask:
    return lifecycle.claim(task, owner="nonce", worker="by-hand", lease_s=60, now=datetime.now(UTC))


def refused(task: GenerationTask) -> GenerationTask:
    return lifecycle.fail(task, code=FailureCode.QUEUE_OVERLOADED, message="too late", now=datetime.now(UTC))


def without_image(task: GenerationTask) -> GenerationTask:
    return lifecycle.fail(task, code=FailureCode.STORAGE_FAILED, message="no image", now=datetime.now(UTC))


def images(tmp_path: Path) -> list[str]:
    return [path.name.split(".")[0] for path in (tmp_path / "artifacts").rglob("*.*")]


@pytest.mark.parametrize("held", [True, False])
async def test_a_late_worker_was_first(
    held: bool, services: Services, request_: AcceptedRequest, tmp_path: Path
) -> None:
    """The worker found the message too old. The record says refused, so the answer does too, and nothing is left."""
    meanwhile(services, refused)
    with pytest.raises(Overloaded) as raised:
        await accept(services, request_, held=held)
    assert (raised.value.limit, raised.value.task_id) == ("wait", FIRST)
    assert images(tmp_path) == []
    assert (await js_of(services.link).stream_info(DEGRADED)).state.messages == 0


@pytest.mark.parametrize("held", [True, False])
async def test_the_image_of_an_equal_request_could_not_be_stored(
    held: bool, services: Services, request_: AcceptedRequest, tmp_path: Path
) -> None:
    """That request's gateway ended the task. This request is refused for the same reason, and the key may try again. It
    once got the id of the ended task, and its receiver got no event (found by `make model`, in story 1821)."""
    meanwhile(services, lambda task: replace(without_image(task), promised=False))
    with pytest.raises(StorageFailed):
        await accept(services, request_, held=held)
    assert images(tmp_path) == []
    assert (await js_of(services.link).stream_info(DEGRADED)).state.messages == 0
    assert (await accept(services, request_, held=False)).task.id == SECOND


async def test_the_image_of_an_equal_request_cannot_be_stored_while_this_one_is_held(
    services: Services, request_: AcceptedRequest
) -> None:
    accepting = accept(services, request_)

    async def waits() -> Snapshot | None:
        return await services.tasks.read(FIRST)

    waiting = await eventually(waits)
    assert waiting is not None
    ended = encode_task(without_image(waiting.task))
    await services.link.entries.update(TASKS, FIRST, ended, revision=waiting.revision)
    with pytest.raises(StorageFailed):
        await accepting


@pytest.mark.parametrize("held", [True, False])
async def test_of_a_request_whose_image_cannot_be_stored_no_receiver_is_told(
    held: bool, services: Services, request_: AcceptedRequest, tmp_path: Path
) -> None:
    """No client got its id, whether the request was held or not."""
    (tmp_path / "artifacts" / "images").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed):
        await accept(services, request_, held=held)
    recorded = await services.tasks.read(FIRST)
    assert recorded is not None
    assert (recorded.task.status, list(happened(recorded.task))) == (TaskStatus.FAILED, [])


async def test_a_held_request_is_answered_when_no_sweeper_looks(
    nats_server: NatsServer, link: NatsLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway that holds the request looks itself: here the sweeper finds nothing due."""
    monkeypatch.setattr(Deadlines, "due", lambda *_, **__: [])
    catalog = load_settings(settings_file(tmp_path, wait_limit_s=1.0, degraded_margin_s=0.5)).catalog("tiny")
    artifacts = tmp_path / "artifacts"
    services = Services(catalog=catalog, nats=nats_server.url, artifacts_dir=artifacts, keep_s=KEEP_S)
    async with services.running():
        with pytest.raises(Overloaded) as raised:
            await accept(services, validate({"model": "anisora", "prompt": "x"}, catalog))
    assert raised.value.limit == "wait"


async def test_a_worker_was_first(services: Services, request_: AcceptedRequest) -> None:
    meanwhile(services, claimed)
    snapshot = await accept(services, request_)
    assert (snapshot.task.id, snapshot.task.status) == (FIRST, TaskStatus.PROCESSING)


async def test_a_worker_was_first_and_the_image_cannot_be_stored(
    services: Services, request_: AcceptedRequest, tmp_path: Path
) -> None:
    """The worker waits for the image, and learns at once that there is none."""
    (tmp_path / "artifacts" / "images").write_text("a file where the folder should be")
    meanwhile(services, claimed)
    snapshot = await accept(services, request_)
    assert snapshot.task.error is not None
    assert (snapshot.task.id, snapshot.task.error.code) == (FIRST, FailureCode.STORAGE_FAILED)
    recorded = await services.tasks.read(FIRST)
    assert recorded == snapshot


async def test_the_same_key_brings_the_image_that_its_first_gateway_did_not_store(
    services: Services, request_: AcceptedRequest, tmp_path: Path
) -> None:
    """That gateway died between the publish and the image. A worker has claimed the task and waits."""
    await accept(services, request_, held=False)
    first = await services.tasks.read(FIRST)
    assert first is not None
    assert first.task.image_path is not None
    await services.link.entries.update(TASKS, FIRST, encode_task(claimed(first.task)), revision=first.revision)
    (tmp_path / "artifacts" / first.task.image_path).unlink()
    assert (await accept(services, request_)).task.id == FIRST
    assert images(tmp_path) == [FIRST]


async def test_all_others_with_the_key_hung_up(services: Services, request_: AcceptedRequest, tmp_path: Path) -> None:
    """A gateway withdrew the task meanwhile. The request gets the next task of its key; the first image is removed."""
    meanwhile(services, lambda task: lifecycle.withdraw(task, now=datetime.now(UTC)))
    accepting = accept(services, request_)

    async def recorded() -> Snapshot | None:
        return await services.tasks.read(SECOND)

    second = await eventually(recorded)
    assert second is not None
    assert images(tmp_path) == [SECOND]
    await services.link.entries.update(TASKS, SECOND, encode_task(claimed(second.task)), revision=second.revision)
    assert (await accepting).task.id == SECOND


async def test_an_equal_request_is_held_already(services: Services, request_: AcceptedRequest) -> None:
    """`Prefer: respond-async` joins it: the task is promised before the client gets its id."""
    meanwhile(services, lambda task: replace(task, promised=False))
    snapshot = await accept(services, request_, held=False)
    assert (snapshot.task.id, snapshot.task.status) == (FIRST, TaskStatus.PENDING)
    recorded = await services.tasks.read(FIRST)
    assert recorded is not None
    assert recorded.task.promised
