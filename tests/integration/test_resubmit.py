"""`warmlane resubmit` against a gateway that answers as scripted; `test_runbook.py` uses a real one."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from ops.cli import cli
from tests.kit.samples import data_uri, picture
from tests.kit.scripted_gateway import DONE, PENDING, VIDEO, Answer, ScriptedGateway, problem

ID: Final = "019c9a4e-0000-7000-8000-000000000001"
NEW: Final = {**PENDING, "id": "019c9a4e-0000-7000-8000-000000000002"}
PARAMETERS: Final = {"prompt": "a fox", "negative_prompt": "", "width": 96, "seed": 7, "steps": 8, "cfg": 1.0}
FAILED: Final[dict[str, Any]] = {
    **PENDING,
    "id": ID,
    "status": "failed",
    "parameters": {**PARAMETERS, "image": None, "added_later": 3},
    "error": {"code": "worker_lost", "message": "2 workers were lost"},
}
IMAGE: Final = picture("PNG")
WITH_IMAGE: Final[dict[str, Any]] = {
    **FAILED,
    "parameters": {
        **PARAMETERS,
        "image": {
            "sha256": hashlib.sha256(IMAGE).hexdigest(),
            "media_type": "image/png",
            "bytes": len(IMAGE),
            "width": 33,
            "height": 21,
        },
    },
}


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    yield gateway
    gateway.close()


def resubmit(gateway: ScriptedGateway, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["resubmit", ID, "--url", gateway.url, *arguments])
    assert gateway.script == [], "an answer was not asked for"
    return result


def test_the_same_request_is_sent_under_a_key_that_follows_from_the_id(gateway: ScriptedGateway) -> None:
    """It has every parameter, even one that this version does not know. Sending it twice gives the same task."""
    for _ in range(2):
        gateway.script = [Answer(200, FAILED), Answer(202, NEW)]
        result = resubmit(gateway, "--no-wait")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{NEW['id']} is pending: the request of {ID} again, seed 7\n"
    assert [(method, path) for method, path, _, _ in gateway.asked] == [
        ("GET", f"/tasks/{ID}"),
        ("POST", "/generate"),
    ] * 2
    for _, _, headers, body in (gateway.asked[1], gateway.asked[3]):
        assert headers["idempotency-key"] == f"resubmit-{ID}"
        assert json.loads(body) == {"model": "anisora", **PARAMETERS, "added_later": 3}


@pytest.mark.parametrize(
    ("recorded", "sent"),
    [
        ({}, {}),
        ({"priority": "standard"}, {}),
        ({"priority": "background"}, {"priority": "background"}),
        ({"priority": "added_later"}, {"priority": "added_later"}),
        ({"keep_s": None}, {}),
        ({"keep_s": 90}, {"keep_s": 90}),
    ],
)
def test_its_class_and_how_long_it_is_kept_are_sent_again(
    gateway: ScriptedGateway, recorded: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Except for the class that all requests had before there were classes."""
    original = {name: value for name, value in FAILED.items() if name != "priority"}
    gateway.script = [Answer(200, original | recorded), Answer(202, NEW)]
    result = resubmit(gateway, "--no-wait")
    assert result.exit_code == 0, result.output
    body = json.loads(gateway.asked[1][3])
    assert {name: value for name, value in body.items() if name in ("priority", "keep_s")} == sent


def test_the_image_is_sent_again_if_it_is_the_same(gateway: ScriptedGateway, tmp_path: Path) -> None:
    (tmp_path / "boat.png").write_bytes(IMAGE)
    gateway.script = [Answer(200, WITH_IMAGE), Answer(202, NEW)]
    result = resubmit(gateway, "--no-wait", "--image", str(tmp_path / "boat.png"))
    assert result.exit_code == 0, result.output
    assert json.loads(gateway.asked[1][3])["image"] == data_uri(IMAGE)


@pytest.mark.parametrize(
    ("task", "image", "status", "expected"),
    [
        ({**DONE, "id": ID}, None, 1, f"task {ID} is done: its video is at "),
        ({**FAILED, "status": "pending"}, None, 1, f"task {ID} is pending: it may still end well"),
        ({**FAILED, "status": "processing"}, None, 1, f"`warmlane tasks cancel {ID}`"),
        (WITH_IMAGE, None, 1, "name its file with --image. If a worker had begun the task, the artifact store "),
        (WITH_IMAGE, picture("PNG", (8, 8)), 2, "is not the image that task"),
        (WITH_IMAGE, b"no image", 2, "neither PNG, JPEG nor WebP"),
        (FAILED, IMAGE, 2, "started from no image; leave it out"),
    ],
    ids=["done", "pending", "processing", "no image", "another image", "no picture", "an image too many"],
)
def test_a_request_that_must_not_be_sent_again_is_not_sent(
    gateway: ScriptedGateway, tmp_path: Path, task: dict[str, Any], image: bytes | None, status: int, expected: str
) -> None:
    file = tmp_path / "boat.png"
    file.write_bytes(image or b"")
    gateway.script = [Answer(200, task)]
    result = resubmit(gateway, *([] if image is None else ["--image", str(file)]))
    assert result.exit_code == status
    text = " ".join(result.stderr.split())
    assert expected.replace("{port}", gateway.url.rpartition(":")[2]) in text
    assert len(gateway.asked) == 1


def test_an_unknown_task_is_reported(gateway: ScriptedGateway) -> None:
    gateway.script = [problem(404, "task_not_found", detail="no task has this id")]
    result = resubmit(gateway)
    assert (result.exit_code, "no task has this id" in result.stderr) == (1, True)


def test_the_video_is_saved_as_submit_does(gateway: ScriptedGateway, tmp_path: Path) -> None:
    done = {**DONE, "id": NEW["id"]}
    gateway.script = [
        Answer(200, FAILED),
        Answer(202, NEW, etag='"1"'),
        Answer(200, done, etag='"2"'),
        Answer(200, VIDEO),
    ]
    result = resubmit(gateway, "--out", str(tmp_path))
    path = tmp_path / "anisora-000000000002.mp4"
    assert (result.exit_code, path.read_bytes()) == (0, VIDEO), result.output
    assert result.stdout.splitlines()[-1] == f"{path}  18 bytes, 96x64, 17 frames at 16 fps, seed 7"


def test_a_new_task_that_fails_too_is_reported(gateway: ScriptedGateway) -> None:
    lost = {**NEW, "status": "failed", "error": {"code": "worker_lost", "message": "2 workers were lost"}}
    gateway.script = [Answer(200, FAILED), Answer(202, NEW, etag='"1"'), Answer(200, lost, etag='"2"')]
    result = resubmit(gateway)
    assert result.exit_code == 1
    assert result.stderr == (
        f"accepted: {gateway.url}/tasks/{NEW['id']}\n"
        f"task {NEW['id']} failed: worker_lost: 2 workers were lost\n`warmlane resubmit {NEW['id']}` tries again\n"
    )


@pytest.mark.parametrize(
    "arguments", [["--out", "/no/such/folder/x.mp4"], ["--no-wait", "--out", "x.mp4"]], ids=["folder", "no use"]
)
def test_nothing_is_sent_that_could_not_be_saved(gateway: ScriptedGateway, arguments: list[str]) -> None:
    assert (resubmit(gateway, *arguments).exit_code, gateway.asked) == (2, [])
