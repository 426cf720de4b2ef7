"""`/v1/videos` as the real, pinned `openai` client sees it, on a gateway with keys and a worker that films."""

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import av
import httpx
import openai
import pytest
import pytest_asyncio
from msgspec.structs import replace
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAI
from PIL import Image

from contracts.keys import Presented
from contracts.lanes import LaneState
from contracts.progress import StepsDone
from contracts.settings import load_settings
from contracts.tasks import FailureCode, TaskStatus
from contracts.topology import DEGRADED
from lane_worker.runtime.outcome import Unsuccessful
from ops.nats.api_keys import add
from tests.kit.behind import js_of
from tests.kit.filming import FRAMES, FilmingRunner
from tests.kit.gateway import GatewayProcess, System, provisioned_gateway
from tests.kit.keyed import by
from tests.kit.patient import connected
from tests.kit.samples import data_uri, picture
from tests.kit.steered import Worker
from tests.kit.support import BOUND_S, KEEP_S, eventually, free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # OpenAI's own service has ended
]
PAGE: Final = Path(__file__).parents[2] / "docs" / "use" / "openai-videos.md"
UNKNOWN: Final = "01890a5d-ac96-774b-bcce-b302099a8057"
FOX: Final[dict[str, Any]] = {"model": "anisora", "prompt": "a red fox", "size": "96x64", "seconds": "1"}
JSON: Final = {"Content-Type": "application/json"}
LARGE: Final = {"size": "1280x720"}


class Stage:
    """A gateway that requires keys, the keys by name, a filming worker of anisora, and clients."""

    def __init__(self, system: System, keys: dict[str, Presented], runner: FilmingRunner) -> None:
        self.system, self.keys, self.runner = system, keys, runner
        self.sent: list[Any] = []

    @property
    def base_url(self) -> str:
        return f"{self.system.gateway.url}/v1"

    def client(self, key: str = "alice", **options: Any) -> AsyncOpenAI:
        """The client as published, with its retries; `sent` keeps its requests."""
        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.keys[key].text if key in self.keys else key,
            http_client=DefaultAsyncHttpxClient(event_hooks={"request": [self._note]}),
            **options,
        )

    async def _note(self, request: Any) -> None:
        self.sent.append(request)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with provisioned_gateway(tmp_path_factory.mktemp("gateway")) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_stage(gateway: GatewayProcess) -> AsyncIterator[Stage]:
    link = await connected(gateway.nats.url)
    now = datetime.now(UTC)
    keys = {
        "alice": await add(link, "alice", ("submit", "read"), rate_per_s=None, now=now),
        "reader": await add(link, "alice", ("read",), rate_per_s=None, now=now),
        "bob": await add(link, "bob", ("submit", "read"), rate_per_s=None, now=now),
        "hasty": await add(link, "hasty", ("submit", "read"), rate_per_s=1 / 3_600, burst_s=3_600, now=now),
        "operator": await add(link, "operator", ("admin",), rate_per_s=None, now=now),
    }
    # progress shows at once, and not when the lease is due
    windows = replace(load_settings().catalog("tiny").windows, lease_renew_s=0.1)
    worker = Worker(link, windows, gateway.data_dir, "films", runs=FilmingRunner)
    runner = worker.runner
    assert isinstance(runner, FilmingRunner)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S, headers=by(keys["operator"])) as http:

        async def all_are_known() -> bool:  # the gateway hears of the keys one after another
            answer = await http.get("/admin/keys")
            return answer.status_code == 200 and len(answer.json()["keys"]) == len(keys)

        await eventually(all_are_known)
        yield Stage(System(gateway, link, http), keys, runner)
    await worker.close()
    await link.close()


async def nothing_runs(http: httpx.AsyncClient) -> None:
    """Cancels what waits; returns when nothing runs. Otherwise a later test would take the start of an earlier test's
    task for that of its own."""
    while tasks := (await http.get("/tasks?status=pending&status=processing&limit=100")).json()["tasks"]:
        for task in tasks:
            if task["status"] == "pending":
                await http.delete(f"/tasks/{task['id']}")
        await asyncio.sleep(0.02)


@pytest_asyncio.fixture(loop_scope="module")
async def stage(whole_stage: Stage) -> AsyncIterator[Stage]:
    """The stage with a warm lane of anisora, none of phr00t, and no waiting tasks."""
    await js_of(whole_stage.system.link).purge_stream(DEGRADED)
    await whole_stage.system.lane_is(LaneState.WARM)
    whole_stage.sent.clear()
    yield whole_stage
    whole_stage.runner.may_end.set()
    await nothing_runs(whole_stage.system.http)
    whole_stage.runner.started.clear()
    whole_stage.runner.result = None


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


