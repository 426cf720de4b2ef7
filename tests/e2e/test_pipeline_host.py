"""The pipeline host, both sides: real children, real tiny pipelines, real kills (design §7)."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import psutil
import pytest
import pytest_asyncio
from PIL import Image

from contracts.settings import Catalog, ModelEntry, load_settings
from contracts.tasks import GenerationParameters, ImageReference
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Cancelled, Failed, Finished, Generate, StepFinished
from lane_worker.forking.outcome import HostLost, LoadFailed, LoadTimedOut, Lost, SlotTaken, TimedOut
from lane_worker.forking.slot import lock_path, read_note
from tests.kit.support import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "a lighthouse at dusk, é 火"
FOREVER_S = 600.0  # longer than any test may take
CATALOG: Catalog = load_settings().catalog("tiny")
MODELS = tuple(CATALOG.models)


class Workshop:
    """What the tests of this module share: one fork server, one cache of tiny pipelines, one lock folder."""

    def __init__(self, folder: Path) -> None:
        self.fork_server = ForkServer()
        self.models_dir = folder / "models"
        self.lock_dir = folder / "locks"
        self._hosts: list[Host] = []

    def host(self, *, slot: str = "cpu-0", step_seconds: float = 0.0) -> Host:
        """A new host on *slot*, not yet started."""
        host = Host(
            slot=slot,
            lock_dir=self.lock_dir,
            models_dir=self.models_dir,
            step_seconds=step_seconds,
            fork_server=self.fork_server,
            lock_wait_s=0.2,
        )
        self._hosts.append(host)
        return host

    async def slow_host(self, model: str = "phr00t", *, step_seconds: float = FOREVER_S, **timeouts: float) -> Host:
        """A loaded host on cpu-0, each step of which takes *step_seconds*."""
        host = self.host(step_seconds=step_seconds)
        await host.start()
        await host.load(self.entry(model, **timeouts))
        return host

    @staticmethod
    def entry(model: str, **timeouts: float) -> ModelEntry:
        entry = CATALOG.models[model]
        return msgspec.structs.replace(entry, timeouts=msgspec.structs.replace(entry.timeouts, **timeouts))

    async def close_hosts(self) -> None:
        while self._hosts:
            await self._hosts.pop().close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    workshop = Workshop(tmp_path_factory.mktemp("host"))
    yield workshop
    await workshop.fork_server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def workshop(shared: Workshop) -> AsyncIterator[Workshop]:
    """The shared workshop; the hosts that a test takes from it are closed when it ends."""
    yield shared
    await shared.close_hosts()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory, shared: Workshop) -> AsyncIterator[dict[str, Host]]:
    """A loaded host per model, on slots of their own, for tests that leave them as they were."""
    lasting = Workshop(tmp_path_factory.mktemp("lasting"))
    lasting.fork_server, lasting.models_dir = shared.fork_server, shared.models_dir
    loaded = {}
    for number, model in enumerate(MODELS):
        loaded[model] = lasting.host(slot=f"cpu-{number}")
        await loaded[model].start()
        await loaded[model].load(CATALOG.models[model])
    yield loaded
    await lasting.close_hosts()


def parameters(model: str = "phr00t", **changes: Any) -> GenerationParameters:
    steps = CATALOG.models[model].constraints.steps.fixed
    assert steps is not None
    small = GenerationParameters(
        prompt=PROMPT,
        negative_prompt="",
        image=None,
        width=48,
        height=32,
        num_frames=5,
        fps=8,
        seed=7,
        steps=steps,
        cfg=1.0,
    )
    return msgspec.structs.replace(small, **changes)


def request(
    folder: Path, wanted: GenerationParameters | None = None, *, task_id: str = "task", **more: Any
) -> Generate:
    return Generate(task_id, 1, wanted or parameters(), str(folder / f"{task_id}.mp4"), **more)


def ignore(_progress: StepFinished) -> None:
    pass


async def finished(host: Host, wanted: Generate, on_progress: Callable[[StepFinished], None] = ignore) -> Finished:
    outcome = await host.generate(wanted, on_progress)
    assert isinstance(outcome, Finished), outcome
    return outcome


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def is_gone(pid: int) -> bool:
    # a zombie is gone too: it waits for a parent that may never look
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# Videos


@pytest.mark.parametrize("model", MODELS)
async def test_a_video_is_what_was_asked_for(hosts: dict[str, Host], model: str, tmp_path: Path) -> None:
    steps: list[StepFinished] = []
    wanted = parameters(model, width=96, height=64, num_frames=9, fps=12)
    outcome = await finished(hosts[model], request(tmp_path, wanted), steps.append)

    path = tmp_path / "task.mp4"
    content = path.read_bytes()
    video = outcome.video
    assert (video.width, video.height, video.frames, video.fps) == (96, 64, 9, 12)
    assert video.bytes == len(content)
    assert video.sha256 == hashlib.sha256(content).hexdigest()
    assert files(tmp_path) == [path]
    assert content.index(b"moov") < content.index(b"mdat")  # playable before it has arrived whole
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in decoded] == [(64, 96, 3)] * 9
    assert np.stack(decoded).std() > 1  # something is on it

    assert [step.step for step in steps] == list(range(wanted.steps + 1))
    assert {(step.task_id, step.steps) for step in steps} == {("task", wanted.steps)}
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    assert outcome.memory.rss_bytes > 0


@pytest.mark.parametrize("model", MODELS)
async def test_the_seed_decides_the_bytes_in_every_process(
    hosts: dict[str, Host], workshop: Workshop, model: str, tmp_path: Path
) -> None:
    first = await finished(hosts[model], request(tmp_path, parameters(model)))
    other_seed = await finished(hosts[model], request(tmp_path, parameters(model, seed=8)))
    another = workshop.host(slot="cpu-9")
    await another.start()
    await another.load(CATALOG.models[model])
    again = await finished(another, request(tmp_path, parameters(model)))
    assert first.video.sha256 == again.video.sha256
    assert first.video.sha256 != other_seed.video.sha256


@pytest.mark.parametrize("model", MODELS)
async def test_a_video_equals_the_one_of_the_pipeline_called_directly(
    hosts: dict[str, Host], shared: Workshop, model: str, tmp_path: Path
) -> None:
    # imported here: it takes seconds, and only this test needs torch in its own process
    import diffusers
    import torch

    from lane_worker.pipelines.inputs import gradient
    from lane_worker.pipelines.sigmas import BetaSigmasEuler
    from lane_worker.pipelines.video import write_video

    wanted = parameters(model)
    outcome = await finished(hosts[model], request(tmp_path, wanted))

    checkpoint = CATALOG.models[model].checkpoint
    pipeline = diffusers.DiffusionPipeline.from_pretrained(shared.models_dir / checkpoint.folder)
    if checkpoint.scheduler.sigmas == "beta":
        pipeline.scheduler = BetaSigmasEuler(shift=checkpoint.scheduler.flow_shift)
    else:
        pipeline.scheduler = diffusers.UniPCMultistepScheduler.from_config(
            pipeline.scheduler.config, flow_shift=checkpoint.scheduler.flow_shift
        )
    image = {"image": gradient(7, 48, 32)} if model == "anisora" else {}
    images = pipeline(
        prompt=PROMPT,
        width=48,
        height=32,
        num_frames=5,
        num_inference_steps=wanted.steps,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="pil",
        **image,
    ).frames[0]
    direct = write_video(np.stack([np.asarray(image) for image in images]), tmp_path / "direct.mp4", fps=8)
    assert outcome.video.sha256 == direct.sha256


async def test_two_workers_may_build_the_same_pipeline_at_once(workshop: Workshop, tmp_path: Path) -> None:
    shared_dir, workshop.models_dir = workshop.models_dir, tmp_path
    try:
        pair = [workshop.host(slot=slot) for slot in ("cpu-0", "cpu-1")]
    finally:
        workshop.models_dir = shared_dir
    for host in pair:
        await host.start()
    await asyncio.gather(*(host.load(CATALOG.models["anisora"]) for host in pair))
    assert [path.name for path in files(tmp_path)] == ["tiny-anisora"]


async def test_both_experts_of_anisora_take_part(hosts: dict[str, Host], shared: Workshop) -> None:
    folder = shared.models_dir / CATALOG.models["anisora"].checkpoint.folder
    assert (folder / "transformer").is_dir()
    assert (folder / "transformer_2").is_dir()
    assert not (folder / "image_encoder").exists()
    assert json.loads((folder / "model_index.json").read_bytes())["boundary_ratio"] == 0.9


async def test_guidance_and_a_negative_prompt_change_the_video(hosts: dict[str, Host], tmp_path: Path) -> None:
    plain = await finished(hosts["anisora"], request(tmp_path, parameters("anisora")))
    guided = await finished(
        hosts["anisora"], request(tmp_path, parameters("anisora", cfg=3.0, negative_prompt="blurry"))
    )
    assert plain.video.sha256 != guided.video.sha256


# Images


def image_file(folder: Path, name: str, content: bytes, *, size: tuple[int, int], kind: str = "png") -> dict[str, Any]:
    path = folder / name
    path.write_bytes(content)
    reference = ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type=f"image/{kind}",
        bytes=len(content),
        width=size[0],
        height=size[1],
    )
    return {"image_path": str(path), "image": reference}


def encoded(folder: Path, kind: str, size: tuple[int, int], colour: str = "teal") -> bytes:
    path = folder / f"made.{kind}"
    Image.new("RGB", size, colour).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_an_image_of_any_shape_decides_the_video(hosts: dict[str, Host], kind: str, tmp_path: Path) -> None:
    shas = set()
    for colour in ("teal", "white"):
        given = image_file(tmp_path, colour, encoded(tmp_path, kind, (70, 31), colour), size=(70, 31), kind=kind)
        wanted = parameters("anisora", image=given.pop("image"))
        shas.add((await finished(hosts["anisora"], request(tmp_path, wanted, **given))).video.sha256)
    assert len(shas) == 2


async def test_an_image_is_made_up_for_random_weights_only(workshop: Workshop, tmp_path: Path) -> None:
    """A task that came past the gateway without the image that its model needs; the host stays as it was."""
    host = workshop.host(slot="cpu-7")
    await host.start()
    entry = CATALOG.models["anisora"]
    await host.load(entry)
    await finished(host, request(tmp_path, parameters("anisora")))
    await host.unload()
    # the same folder, as if it held a converted checkpoint
    await host.load(
        msgspec.structs.replace(entry, checkpoint=msgspec.structs.replace(entry.checkpoint, random_weights=None))
    )
    outcome = await host.generate(request(tmp_path, parameters("anisora"), task_id="without"), ignore)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.fatal) == ("invalid_input", False)
    assert "with an image" in outcome.message
    assert not (tmp_path / "without.mp4").exists()
    given = image_file(tmp_path, "i", encoded(tmp_path, "png", (64, 64)), size=(64, 64))
    wanted = parameters("anisora", image=given.pop("image"))
    await finished(host, request(tmp_path, wanted, task_id="with", **given))


async def test_a_mega_build_makes_the_same_frames_in_every_process(workshop: Workshop, tmp_path: Path) -> None:
    """`WanVACEPipeline`, with and without an image: two children, and another video for another image or seed."""
    tiny = CATALOG.models["phr00t"]
    mega = msgspec.structs.replace(tiny.checkpoint, pipeline="WanVACEPipeline", folder="tiny-mega")
    made = []
    for number in range(2):
        host = workshop.host(slot=f"cpu-{number + 5}")
        await host.start()
        await host.load(msgspec.structs.replace(tiny, checkpoint=mega))
        videos = []
        for seed, image in ((7, None), (7, 1), (7, 2), (8, 1)):
            given: dict[str, Any] = {"image": None}
            if image is not None:
                noise = np.random.default_rng(image).integers(0, 256, (32, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "noise.png")
                given = image_file(tmp_path, "i", (tmp_path / "noise.png").read_bytes(), size=(48, 32))
            wanted = parameters("phr00t", image=given.pop("image"), seed=seed)
            videos.append((await finished(host, request(tmp_path, wanted, **given))).video.sha256)
        made.append(videos)
    assert made[0] == made[1]
    assert len(set(made[0])) == 4


@pytest.mark.parametrize("fault", ["cut short", "other size", "other type", "other content", "too large"])
async def test_a_bad_image_ends_the_task_and_nothing_else(hosts: dict[str, Host], fault: str, tmp_path: Path) -> None:
    content = encoded(tmp_path, "png", (64, 64))
    match fault:
        case "cut short":
            noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "noise.png")
            given = image_file(tmp_path, "i", (tmp_path / "noise.png").read_bytes()[:-4000], size=(64, 64))
        case "other size":
            given = image_file(tmp_path, "i", content, size=(32, 32))
        case "other type":
            given = image_file(tmp_path, "i", content, size=(64, 64), kind="webp")
        case "other content":
            given = image_file(tmp_path, "i", content, size=(64, 64))
            (tmp_path / "i").write_bytes(encoded(tmp_path, "png", (64, 64), "white"))
        case _:
            given = image_file(tmp_path, "i", content, size=(20_000, 20_000))
    host, pid = hosts["anisora"], hosts["anisora"].pid
    wanted = parameters("anisora", image=given.pop("image"))
    outcome = await host.generate(request(tmp_path, wanted, **given), ignore)
    assert isinstance(outcome, Failed)
    assert outcome.code == "invalid_input"
    assert "image" in outcome.message
    assert outcome.memory.rss_bytes > 0
    assert not (tmp_path / "task.mp4").exists()
    assert host.pid == pid
    await finished(host, request(tmp_path, parameters("anisora")))


# Failures that the child survives


async def test_running_out_of_memory_is_named_and_survived(hosts: dict[str, Host], tmp_path: Path) -> None:
    # more than an address space holds, so that it fails at once on any machine
    huge = parameters(width=16 << 20, height=16 << 20)
    outcome = await hosts["phr00t"].generate(request(tmp_path, huge), ignore)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.fatal) == ("out_of_memory", False)
    await finished(hosts["phr00t"], request(tmp_path))


async def test_a_failing_pipeline_is_reported_without_the_prompt(hosts: dict[str, Host], tmp_path: Path) -> None:
    outcome = await hosts["phr00t"].generate(request(tmp_path, parameters(width=41)), ignore)
    assert isinstance(outcome, Failed)
    assert outcome.code == "inference_failed"
    assert "ValueError in pipeline_wan.py" in outcome.message
    assert PROMPT not in outcome.message
    assert outcome.memory.rss_bytes > 0
    await finished(hosts["phr00t"], request(tmp_path))


async def test_a_video_that_cannot_be_written_is_a_storage_failure(hosts: dict[str, Host], tmp_path: Path) -> None:
    (tmp_path / "no-folder").touch()
    outcome = await hosts["phr00t"].generate(request(tmp_path / "no-folder"), ignore)
    assert isinstance(outcome, Failed)
    assert outcome.code == "storage_failed"
    assert str(tmp_path) not in outcome.message


async def test_a_missing_checkpoint_says_where_it_belongs(workshop: Workshop) -> None:
    entry = workshop.entry("phr00t")
    absent = msgspec.structs.replace(entry.checkpoint, random_weights=None, folder="nowhere")
    host = workshop.host()
    await host.start()
    command = r"`warmlane models prepare phr00t --from PATH --to .*/nowhere`"
    with pytest.raises(LoadFailed, match=rf"no diffusers folder at .*nowhere: make it .* {command}") as failure:
        await host.load(msgspec.structs.replace(entry, checkpoint=absent))
    assert failure.value.failure.code == "storage_failed"
    assert host.pid is not None


async def test_the_operators_suffix_follows_the_prompt(
    workshop: Workshop, hosts: dict[str, Host], tmp_path: Path
) -> None:
    suffix = "There is no text in the video."
    entry = workshop.entry("phr00t")
    host = workshop.host(slot="cpu-2")
    await host.start()
    checkpoint = msgspec.structs.replace(entry.checkpoint, prompt_suffix=suffix)
    await host.load(msgspec.structs.replace(entry, checkpoint=checkpoint))
    given = await finished(host, request(tmp_path))
    written = await finished(hosts["phr00t"], request(tmp_path, parameters(prompt=f"{PROMPT} {suffix}")))
    without = await finished(hosts["phr00t"], request(tmp_path))
    assert given.video.sha256 == written.video.sha256 != without.video.sha256


async def test_a_second_pipeline_is_refused(hosts: dict[str, Host]) -> None:
    with pytest.raises(LoadFailed, match="a pipeline is resident"):
        await hosts["phr00t"].load(CATALOG.models["anisora"])


async def test_an_unloaded_host_loads_again(workshop: Workshop, tmp_path: Path) -> None:
    host = workshop.host()
    await host.start()
    pid = host.pid
    assert (await host.unload()).alive == ()  # nothing was there
    for model in (*MODELS, *MODELS):
        loaded = await host.load(CATALOG.models[model])
        note = read_note(lock_path(workshop.lock_dir, "cpu-0"))
        assert note is not None
        assert (loaded.model, note.model) == (model, model)
        await finished(host, request(tmp_path, parameters(model)))
        unloaded = await host.unload()
        assert (unloaded.alive, unloaded.allocated_bytes) == ((), None)
        note = read_note(lock_path(workshop.lock_dir, "cpu-0"))
        assert note is not None
        assert (note.pid, note.model) == (pid, None)
        with pytest.raises(HostLost, match="no model is loaded"):
            await host.generate(request(tmp_path), ignore)
    assert host.pid == pid


# Cancelling


async def test_a_cancel_stops_within_the_step(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    pid = host.pid
    outcome = await host.generate(request(tmp_path), lambda progress: host.cancel(progress.task_id))
    assert isinstance(outcome, Cancelled)
    assert outcome.memory.rss_bytes > 0
    assert files(tmp_path) == []
    assert host.pid == pid


async def test_a_host_works_on_after_a_cancel(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_seconds=0.05)
    seen: list[int] = []

    def cancel_at_two(progress: StepFinished) -> None:
        seen.append(progress.step)
        if progress.step == 2:
            host.cancel("another")  # nobody's task: no effect
            host.cancel(progress.task_id)

    assert isinstance(await host.generate(request(tmp_path), cancel_at_two), Cancelled)
    assert seen in ([0, 1, 2], [0, 1, 2, 3])  # at most the step that was under way
    host.cancel("task")  # it has ended: no effect on the next one of this name
    await finished(host, request(tmp_path))


async def test_a_caller_that_goes_away_takes_the_child_with_it(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    started = asyncio.Event()
    running = asyncio.create_task(host.generate(request(tmp_path), lambda _: started.set()))
    await started.wait()
    pid = host.pid
    assert pid is not None
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: asyncio.to_thread(is_gone, pid))


# Time limits


async def test_a_step_that_overruns_is_cancelled(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_s=3.0)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, TimedOut)
    assert outcome.limit == "step_s"
    assert outcome.memory is not None
    assert host.pid is not None


async def test_an_inference_that_overruns_is_cancelled(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_seconds=2.0, total_s=3.0)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, TimedOut)
    assert outcome.limit == "total_s"
    assert outcome.memory is not None


async def test_a_host_that_hangs_is_killed_and_seen_hanging(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host(step_s=2.5)
    pid = host.pid
    assert pid is not None
    ages: list[float] = []

    async def watch_health() -> None:
        while True:
            ages.append(host.health_age_s)
            await asyncio.sleep(0.05)

    def hang(_progress: StepFinished) -> None:
        os.kill(pid, signal.SIGSTOP)

    watcher = asyncio.create_task(watch_health())
    outcome = await host.generate(request(tmp_path), hang)
    watcher.cancel()
    assert outcome == TimedOut("task", "step_s", 2.5, None)
    assert host.pid is None
    await eventually(lambda: asyncio.to_thread(is_gone, pid))
    assert max(ages) > 2.5  # no answer came while it was stopped

    assert (await host.start()).unfinished is not None
    await host.load(CATALOG.models["phr00t"])


async def test_a_load_that_overruns_is_killed(workshop: Workshop) -> None:
    host = workshop.host()
    await host.start()
    with pytest.raises(LoadTimedOut, match=r"did not load its model within 0\.001 s"):
        await host.load(workshop.entry("anisora", load_s=0.001))
    assert host.pid is None


async def test_pings_are_answered_during_an_inference(hosts: dict[str, Host], tmp_path: Path) -> None:
    host = hosts["anisora"]
    # seconds of work in which the interpreter is asked for its lock
    long = parameters("anisora", width=128, height=128, num_frames=33)
    running = asyncio.create_task(finished(host, request(tmp_path, long)))
    answers, last_s = 0, host.health_age_s
    while not running.done():
        await asyncio.sleep(0.02)
        age_s = host.health_age_s
        answers += age_s < last_s
        last_s = age_s
    await running
    assert answers > 0


# Deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_dead_host_is_an_outcome_and_starts_again(
    workshop: Workshop, tmp_path: Path, number: signal.Signals
) -> None:
    host = await workshop.slow_host()
    first = host.pid
    assert first is not None

    def kill(_progress: StepFinished) -> None:
        os.kill(first, number)

    outcome = await host.generate(request(tmp_path, task_id="lost-task"), kill)
    assert isinstance(outcome, Lost)
    assert outcome.task_id == "lost-task"
    assert host.pid is None
    assert files(tmp_path) == []
    with pytest.raises(HostLost, match="start it first"):
        await host.generate(request(tmp_path), ignore)

    successor = workshop.host()
    ready = await successor.start()
    assert ready.pid == successor.pid != first
    assert ready.unfinished is not None
    assert (ready.unfinished.pid, ready.unfinished.task_id) == (first, "lost-task")
    assert (ready.unfinished.model, ready.unfinished.attempt) == ("phr00t", 1)
    await successor.load(CATALOG.models["phr00t"])
    await finished(successor, request(tmp_path))
    await successor.close()

    assert (await host.start()).unfinished is None


async def test_what_a_killed_encoder_left_is_removed(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    part = tmp_path / "task.mp4.part"

    def kill(_progress: StepFinished) -> None:
        part.write_bytes(b"half a video")
        os.kill(host.pid or 0, signal.SIGKILL)

    assert isinstance(await host.generate(request(tmp_path), kill), Lost)
    assert not part.exists()


async def test_ctrl_c_in_a_terminal_ends_neither_host_nor_fork_server(
    hosts: dict[str, Host], shared: Workshop, tmp_path: Path
) -> None:
    host = hosts["phr00t"]
    assert host.pid is not None
    assert shared.fork_server.pid is not None
    assert os.getpgid(shared.fork_server.pid) != os.getpgid(0)
    os.kill(host.pid, signal.SIGINT)
    os.kill(shared.fork_server.pid, signal.SIGINT)
    await finished(host, request(tmp_path))
    assert not is_gone(shared.fork_server.pid)


PARENT = """
import asyncio, json, os, sys
from pathlib import Path
import msgspec
from contracts.settings import load_settings
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Generate
from ops.telemetry.logs import configure_logging

