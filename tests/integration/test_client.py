"""`warmlane submit` against a server that misbehaves as scripted: lost, refused, damaged and foreign answers."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from click.testing import CliRunner

from contracts.api.lenient import lenient
from contracts.api.tasks import QueuePlace, TaskView
from ops.cli import cli
from ops.commands.submit import waiting_line
from tests.kit.scripted_gateway import DONE, ID, PENDING, VIDEO, Answer, ScriptedGateway, problem, submit
from tests.kit.small_disk import small_disk


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    gateway = ScriptedGateway()
    yield gateway
    gateway.close()


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("https://images.example.com/a.png", {"url": "https://images.example.com/a.png"}),
        ("img_" + "0" * 32, {"ref": "img_" + "0" * 32}),
    ],
)
def test_an_image_that_is_elsewhere_is_named(
    gateway: ScriptedGateway, tmp_path: Path, named: str, expected: dict[str, str]
) -> None:
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    assert submit(gateway, tmp_path, "--image", named).exit_code == 0
    assert json.loads(gateway.asked[0][3])["image"] == expected


def test_only_what_was_given_is_sent(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    result = submit(gateway, tmp_path, "--num-frames", "33", "--cfg", "1.5", "--keep", "2h")
    assert result.exit_code == 0, result.output
    given = {"num_frames": 33, "cfg": 1.5, "keep_s": 7_200}
    assert json.loads(gateway.asked[0][3]) == {"model": "anisora", "prompt": "a fox", **given}


def test_a_task_is_kept_for_whole_seconds(gateway: ScriptedGateway, tmp_path: Path) -> None:
    result = submit(gateway, tmp_path, "--keep", "90.5s")
    assert result.exit_code == 2
    assert "90.5 s is no whole number of seconds" in result.output


def test_the_video_is_saved_and_described(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "fox.mp4").read_bytes() == VIDEO
    assert result.stdout == f"{tmp_path / 'fox.mp4'}  18 bytes, 96x64, 17 frames at 16 fps, seed 7\n"


def test_a_warning_is_printed_and_the_video_saved(gateway: ScriptedGateway, tmp_path: Path) -> None:
    message = (
        "steps: expected 8, got 20; 8 was used [sic], and that is said in one line, however long it is for a terminal"
    )
    warned = DONE | {
        "warnings": [{"pointer": "/steps", "code": "a_later_one", "message": message, "expected": 8, "got": 20}]
    }
    gateway.script = [Answer(202, warned, etag='"5"'), Answer(200, VIDEO)]
    result = submit(gateway, tmp_path, "--steps", "20")
    assert result.exit_code == 0, result.output
    assert result.stderr == f"accepted: {gateway.url}/tasks/{ID}\nwarning: {message}\n"
    assert result.stdout.startswith(str(tmp_path / "fox.mp4"))


@pytest.mark.parametrize(
    "first", [Answer(lost=True), problem(503, "transport_unavailable", outcome="unknown")], ids=["lost", "unknown"]
)
def test_a_submit_whose_outcome_is_unknown_is_sent_again_with_the_same_key(
    gateway: ScriptedGateway, tmp_path: Path, first: Answer
) -> None:
    gateway.script = [first, Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 0, result.output
    (_, _, headers, body), (_, _, headers_again, body_again) = gateway.asked[:2]
    assert len(headers["idempotency-key"]) >= 32
    assert headers["idempotency-key"] == headers_again["idempotency-key"]
    assert body == body_again


def test_a_key_of_ones_own_is_used(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    submit(gateway, tmp_path, "--idempotency-key", "mine")
    assert gateway.asked[0][2]["idempotency-key"] == "mine"


def test_a_submit_is_not_held(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """`submit` does not hold the request, so that a waiting task has an id, shows its place, and can be cancelled."""
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(200, VIDEO)]
    submit(gateway, tmp_path)
    assert gateway.asked[0][2]["prefer"] == "respond-async"


def test_an_answered_refusal_is_shown_and_not_sent_again(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [problem(503, "queue_overloaded", detail="25 requests wait already.", retry_after_s=12.5)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: title of queue_overloaded (503 queue_overloaded)\n  25 requests wait already.\n  Try again in 12.5 s.\n"
    )


TROUBLE: Final = "KV_tasks takes no writes: make room on the disk of nats-server"
NOT_READY: Final[dict[str, Any]] = {"degraded_worker": True, "models": {}, "troubles": [TROUBLE]}


def test_a_refusal_for_lack_of_room_names_the_cause(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [problem(503, "storage_full"), Answer(503, NOT_READY)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert f"The gateway says: {TROUBLE}" in result.output


def test_a_task_that_cannot_move_is_not_followed_for_ever(
    gateway: ScriptedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens, for example, when the disk of the server becomes full after the task was accepted."""
    monkeypatch.setattr("ops.commands.api.client.STUCK_AFTER_S", 0.0)
    well = {"degraded_worker": True, "models": {}, "troubles": ["the queue's storage is nearly full"]}
    gateway.script = [Answer(202, PENDING, etag='"1"'), Answer(200, well), Answer(304), Answer(503, NOT_READY)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert f"task {ID} is pending and cannot go on: {TROUBLE}" in result.output
    assert f"It is kept, and goes on when that is done: {gateway.url}/tasks/{ID}" in result.output


def test_a_key_that_asked_too_often_waits_for_its_turn(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """The client waits at every step, as long as `Retry-After` says."""
    limited = problem(429, "rate_limited", retry_after_s=0.01)
    gateway.script = [
        *[limited] * 5,  # more often than the client would retry after a lost answer
        Answer(202, PENDING, etag='"1"'),
        limited,
        Answer(200, DONE, etag='"3"'),
        limited,
        Answer(200, VIDEO),
    ]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 0, result.output
    assert len({headers["idempotency-key"] for method, _, headers, _ in gateway.asked if method == "POST"}) == 1


def test_a_retry_after_that_is_far_off_is_printed_and_not_waited_for(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [problem(429, "rate_limited", retry_after_s=3_000)]
    result = submit(gateway, tmp_path)
    assert (result.exit_code, "Try again in 3000 s." in result.stderr) == (1, True)


def test_a_busy_system_is_asked_again_as_it_says(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """All ways to be busy, with one key: refused at once, refused by a proxy, or ended because no worker took it."""
    proxy = Answer(503, b"<html>Service Unavailable")
    proxy.retry_after = "0"
    error = {"code": "queue_overloaded", "message": "no worker took it within 30 s"}
    gateway.script = [
        problem(503, "queue_overloaded", retry_after_s=0.01),
        problem(503, "storage_full", retry_after_s=0.02),
        proxy,
        Answer(202, PENDING, etag='"1"'),
        Answer(200, {**PENDING, "status": "failed", "error": error}, etag='"2"'),
        Answer(202, DONE, etag='"3"'),
        Answer(200, VIDEO),
    ]
    with pytest.MonkeyPatch.context() as patch:
        slept: list[float] = []
        patch.setattr("ops.commands.submit.time.sleep", slept.append)
        result = submit(gateway, tmp_path, "--retry", "10m")
    assert result.exit_code == 0, result.output
    assert slept == [0.01, 0.02, 0.0, 8.0]  # the fourth answer names no time
    assert len({headers["idempotency-key"] for method, _, headers, _ in gateway.asked if method == "POST"}) == 1
    assert "queue_overloaded (503); trying again in 0.01 s\n" in result.stderr
    assert "unavailable (503); trying again in 0 s\n" in result.stderr


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        (problem(503, "queue_overloaded", retry_after_s=31), ["--retry", "30s"]),
        (problem(503, "queue_overloaded", retry_after_s=0.01), []),
        (problem(422, "validation_failed"), ["--retry", "30s"]),
    ],
    ids=["too far off", "not asked to", "no use"],
)
def test_what_is_not_tried_again(
    gateway: ScriptedGateway, tmp_path: Path, answer: Answer, arguments: list[str]
) -> None:
    gateway.script = [answer]
    result = submit(gateway, tmp_path, *arguments)
    assert (result.exit_code, "trying again" in result.stderr) == (1, False)


def test_ctrl_c_ends_the_wait_for_another_try(
    gateway: ScriptedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ops.commands.submit.time.sleep", interrupt)
    gateway.script = [problem(503, "queue_overloaded", retry_after_s=20)]
    result = submit(gateway, tmp_path, "--retry", "1m")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted; nothing was accepted")


def test_the_header_alone_also_says_when_to_try_again(gateway: ScriptedGateway, tmp_path: Path) -> None:
    refusal = problem(503, "queue_overloaded")
    refusal.retry_after = "12"
    gateway.script = [refusal]
    assert "Try again in 12 s." in submit(gateway, tmp_path).stderr


def test_every_wrong_field_is_shown(gateway: ScriptedGateway, tmp_path: Path) -> None:
    errors = [
        {"pointer": "/steps", "code": "fixed_value", "message": "steps: expected 8, got 7", "expected": 8, "got": 7},
        {"pointer": "/fps", "code": "out_of_range", "message": "fps: expected 1 to 60, got 0", "got": 0},
    ]
    gateway.script = [problem(422, "validation_failed", detail="2 fields are wrong", errors=errors)]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: title of validation_failed (422 validation_failed)\n"
        "  steps: expected 8, got 7\n  fps: expected 1 to 60, got 0\n"
    )


def test_waiting_names_the_last_revision_and_survives_a_lost_connection(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    running = {**PENDING, "status": "processing", "progress": {"step": 3, "steps": 8}}
    gateway.script = [
        Answer(202, PENDING, etag='"1"'),
        Answer(304, etag='"1"'),
        Answer(200, running, etag='"2"'),
        Answer(lost=True),
        problem(503, "transport_unavailable"),
        Answer(200, DONE, etag='"3"'),
        Answer(200, VIDEO),
    ]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 0, result.output
    waits = [(path, headers["if-none-match"]) for _, path, headers, _ in gateway.asked[1:-1]]
    assert {path for path, _ in waits} == {f"/tasks/{ID}?wait=20"}
    assert [revision for _, revision in waits] == ['"1"', '"1"', '"2"', '"2"', '"2"']


def test_a_place_in_the_queue_is_asked_for_anew(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """While a task waits its revision stays the same, so the long poll alone would never report a new place."""

    def in_place(position: int) -> dict[str, Any]:
        return {**PENDING, "queue": {"position": position, "expected_wait_s": None}}

    gateway.script = [
        Answer(202, in_place(2), etag='"1"'),
        Answer(304, etag='"1"'),
        Answer(200, in_place(1), etag='"1"'),
        Answer(200, DONE, etag='"3"'),
        Answer(200, VIDEO),
    ]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 0, result.output
    asked = [(path, headers.get("if-none-match")) for _, path, headers, _ in gateway.asked[1:-1]]
    assert asked == [(f"/tasks/{ID}?wait=1", '"1"'), (f"/tasks/{ID}?wait=0", None), (f"/tasks/{ID}?wait=1", '"1"')]


@pytest.mark.parametrize(
    ("queue", "line"),
    [
        (None, "waiting for a worker"),
        (QueuePlace(position=3, expected_wait_s=12.4), "waiting in place 3, about 12 s"),
        (QueuePlace(position=1, expected_wait_s=None), "waiting in place 1"),
    ],
)
def test_what_submit_prints_of_a_waiting_task(queue: QueuePlace | None, line: str) -> None:
    task = msgspec.convert(PENDING, lenient(TaskView))
    assert waiting_line(msgspec.structs.replace(task, queue=queue)) == line


def test_a_task_that_nobody_took_says_what_to_do_next(gateway: ScriptedGateway, tmp_path: Path) -> None:
    error = {"code": "queue_overloaded", "message": "no worker took it within 30 s"}
    failed = {**PENDING, "status": "failed", "error": error}
    gateway.script = [Answer(202, PENDING, etag='"1"'), Answer(200, failed, etag='"2"')]
    result = submit(gateway, tmp_path, "--idempotency-key", "mine")
    assert result.exit_code == 1
    assert result.stderr == (
        f"accepted: {gateway.url}/tasks/{ID}\n"
        f"task {ID} failed: queue_overloaded: no worker took it within 30 s\n"
        "Nothing ran. Try again in a while, or with --retry 10m; --idempotency-key mine may be used again.\n"
    )


def test_a_failed_task_is_printed_with_its_reason(gateway: ScriptedGateway, tmp_path: Path) -> None:
    failed = {**PENDING, "status": "failed", "error": {"code": "a_later_code", "message": "it broke"}}
    gateway.script = [Answer(202, PENDING, etag='"1"'), Answer(200, failed, etag='"2"')]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert f"task {ID} failed: a_later_code: it broke" in result.stderr


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(200, VIDEO[:-1]), "arrived damaged"),
        (problem(410, "video_expired", detail="The video is gone."), "The video is gone."),
    ],
)
def test_a_video_is_saved_whole_or_not_at_all(
    gateway: ScriptedGateway, tmp_path: Path, answer: Answer, text: str
) -> None:
    (tmp_path / "fox.mp4").write_bytes(b"an earlier one")
    gateway.script = [Answer(202, DONE, etag='"5"'), answer]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert text in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fox.mp4"]
    assert (tmp_path / "fox.mp4").read_bytes() == b"an earlier one"


@pytest.mark.parametrize("answer", [Answer(502, b"<html>Bad Gateway"), Answer(202, {"hello": "world"})])
def test_something_else_than_a_gateway_is_recognised(gateway: ScriptedGateway, tmp_path: Path, answer: Answer) -> None:
    gateway.script = [answer]
    result = submit(gateway, tmp_path)
    assert result.exit_code == 1
    assert "Warmlane gateway" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "/no/such/folder/fox.mp4"], "there is no folder /no/such/folder"),
        (["--out", f"{__file__}/fox.mp4"], "is a file, not a folder"),
        (["--out", "/dev/null"], "exists and is not a file that can be replaced"),
        (["--out", "/proc/fox.mp4"], "/proc/fox.mp4 cannot be written"),
        (["--out", "x" * 255], "cannot be written: File name too long"),
        (["--image", __file__], "neither PNG, JPEG nor WebP"),
        (["--image", "/no/such.png"], "does not exist"),
        (["--width", "wide"], "not a valid int"),
        (["--url", "127.0.0.1:8000"], "does not begin with http://"),
    ],
)
def test_what_can_be_refused_here_is_not_sent(
    gateway: ScriptedGateway, tmp_path: Path, arguments: list[str], text: str
) -> None:
    result = submit(gateway, tmp_path, *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert gateway.asked == []


@pytest.mark.parametrize("out", [f"{__file__}/videos", "/proc/videos"])
def test_a_demo_looks_where_it_saves_first(gateway: ScriptedGateway, out: str) -> None:
    result = CliRunner().invoke(cli, ["demo", "--out", out, "--url", gateway.url])
    assert (result.exit_code, "--out" in result.stderr, gateway.asked) == (2, True, [])


def test_a_full_disk_is_reported_before_the_request_or_with_the_address_of_the_video(
    gateway: ScriptedGateway, tmp_path: Path
) -> None:
    large = bytes(3 << 20)
    video = DONE["video"] | {"bytes": len(large), "sha256": hashlib.sha256(large).hexdigest()}
    with small_disk(tmp_path / "disk", mib=2) as disk:
        out = disk.folder / "fox.mp4"
        gateway.script = [Answer(202, DONE | {"video": video}, etag='"5"'), Answer(200, large)]
        result = submit(gateway, tmp_path, "--out", str(out))
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-2:] == [
            f"Error: {out} cannot be written: No space left on device",
            f"task {ID} is at {gateway.url}/tasks/{ID}; to save its video: "
            f"warmlane tasks download {ID} --url {gateway.url} --wait",
        ]
        assert list(disk.folder.iterdir()) == []
        disk.fill()
        gateway.asked.clear()
        result = submit(gateway, tmp_path, "--out", str(out))
        assert (result.exit_code, gateway.asked) == (2, [])
        assert "cannot be written: No space left on device" in result.stderr
        assert [path.name for path in disk.folder.iterdir()] == ["filler"]


def test_a_gateway_that_went_away_with_the_video(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.script = [Answer(202, DONE, etag='"5"'), Answer(lost=True)]
    result = submit(gateway, tmp_path)
    assert (result.exit_code, f"warmlane tasks download {ID}" in result.stderr) == (1, True)
