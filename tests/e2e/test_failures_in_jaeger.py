"""Causes each way in which a task fails, and checks what the real Jaeger shows of it: the table of
docs/operate/observability.md, line by line."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from contracts.topology import DEGRADED_MAX_MSGS
from ops.commands.trace import ROOT_SERVICE
from tests.drills.observe_sight import DOCS
from tests.drills.observe_stage import settings_for
from tests.kit.jaeger import Jaeger
from tests.kit.samples import damaged, data_uri, picture
from tests.kit.support import ROGUE_HOST, eventually_sync, fork_server_at
from tests.kit.system import UpProcess
from tests.kit.tools import tool

pytestmark = pytest.mark.tools

LANE: Final = "--name anisora-0"


def settings(folder: Path) -> Path:
    """Lanes with short limits: a step times out after 4 s, and a lane that has to leave hands back after 1 s."""
    path = settings_for(folder)
    document = json.loads(path.read_text())
    document["windows"]["drain_s"] = 1.0
    for model in document["models"].values():
        model["profiles"]["tiny"]["timeouts"]["step_s"] = 4
    path.write_text(json.dumps(document))
    return path


class Scene:
    """A system whose pipelines misbehave as a prompt says, and its Jaeger."""

    def __init__(self, folder: Path) -> None:
        self.jaeger = Jaeger(tool("jaeger"), folder)
        self.up = UpProcess(
            folder,
            *("--settings", str(settings(folder)), "--step-seconds", "0.2"),
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{self.jaeger.otlp_url}/v1/traces",
            OTEL_BSP_SCHEDULE_DELAY="100",
            WARMLANE_FORK_SERVER=fork_server_at(ROGUE_HOST),
        )
        self.up.start()

    def close(self) -> None:
        self.up.stop()
        self.jaeger.close()

    def submit(self, prompt: str = "a red fox", **fields: Any) -> str:
        eventually_sync(self.is_warm, within_s=90)
        return str(self.up.submit(prompt=prompt, **fields)["id"])

    def is_warm(self) -> bool:
        return bool(self.up.http.get("/readyz").json()["models"]["anisora"]["warm"])

    def runs(self, task_id: str) -> None:
        eventually_sync(lambda: self.up.task(task_id)["status"] == "processing", within_s=60)

    @contextlib.contextmanager
    def nobody_serves(self) -> Iterator[None]:
        """Tasks of the degraded worker stay in its queue."""
        pid = self.up.find("degraded", "--name")
        self.mode("degraded")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
            self.mode("auto")

    def mode(self, mode: str) -> None:
        self.up.http.put("/admin/lanes/anisora/mode", json={"mode": mode}).raise_for_status()

    def post(self, **headers: str) -> Any:
        body = {"model": "anisora", "prompt": "x"}
        return self.up.http.post("/generate", json=body, headers=headers).json()

    def trace(self, task_id: str) -> list[Any]:
        """The spans of a task's trace, once the trace has its root and its end."""
        trace_id = self.up.task(task_id)["trace_id"]

        def look() -> list[Any]:
            with contextlib.suppress(Exception):
                (trace,) = self.jaeger.get(f"/api/traces/{trace_id}")
                return spans_of(trace)
            return []

        spans: list[Any] = []

        def is_whole() -> bool:  # nothing more has come since the last look, and every span has its parent
            nonlocal spans
            before, spans = spans, look()
            known = {span["spanID"] for span in spans}
            names = [span["operationName"].partition(" ")[0] for span in spans]
            return (
                bool(spans)
                and len(before) == len(spans)
                and names.count("claim") <= names.count("process")
                and sum(not set(parents(span)) & known for span in spans) == 1
                and any(span["operationName"] == "POST /generate" for span in spans)
            )

        eventually_sync(is_whole, within_s=60)
        return spans


def spans_of(trace: Any) -> list[Any]:
    for span in trace["spans"]:
        span["service"] = trace["processes"][span["processID"]]["serviceName"].removeprefix("warmlane-")
        span["tags"] = {tag["key"]: tag["value"] for tag in span["tags"]}
    return sorted(trace["spans"], key=lambda span: span["startTime"])


def parents(span: Any) -> list[str]:
    return [reference["spanID"] for reference in span["references"] if reference["refType"] == "CHILD_OF"]