async def main():
    configure_logging("test", level="error")  # what is printed is read below
    folder = Path(sys.argv[1])
    model = load_settings().catalog("tiny").models["phr00t"]
    host = Host(slot="cpu-0", lock_dir=folder / "locks", models_dir=folder / "models", step_seconds=600)
    await host.start()
    await host.load(model)
    request = msgspec.json.decode(sys.stdin.readline(), type=Generate)
    rss = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1]
    def report(progress):
        print(json.dumps([host.pid, host._fork_server.pid, "torch" in sys.modules, int(rss)]), flush=True)
    await host.generate(request, report)

asyncio.run(main())
"""


async def test_a_killed_worker_leaves_no_process_and_no_lock(workshop: Workshop, tmp_path: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(msgspec.json.encode(request(tmp_path)) + b"\n")
    host_pid, server_pid, has_torch, rss_kb = json.loads(await worker.stdout.readline())
    assert not has_torch
    assert rss_kb < 60 * 1024

    worker.kill()
    try:
        await eventually(lambda: asyncio.to_thread(lambda: is_gone(host_pid) and is_gone(server_pid)))
    finally:  # where that failed, nothing else would end them
        for pid in (host_pid, server_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _, errors = await worker.communicate()
    assert errors == b""  # no progress bars, no warnings, no prompt

    workshop.lock_dir, lock_dir = tmp_path / "locks", workshop.lock_dir
    try:
        ready = await workshop.host().start()
    finally:
        workshop.lock_dir = lock_dir
    assert ready.unfinished is not None
    assert (ready.unfinished.pid, ready.unfinished.task_id) == (host_pid, "task")


# The slot


async def test_a_slot_serves_one_host_at_a_time(workshop: Workshop) -> None:
    holder, rival = workshop.host(), workshop.host()
    await holder.start()
    with pytest.raises(SlotTaken, match="cpu-0") as refusal:
        await rival.start(term=99)  # a leader of whatever term puts no lane aside
    assert refusal.value.holder is not None
    assert refusal.value.holder.pid == holder.pid
    assert rival.pid is None
    await holder.load(CATALOG.models["phr00t"])

    await holder.close()
    assert holder.pid is None
    await rival.start()


async def test_closing_leaves_no_process(workshop: Workshop, tmp_path: Path) -> None:
    host = await workshop.slow_host()
    host._owns_fork_server, host._fork_server = True, ForkServer()  # not the shared one
    started = asyncio.Event()
    running = asyncio.create_task(host.generate(request(tmp_path), lambda _: started.set()))
    await started.wait()
    pid = host.pid
    assert pid is not None
    await host.close()
    assert isinstance(await running, Lost)
    assert is_gone(pid)
    await host.close()


# Children that misbehave

HASTY = Workshop.entry("phr00t", step_s=0.3, load_s=0.3)


@pytest_asyncio.fixture(loop_scope="module")
async def rogue(tmp_path: Path) -> AsyncIterator[Callable[[str], Host]]:
    """Makes hosts whose children misbehave as their slot's name says."""
    server = ForkServer([sys.executable, "-m", "tests.e2e.rogue_fork_server"])
    hosts: list[Host] = []

    def make(slot: str) -> Host:
        hosts.append(Host(slot=slot, lock_dir=tmp_path, models_dir=tmp_path, fork_server=server))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.close()
    await server.close()


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ("cpu-garbage", "broke the protocol"),
        ("cpu-endless", "claims 4294967295 bytes"),
        ("cpu-truncated", "the pipeline host died"),
    ],
)
async def test_nonsense_on_the_pipe_ends_the_host(
    rogue: Callable[[str], Host], slot: str, reason: str, tmp_path: Path
) -> None:
    host = rogue(slot)
    pid = (await host.start()).pid
    await host.load(HASTY)
    outcome = await host.generate(request(tmp_path), ignore)
    assert isinstance(outcome, Lost)
    assert reason in outcome.reason
    assert is_gone(pid)
    pid = (await host.start()).pid
    await host.load(HASTY)
    with pytest.raises(HostLost, match=reason):
        await host.unload()
    assert is_gone(pid)


