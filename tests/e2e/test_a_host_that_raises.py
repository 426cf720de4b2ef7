"""A pipeline host in which an unexpected error is raised: the worker's log has the traceback, and a caller that waits
for an answer gets one. `tests/kit/rogue_host.py` acts as the broken device."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.settings import ModelEntry, load_settings
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, Finished, Generate
from lane_worker.forking.outcome import HostLost, LoadFailed
from lane_worker.runtime.warm_up import warm_up_parameters
from tests.kit.rogue_host import BROKEN
from tests.kit.support import ROGUE_HOST, eventually, fork_server_at

PHR00T = load_settings().catalog("tiny").models["phr00t"]
SECRET = "canary-4c1e"


def in_folder(folder: str) -> ModelEntry:
    """phr00t in a folder whose name says how its host misbehaves."""
    return msgspec.structs.replace(PHR00T, checkpoint=msgspec.structs.replace(PHR00T.checkpoint, folder=folder))


@pytest.fixture
async def host(tmp_path: Path, rogue_forks: None, capfd: pytest.CaptureFixture[str]) -> AsyncIterator[Host]:
    """A host that prints to this test's output."""
    server = ForkServer(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))
    host = Host(slot="cpu-0", lock_dir=tmp_path / "locks", models_dir=tmp_path / "models", fork_server=server)
    yield host
    await host.close()
    await server.close()


async def generate(host: Host, prompt: str, folder: Path) -> Any:
    parameters = msgspec.structs.replace(warm_up_parameters(PHR00T), prompt=f"{prompt} {SECRET}")
    return await host.generate(Generate("task", 1, parameters, str(folder / "video.mp4")), lambda _: None)


async def ended(host: Host) -> None:
    await eventually(lambda: asyncio.sleep(0, host.pid is None))


def printed(capfd: pytest.CaptureFixture[str], error: str) -> None:
    """The output has one traceback and no prompt."""
    output = capfd.readouterr().err
    assert output.count("Traceback (most recent call last)") == 1, output
    assert error in output
    assert SECRET not in output


async def test_an_error_at_the_start_is_logged_once_with_its_traceback(
    host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locks").write_text("no folder")
    with pytest.raises(HostLost, match=r"could not start: \w+Error: .*locks"):
        await host.start()
    printed(capfd, "child.py")


async def test_an_error_in_the_cleanup_after_a_load_fails_the_load(
    host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    await host.start()
    with pytest.raises(LoadFailed, match=BROKEN) as failed:
        await host.load(in_folder("fail-in-clean"))
    assert failed.value.failure.fatal
    assert host.pid is None
    printed(capfd, BROKEN)


async def test_an_error_in_the_cleanup_after_a_failed_load_does_not_hide_the_failure(
    host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    """The host reports the first failure, and its process is not used again."""
    await host.start()
    with pytest.raises(LoadFailed) as failed:
        await host.load(in_folder("oom-and-fail-in-clean"))
    assert (failed.value.failure.code, failed.value.failure.fatal) == ("out_of_memory", True)
    assert host.pid is None
    printed(capfd, BROKEN)


async def test_an_error_in_the_cleanup_after_a_video_ends_the_host_and_keeps_the_video(
    host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker delivers the video, and the host ends."""
    await host.start()
    await host.load(PHR00T)
    outcome = await generate(host, "fail in clean", tmp_path)
    assert isinstance(outcome, Finished)
    assert (tmp_path / "video.mp4").stat().st_size == outcome.video.bytes
    assert outcome.memory.rss_bytes > 0
    await ended(host)
    printed(capfd, BROKEN)


async def test_an_error_in_the_cleanup_after_a_failure_does_not_hide_the_failure(
    host: Host, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await host.start()
    await host.load(PHR00T)
    outcome = await generate(host, "oom and fail in clean", tmp_path)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.fatal, outcome.task_id) == ("out_of_memory", True, "task")
    assert host.pid is None
    printed(capfd, BROKEN)


async def test_an_error_while_unloading_ends_the_host(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    await host.start()
    await host.load(in_folder("fail-in-release"))
    with pytest.raises(HostLost, match=f"could not unload its model: RuntimeError: {BROKEN}"):
        await host.unload()
    assert host.pid is None
    printed(capfd, BROKEN)