def failures(spans: list[Any]) -> str:
    """The failed spans in the form of the table. The status, `error.type` and exception of each must agree."""
    found = []
    for span in spans:
        tags = span["tags"]
        if not tags.get("error"):
            continue
        ((code, name),) = exceptions(span)
        assert tags["otel.status_code"] == "ERROR"
        assert tags["error.type"] == code or span["operationName"] == "POST /generate"  # which has the status as well
        line = f"`{name}` {span['service']} `{code}`"
        if line not in found:
            found.append(line)
    return ", ".join(found)


def exceptions(span: Any) -> list[tuple[str, str]]:
    """What was recorded as an exception in *span*, each with the span's name less the stream of its message."""
    logs = [{field["key"]: field["value"] for field in log["fields"]} for log in span["logs"]]
    name = re.sub(r" (LANE_\w+|DEGRADED)$", "", span["operationName"])
    return [(log["exception.type"], name) for log in logs if log.get("event") == "exception"]


# ── the failures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def ended(scene: Scene, task_id: str) -> list[Any]:
    scene.up.ended(task_id)
    return scene.trace(task_id)


def misbehaves(prompt: str) -> Callable[[Scene], list[Any]]:
    return lambda scene: ended(scene, scene.submit(prompt))


def broken_picture(scene: Scene) -> list[Any]:
    return ended(scene, scene.submit(image=data_uri(damaged(picture("PNG")))))


def storage_fails(scene: Scene) -> list[Any]:
    task_id = scene.submit()
    scene.runs(task_id)
    place = scene.up.data_dir / "artifacts"
    aside = place.with_name("aside")
    place.rename(aside)
    place.write_text("in the way")
    try:
        return ended(scene, task_id)
    finally:
        place.unlink()
        aside.rename(place)


def cancelled_while_it_waits(scene: Scene) -> list[Any]:
    running = scene.submit()
    scene.runs(running)
    waits = scene.submit()
    scene.up.http.delete(f"/tasks/{waits}").raise_for_status()
    return ended(scene, waits)


def cancelled_while_it_runs(scene: Scene) -> list[Any]:
    task_id = scene.submit()
    scene.runs(task_id)
    scene.up.http.delete(f"/tasks/{task_id}").raise_for_status()
    return ended(scene, task_id)


def signalled(number: signal.Signals) -> Callable[[Scene], list[Any]]:
    def act(scene: Scene) -> list[Any]:
        task_id = scene.submit()
        scene.runs(task_id)
        os.kill(scene.up.find(LANE), number)
        return ended(scene, task_id)

    return act


def expired(scene: Scene) -> list[Any]:
    with scene.nobody_serves():
        refused = scene.post()
    assert (refused["code"], refused["limit"]) == ("queue_overloaded", "wait")
    return scene.trace(refused["instance"].rsplit("/", 1)[-1])


def full(scene: Scene) -> list[Any]:
    with scene.nobody_serves(), ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(scene.post, prefer="respond-async") for _ in range(DEGRADED_MAX_MSGS + 1)]
        answers = [post.result() for post in posts]
        for answer in answers:
            if "id" in answer:
                scene.up.http.delete(f"/tasks/{answer['id']}")
    assert any(answer.get("limit") == "depth" for answer in answers)
    eventually_sync(lambda: scene.jaeger.find(ROOT_SERVICE, **{"error.type": "StreamFull"}), within_s=60)
    return spans_of(scene.jaeger.find(ROOT_SERVICE, **{"error.type": "StreamFull"})[0])


CASES: Final[dict[str, Callable[[Scene], list[Any]]]] = {
    "out of memory": misbehaves("oom in step 3"),
    "the pipeline fails": misbehaves("cuda error"),
    "a step hangs": misbehaves("ignore SIGTERM"),
    "the image is none": broken_picture,
    "the video cannot be stored": storage_fails,
    "cancelled while it waits": cancelled_while_it_waits,
    "cancelled while it runs": cancelled_while_it_runs,
    "the lane is asked to stop (hand-back)": signalled(signal.SIGTERM),
    "the lane is killed": signalled(signal.SIGKILL),
    "nobody takes it in time": expired,
    "refused with 503: the queue is full": full,
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("failures"))
    yield scene
    scene.close()


def documented() -> dict[str, str]:
    """The line of the table for each case."""
    table = DOCS.read_text().split("<!-- failures -->")[1]
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", table, re.MULTILINE)[1:])


def test_every_case_is_documented() -> None:
    assert list(documented()) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_what_jaeger_shows_of_a_failure(case: str, scene: Scene) -> None:
    assert failures(CASES[case](scene)) == documented()[case]