async def test_a_host_that_says_nothing_is_killed(rogue: Callable[[str], Host], tmp_path: Path) -> None:
    host = rogue("cpu-silent")
    pid = (await host.start()).pid
    await host.load(HASTY)
    assert await host.generate(request(tmp_path), ignore) == TimedOut("task", "step_s", 0.3, None)
    assert is_gone(pid)
    pid = (await host.start()).pid
    await host.load(HASTY)
    with pytest.raises(LoadTimedOut, match="did not load its model"):
        await host.load(HASTY)
    assert is_gone(pid)


async def test_closing_a_deaf_host_kills_it(rogue: Callable[[str], Host]) -> None:
    host = rogue("cpu-silent")
    pid = (await host.start()).pid
    await host.close()
    assert is_gone(pid)


async def test_a_fork_server_that_dies_is_reported(rogue: Callable[[str], Host]) -> None:
    with pytest.raises(HostLost, match="the fork server could not start a pipeline host"):
        await rogue("cpu-refused").start()


async def test_a_dead_fork_server_is_replaced(rogue: Callable[[str], Host]) -> None:
    host = rogue("cpu-silent")
    first = (await host.start()).pid
    server = host._fork_server
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, server.pid is None))
    assert host.pid == first  # the host itself lives on
    assert (await host.start()).pid != first
    assert is_gone(first)
