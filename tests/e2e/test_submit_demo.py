"""`warmlane submit` and `warmlane demo` against a running system with tiny pipelines."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import av
import httpx
import pytest
from PIL import Image

from ops.machine.processes import warmlane_command
from tests.kit import warm_cli
from tests.kit.support import BOUND_S, NO_TLS, clean_environment, eventually_sync, shared_forks
from tests.kit.system import UpProcess

ROOT = Path(__file__).parents[2]
LIMIT_S = 150


class System(Protocol):
    """The running system of the session's fixture."""

    url: str
    data_dir: Path


def warmlane(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm_cli.run(
        *arguments,
        "--url",
        system.url,
        cwd=ROOT,
        env={**clean_environment(), "COLUMNS": "200"},
        timeout=LIMIT_S,
    )


def decoded(path: Path) -> list[tuple[int, int]]:
    """The size of every frame in the video at *path*."""
    with av.open(str(path)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_submit_saves_a_video_as_asked(system: System, tmp_path: Path) -> None:
    out = tmp_path / "fox.mp4"
    size = ["--width", "64", "--height", "48", "--num-frames", "9"]
    result = warmlane(system, "submit", "phr00t", "a red fox", *size, "--seed", "7", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert decoded(out) == [(64, 48)] * 9
    assert result.stdout == f"{out}  {out.stat().st_size:,} bytes, 64x48, 9 frames at 16 fps, seed 7\n"


def test_submit_with_an_image_depends_on_it(system: System, tmp_path: Path) -> None:
    videos = []
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        image, out = tmp_path / f"{name}.png", tmp_path / f"{name}.mp4"
        Image.new("RGB", (96, 64), colour).save(image)
        arguments = ["--image", str(image), "--num-frames", "9", "--seed", "1", "--out", str(out)]
        result = warmlane(system, "submit", "anisora", "it drifts away", *arguments)
        assert result.returncode == 0, result.stderr
        assert len(decoded(out)) == 9
        videos.append(out.read_bytes())
    assert videos[0] != videos[1]


def test_the_same_key_finds_the_same_video(system: System, tmp_path: Path) -> None:
    arguments = ["submit", "phr00t", "a kite", "--num-frames", "5", "--idempotency-key", "kite-1", "--out"]
    first = warmlane(system, *arguments, str(tmp_path / "1.mp4"))
    again = warmlane(system, *arguments, str(tmp_path / "2.mp4"))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()


def test_wrong_fields_are_printed_and_nothing_is_saved(system: System, tmp_path: Path) -> None:
    out = tmp_path / "no.mp4"
    result = warmlane(system, "submit", "phr00t", "a fox", "--steps", "5", "--width", "50", "--out", str(out))
    assert result.returncode == 1
    assert "422 validation_failed" in result.stderr
    assert "steps: " in result.stderr
    assert "width: " in result.stderr
    size = ("--width", "256", "--height", "256", "--num-frames", "81")  # each within its own limit
    result = warmlane(system, "submit", "phr00t", "a fox", *size, "--out", str(out))
    assert result.returncode == 1
    assert "send at most 77 frames of 256 x 256, or a smaller width or height" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_cancels_the_task(system: UpProcess, tmp_path: Path) -> None:
    # long enough that it cannot end before the signal comes
    size = ["--width", "256", "--height", "256", "--num-frames", "73"]
    key = f"cancel-{tmp_path.name}"
    command = warmlane_command("submit", "anisora", "a long one", *size, "--idempotency-key", key)
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--url", system.url],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually_sync(lambda: newest_status(system, "a long one") == "processing", within_s=60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    cancelled = re.search(r"cancelled task (\S+)", errors)
    assert cancelled is not None, errors
    task = httpx.get(f"{system.url}/tasks/{cancelled[1]}", timeout=BOUND_S).json()
    assert (task["status"], task["error"]["code"]) == ("failed", "cancelled")
    assert list(tmp_path.iterdir()) == []
    # the lane stops at the end of a step, which on a busy machine may take longer than the next test's tasks wait
    ended = {"event": "ownership_lost", "task_id": cancelled[1]}
    eventually_sync(lambda: any(ended.items() <= line.items() for line in system.log_lines("anisora-0")))


def newest_status(system: System, prompt: str) -> str | None:
    """The status of the newest task, if it is the one with *prompt*."""
    tasks = httpx.get(f"{system.url}/tasks", params={"limit": 1}, verify=NO_TLS, timeout=BOUND_S).json()["tasks"]
    if not tasks or tasks[0]["parameters"]["prompt"] != prompt:
        return None
    return str(tasks[0]["status"])


def test_demo_alternates_saves_and_judges(system: System, tmp_path: Path) -> None:

    def all_idle() -> bool:
        models = httpx.get(f"{system.url}/readyz", verify=NO_TLS, timeout=BOUND_S).json()["models"]
        return all(model["lanes"] == ["warm"] for model in models.values())

    eventually_sync(all_idle)  # a lane whose task was cancelled may have to load anew
    result = warmlane(system, "demo", "--requests", "4", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    videos = sorted(path.name for path in tmp_path.glob("*.mp4"))
    assert videos == [f"{number:02}-{('anisora', 'phr00t')[(number + 1) % 2]}.mp4" for number in range(1, 5)]
    assert all(len(decoded(tmp_path / name)) == 17 for name in videos)
    assert len({(tmp_path / name).read_bytes() for name in videos}) == 4
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
        colours = sheet.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 100
    assert "4 of 4 done" in result.stdout
    # how many of them are in time depends on the machine; `tests/unit/ops/test_demo.py` judges what that means
    assert re.search(r"SC-005  [0-3] of 3 model switches accepted within 3 s", result.stdout), result.stdout
    assert "SC-003  4 of 4 tasks carry a memory reading" in result.stdout
    assert "accept, idle: p50" in result.stdout
    assert "publish to inference start: p50" in result.stdout
    if "+cpu" in _torch_version():
        assert "SC-001  not shown: no CUDA" in result.stdout


@pytest.fixture(scope="module")
def degraded_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A running system without lanes."""
    up = UpProcess(tmp_path_factory.mktemp("degraded"), "--lanes", "anisora=0,phr00t=0", **shared_forks())
    up.start()
    yield up
    up.stop()


def test_demo_degraded_shows_what_was_proven_before_each_load(degraded_only: UpProcess, tmp_path: Path) -> None:
    """FR-001..003, as far as a client can see it."""
    result = warmlane(degraded_only, "demo", "--degraded", "--requests", "4", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 of 4 done" in result.stdout
    assert "FR-002  3 of 3 model switches proved the release before the load" in result.stdout
    assert "SC-003  4 of 4 tasks carry a memory reading" in result.stdout
    assert "SC-001" not in result.stdout  # SC-001 is about warm lanes
    rows = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    switches = [row for row in rows if re.match(r"\d anisora → phr00t|\d phr00t → anisora", row)]
    assert [row[0] for row in switches] == ["2", "3", "4"]
    assert len(list(tmp_path.glob("*.mp4"))) == 4
    reason = "no higher class waits; the oldest task of its model waits longest"
    assert f"started when it was 1, 2, 3, 4: {reason}" in " ".join(result.stdout.split())


def test_submit_is_served_without_a_lane(degraded_only: UpProcess, tmp_path: Path) -> None:
    out = tmp_path / "fox.mp4"
    result = warmlane(degraded_only, "submit", "phr00t", "a red fox", "--num-frames", "5", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert len(decoded(out)) == 5


def test_demo_degraded_beside_lanes_says_what_to_start(system: System, tmp_path: Path) -> None:
    result = warmlane(system, "demo", "--degraded", "--out", str(tmp_path))
    assert result.returncode == 1
    assert "warmlane up --lanes anisora=0,phr00t=0" in result.stderr


def _torch_version() -> str:
    from importlib import metadata

    return metadata.version("torch")
