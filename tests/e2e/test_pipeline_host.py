"""A pipeline host makes videos and survives the failures that it reports: real children, tiny pipelines (design §7)."""

import asyncio
import hashlib
import json
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest

from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, StepFinished
from lane_worker.forking.outcome import HostLost, LoadFailed
from lane_worker.forking.slot import lock_path, read_note
from tests.kit.workshop import (
    CATALOG,
    MODELS,
    PROMPT,
    Workshop,
    files,
    finished,
    ignore,
    parameters,
    request,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("model", MODELS)
async def test_a_video_has_the_size_length_and_frame_rate_of_its_request(
    hosts: dict[str, Host], model: str, tmp_path: Path
) -> None:
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
    assert content.index(b"moov") < content.index(b"mdat")  # a player can start before the whole file has arrived
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in decoded] == [(64, 96, 3)] * 9
    assert np.stack(decoded).std() > 1  # the frames are not blank

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
    hosts: dict[str, Host], module_workshop: Workshop, model: str, tmp_path: Path
) -> None:
    # imported here: the import takes seconds, and only this test needs torch in its own process
    import diffusers
    import torch

    from lane_worker.pipelines.inputs import gradient
    from lane_worker.pipelines.sigmas import BetaSigmasEuler
    from lane_worker.pipelines.video import write_video

    wanted = parameters(model)
    outcome = await finished(hosts[model], request(tmp_path, wanted))

    checkpoint = CATALOG.models[model].checkpoint
    pipeline = diffusers.DiffusionPipeline.from_pretrained(module_workshop.models_dir / checkpoint.folder)
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


async def test_both_experts_of_anisora_take_part(hosts: dict[str, Host], module_workshop: Workshop) -> None:
    folder = module_workshop.models_dir / CATALOG.models["anisora"].checkpoint.folder
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


# Failures that the child survives


async def test_a_host_reports_and_survives_running_out_of_memory(hosts: dict[str, Host], tmp_path: Path) -> None:
    # larger than an address space, so that the allocation fails at once on any machine
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


async def test_a_missing_checkpoint_is_refused_with_its_path_and_the_command(workshop: Workshop) -> None:
    entry = workshop.entry("phr00t")
    absent = msgspec.structs.replace(entry.checkpoint, random_weights=None, folder="nowhere")
    host = workshop.host()
    await host.start()
    command = r"`warmlane models prepare phr00t --from PATH --to .*/nowhere`"
    with pytest.raises(LoadFailed, match=rf"no diffusers folder at .*nowhere: make it .* {command}") as failure:
        await host.load(msgspec.structs.replace(entry, checkpoint=absent))
    assert failure.value.failure.code == "storage_failed"
    assert host.pid is not None


async def test_a_second_pipeline_is_refused(hosts: dict[str, Host]) -> None:
    with pytest.raises(LoadFailed, match="a pipeline is resident"):
        await hosts["phr00t"].load(CATALOG.models["anisora"])


async def test_an_unloaded_host_loads_again(workshop: Workshop, tmp_path: Path) -> None:
    host = workshop.host()
    await host.start()
    pid = host.pid
    assert (await host.unload()).alive == ()  # no pipeline was loaded
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