async def test_create_and_poll_then_a_file_that_plays(stage: Stage, tmp_path: Path) -> None:
    client = stage.client()
    made = await client.videos.create_and_poll(**FOX)
    assert (made.status, made.progress, made.error) == ("completed", 100, None)
    assert (made.model, made.prompt, made.seconds, made.size) == ("anisora", "a red fox", "1", "96x64")
    assert made.created_at <= (made.completed_at or 0) < (made.expires_at or 0)

    content = await client.videos.download_content(made.id)
    content.write_to_file(tmp_path / "fox.mp4")
    assert frames_in(tmp_path / "fox.mp4") == FRAMES
    frame = await client.videos.download_content(made.id, variant="thumbnail")
    assert Image.open(io.BytesIO(frame.content)).format == "WEBP"

    # the same task by its other name
    task = (await stage.system.http.get(f"/tasks/{made.id}")).json()
    assert (task["status"], task["parameters"]["num_frames"], task["priority"]) == ("done", 17, "standard")


async def test_the_example_of_the_page_is_the_program(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("OPENAI_BASE_URL", stage.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", stage.keys["alice"].text)
    monkeypatch.chdir(tmp_path)
    await asyncio.to_thread(exec, example, {})
    assert frames_in(tmp_path / "fox.mp4") == FRAMES


async def test_while_it_is_made_it_says_how_far_it_is_and_when_to_ask_again(stage: Stage) -> None:
    stage.runner.may_end.clear()
    client = stage.client()
    begun = await client.videos.create(**FOX)
    await stage.runner.started.wait()
    assert begun.status in ("queued", "in_progress")
    # 6 steps of 5 s are left, or 5 where one is nearly over, and then 10 s
    stage.runner.report(StepsDone(step=2, steps=8, step_s=5.0, at=datetime.now(UTC), after_s=10.0))

    async def quarter() -> Any:
        answer = await client.videos.with_raw_response.retrieve(begun.id)
        return answer if answer.parse().progress == 25 else None

    answer = await eventually(quarter)
    assert answer.parse().status == "in_progress"
    assert 3_500 <= int(answer.headers["openai-poll-after-ms"]) <= 4_000
    assert answer.headers["x-request-id"]
    waiting = asyncio.create_task(client.videos.retrieve(begun.id, extra_headers={"Prefer": "wait=60"}))
    stage.runner.may_end.set()
    assert (await waiting).status == "completed"


async def test_what_create_takes(stage: Stage) -> None:
    """A file, raw bytes, a data URI, vLLM-Omni's fields, JSON, and a key that makes one video from two requests."""
    client = stage.client()
    png = picture("PNG")
    large = picture("PNG", (400, 400), mode="RGB", compress_level=0)
    assert len(large) > 2**18  # more than any field but an image may have

    async def parameters(video: Any) -> dict[str, Any]:
        task: dict[str, Any] = (await stage.system.http.get(f"/tasks/{video.id}")).json()
        return {**task["parameters"], "priority": task["priority"]}

    forms: list[tuple[dict[str, Any], int]] = [
        ({"input_reference": ("fox.png", io.BytesIO(large), "image/png")}, len(large)),
        ({"input_reference": png}, len(png)),
        ({"extra_body": {"input_reference": {"image_url": data_uri(large)}}}, len(large)),
        ({"extra_body": {"input_reference": {"image_url": data_uri(large)}}, "extra_headers": JSON}, len(large)),
    ]
    for form, size in forms:
        image = (await parameters(await client.videos.create(**FOX, **form)))["image"]
        assert (image["media_type"], image["bytes"]) == ("image/png", size)
    more = {
        "num_frames": 9,
        "fps": 8,
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "seed": 7,
        "negative_prompt": "text",
        "priority": "background",
    }
    wanted = {"num_frames": 9, "fps": 8, "steps": 8, "cfg": 2.5, "seed": 7, "negative_prompt": "text"}
    for headers in ({}, JSON):
        video = await client.videos.create(**FOX, extra_body=more, extra_headers=headers)
        found = await parameters(video)
        assert {name: found[name] for name in wanted} == wanted
        assert (found["priority"], found["width"], video.seconds) == ("background", 96, "1")
    assert {request.headers["content-type"].partition(";")[0] for request in stage.sent} == {
        "multipart/form-data",
        "application/json",
    }
    again: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "order-17"}}
    assert (await client.videos.create(**FOX, **again)).id == (await client.videos.create(**FOX, **again)).id


async def test_a_list_by_pages(stage: Stage) -> None:
    client = stage.client("bob")
    made = [(await client.videos.create(**FOX, extra_body={"seed": n})).id for n in range(5)]
    await stage.client().videos.create(**FOX)
    assert [video.id async for video in client.videos.list(limit=2)] == made[::-1]
    assert [video.id async for video in client.videos.list(limit=2, order="asc")] == made
    page = await client.videos.list(limit=2, after=made[3])
    assert ([video.id for video in page.data], page.last_id, page.has_more) == ([made[2], made[1]], made[1], True)
    last = await client.videos.list(after=made[3], order="asc")
    assert ([video.id for video in last.data], last.has_more) == ([made[4]], False)
    ids = [video.id async for video in stage.client("operator").videos.list(limit=100)]
    assert set(made) < set(ids)


async def test_delete_cancels_what_lives_and_forgets_what_has_ended(stage: Stage) -> None:
    stage.runner.may_end.clear()
    client = stage.client()
    video = await client.videos.create(**FOX)
    await stage.runner.started.wait()
    gone = await client.videos.delete(video.id)
    assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
    ended = await client.videos.poll(video.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    with pytest.raises(openai.NotFoundError) as refusal:
        await client.videos.download_content(video.id)
    assert refusal.value.code == "video_failed"

    stage.runner.may_end.set()
    made = await client.videos.create_and_poll(**FOX)
    for each in (video.id, made.id):
        assert (await client.videos.delete(each)).deleted is True
        for look in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
            with pytest.raises(openai.NotFoundError) as refusal:
                await look(each)
            assert refusal.value.code == "task_not_found"
    assert not {video.id, made.id} & {each.id async for each in client.videos.list(limit=100)}
    assert not list((stage.system.gateway.artifacts / "videos").glob(f"{made.id}.*"))


async def test_sync_answers_the_bytes(stage: Stage, tmp_path: Path) -> None:
    files = {"input_reference": ("fox.png", picture("PNG"), "image/png")}
    async with httpx.AsyncClient(base_url=stage.base_url, headers=by(stage.keys["alice"]), timeout=BOUND_S) as http:
        answer = await http.post("/videos/sync", data=FOX | {"seed": "7"}, files=files)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        (tmp_path / "fox.mp4").write_bytes(answer.content)
        assert frames_in(tmp_path / "fox.mp4") == FRAMES
        location = answer.headers["location"]
        assert (await http.get(f"{stage.system.gateway.url}{location}")).json()["status"] == "completed"

        stage.runner.result = Unsuccessful(code=FailureCode.OUT_OF_MEMORY, message="no memory", memory=None)
        failed = await http.post("/videos/sync", json=FOX)
        error = failed.json()["error"]
        assert (failed.status_code, error["code"], error["type"]) == (500, "generation_failed", "server_error")
        assert "out_of_memory" in error["message"]
        assert failed.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", [None, "order-18"])
async def test_who_hangs_up_on_sync_cancels_it_unless_a_key_may_bring_them_back(stage: Stage, key: str | None) -> None:
    stage.runner.may_end.clear()
    headers = by(stage.keys["bob"]) | ({} if key is None else {"Idempotency-Key": key})
    async with httpx.AsyncClient(base_url=stage.base_url, headers=headers, timeout=BOUND_S) as http:
        asking = asyncio.create_task(http.post("/videos/sync", json=FOX))
        await stage.runner.started.wait()
        task_id = stage.runner.ran[-1].id
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        if key is None:
            task = await stage.system.becomes(task_id, TaskStatus.FAILED, epoch=0)
            assert task.error is not None
            assert task.error.code is FailureCode.CANCELLED
            return
        stage.runner.may_end.set()
        again = await http.post("/videos/sync", json=FOX)
        assert again.headers["location"] == f"/v1/videos/{task_id}"


async def test_an_overloaded_queue_is_said_once_and_not_sent_again(stage: Stage) -> None:
    await stage.system.fill()
    with pytest.raises(openai.InternalServerError) as refusal:
        await stage.client().videos.create(model="phr00t", prompt="x")
    assert len(stage.sent) == 1  # without the header the client sends it three times
    error = refusal.value
    assert (error.status_code, error.code, error.type) == (503, "queue_overloaded", "server_error")
    assert "25 requests are waiting already" in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert int(error.response.headers["retry-after"]) >= 1


async def test_every_class_of_error(stage: Stage) -> None:
    client = stage.client()
    made = (await client.videos.create(**FOX)).id
    cases: list[tuple[type[openai.APIStatusError], str, Callable[[], Awaitable[object]]]] = [
        (openai.BadRequestError, "invalid_query", lambda: client.get("/videos?order=up", cast_to=object)),
        (openai.BadRequestError, "invalid_query", lambda: client.videos.list(after=UNKNOWN)),
        (openai.BadRequestError, "invalid_query", lambda: client.videos.download_content(made, variant="spritesheet")),
        (openai.AuthenticationError, "unauthorized", lambda: stage.client("sk-wrong").videos.retrieve(made)),
        (openai.PermissionDeniedError, "forbidden", lambda: stage.client("reader").videos.create(**FOX)),
        (openai.NotFoundError, "task_not_found", lambda: client.videos.retrieve(UNKNOWN)),
        (openai.NotFoundError, "task_not_found", lambda: stage.client("bob").videos.retrieve(made)),
        (openai.NotFoundError, "model_not_found", lambda: client.videos.create(**FOX | {"model": "sora-2"})),
        (openai.NotFoundError, "model_not_found", lambda: client.models.retrieve("sora-2")),
        (openai.NotFoundError, "not_found", lambda: client.videos.remix(made, prompt="bluer")),
        (openai.NotFoundError, "not_found", lambda: client.videos.edit(prompt="bluer", video=b"a video")),
        (openai.NotFoundError, "not_found", lambda: client.videos.extend(prompt="on", seconds="4", video=b"a video")),
        (openai.NotFoundError, "not_found", lambda: client.videos.create_character(name="fox", video=b"a video")),
        (openai.NotFoundError, "not_found", lambda: client.videos.get_character("fox")),
        (openai.UnprocessableEntityError, "validation_failed", lambda: client.videos.create(**FOX | LARGE)),
    ]
    for kind, code, call in cases:
        with pytest.raises(kind) as refusal:
            await call()
        assert refusal.value.code == code
        assert refusal.value.request_id
        assert isinstance(refusal.value.body, dict)
    error = refusal.value
    assert (error.param, error.type) == ("size", "invalid_request_error")
    assert "size: width: expected 32 to 256, got 1280; size: height: expected 32 to 256, got 720" in error.message
    assert isinstance(error.body, dict)
    assert [each["pointer"] for each in error.body["errors"]] == ["/size", "/size"]

    hasty = stage.client("hasty")
    await hasty.videos.list()
    with pytest.raises(openai.RateLimitError) as limited:
        await hasty.videos.list()
    assert (limited.value.code, limited.value.type) == ("rate_limited", "rate_limit_error")
    with pytest.raises(openai.APIConnectionError):
        await AsyncOpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="x", max_retries=0).videos.list()


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"no form", "multipart/form-data; boundary=x", 400, "malformed_body"),
        (b"no form", "multipart/form-data", 400, "malformed_body"),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut',
            "multipart/form-data; boundary=x",
            400,
            "malformed_body",
        ),
        (b" " * (12 * 1024 * 1024 + 1), "application/json", 413, "body_too_large"),
        (b'{"prompt": "%s"}' % (b"x" * 200_000), "application/json", 413, "body_too_large"),
    ],
    ids=["json", "type", "form", "no-boundary", "cut-off", "body", "text"],
)
async def test_a_body_that_is_no_request(
    stage: Stage, content: bytes, content_type: str, status: int, code: str
) -> None:
    headers = by(stage.keys["alice"]) | {"content-type": content_type}
    answer = await stage.system.http.post("/v1/videos", content=content, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json()["error"]["code"] == code


async def test_models(stage: Stage) -> None:
    client = stage.client()
    assert [model.id async for model in client.models.list()] == ["anisora", "phr00t"]
    assert (await client.models.retrieve("INDEX-anisora")).id == "anisora"


async def test_a_synchronous_client_does_it_too(stage: Stage) -> None:
    def run() -> str:
        with OpenAI(base_url=stage.base_url, api_key=stage.keys["alice"].text) as client:
            return client.videos.create_and_poll(**FOX).status

    assert await asyncio.to_thread(run) == "completed"


async def test_a_gateway_that_leaves_cancels_nothing_and_says_where_the_video_will_be(stage: Stage) -> None:
    stage.runner.may_end.clear()
    gateway = stage.system.gateway
    async with httpx.AsyncClient(base_url=stage.base_url, headers=by(stage.keys["alice"]), timeout=BOUND_S) as http:
        asking = asyncio.create_task(http.post("/videos/sync", json=FOX))
        await stage.runner.started.wait()
        await asyncio.to_thread(gateway.stop)
        answer = await asking
    task_id = stage.runner.ran[-1].id
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    assert f"GET /v1/videos/{task_id}" in answer.json()["error"]["message"]
    stage.runner.may_end.set()
    await stage.system.becomes(task_id, TaskStatus.DONE, epoch=0)
    await asyncio.to_thread(gateway.start, "--keep", f"{KEEP_S:g}s")
    assert (await stage.client().videos.retrieve(task_id)).status == "completed"
