"""From a diffusers folder to a pipeline on its device, and from a pipeline and parameters to frames."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from PIL import Image

from contracts.settings import Checkpoint, Scheduler
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.inputs import gradient
from lane_worker.pipelines.tiny import ensure_tiny_pipeline
from lane_worker.pipelines.video import Frames

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointUnusable(Exception):
    """The checkpoint's folder is missing or holds something else. The text says what to do."""


class LoadTimes:
    """What the parts of a load took, in seconds, as in `SwapReceipt`; None until a load has come that far."""

    read_s: float | None = None
    copy_s: float | None = None


def load_pipeline(checkpoint: Checkpoint, models_dir: Path, *, device: str, times: LoadTimes | None = None) -> Any:
    """The pipeline of *checkpoint*, ready to be called. Nothing is downloaded; tiny weights are made if absent.

    *times* is filled in. Raises CheckpointUnusable, OSError, and whatever diffusers and torch raise.
    """
    times = times or LoadTimes()
    folder = models_dir / checkpoint.folder
    if checkpoint.random_weights is not None:
        ensure_tiny_pipeline(checkpoint, checkpoint.random_weights, folder)
    elif not (folder / "model_index.json").is_file():
        raise CheckpointUnusable(f"no diffusers folder at {folder}: put the converted checkpoint of this model there")
    begun_s = time.perf_counter()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        local_files_only=True,
        # the VAE of Wan loses detail below float32, and is small
        dtype={"default": DTYPES[checkpoint.dtype], "vae": torch.float32},
    )
    times.read_s = round(time.perf_counter() - begun_s, 4)
    if type(pipeline).__name__ != checkpoint.pipeline:
        raise CheckpointUnusable(f"{folder} holds a {type(pipeline).__name__}; expected is a {checkpoint.pipeline}")
    pipeline.scheduler = _scheduler(checkpoint.scheduler, pipeline.scheduler.config)
    if checkpoint.boundary_ratio is not None:
        pipeline.register_to_config(boundary_ratio=checkpoint.boundary_ratio)
    pipeline.set_progress_bar_config(disable=True)
    copying_s = time.perf_counter()
    if device == "cpu" or checkpoint.offload == "none":
        pipeline.to(device)
    elif checkpoint.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=True)
    if device != "cpu":
        torch.cuda.synchronize()
    times.copy_s = 0.0 if device == "cpu" else round(time.perf_counter() - copying_s, 4)
    return pipeline


def run_pipeline(
    pipeline: Any, parameters: GenerationParameters, image: Image.Image | None, on_step: Callable[[int], None]
) -> Frames:
    """One inference. *on_step* is called with the number of finished steps; what it raises ends the inference.

    An image-to-video pipeline without *image* gets a gradient made from the seed. The same parameters give the
    same frames in every process on the same kind of device.
    """

    def after_step(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(index + 1)
        return tensors

    arguments: dict[str, Any] = {}
    if "image" in inspect.signature(pipeline.__call__).parameters:
        arguments["image"] = image or gradient(parameters.seed, parameters.width, parameters.height)
    try:
        return _frames(pipeline, parameters, after_step, arguments)
    finally:
        _drop_state(pipeline)


def _frames(
    pipeline: Any, parameters: GenerationParameters, after_step: Callable[..., Any], image: dict[str, Any]
) -> Frames:
    video = pipeline(
        prompt=parameters.prompt,
        negative_prompt=parameters.negative_prompt or None,
        width=parameters.width,
        height=parameters.height,
        num_frames=parameters.num_frames,
        num_inference_steps=parameters.steps,
        guidance_scale=parameters.cfg,
        generator=torch.Generator("cpu").manual_seed(parameters.seed),
        output_type="pt",
        callback_on_step_end=after_step,
        **image,
    ).frames[0]
    # to bytes where the video is: float frames of a 1280x720 video take 0.9 GB
    pixels = (video * 255).round_().to(torch.uint8).permute(0, 2, 3, 1)
    frames: Frames = pixels.contiguous().cpu().numpy()
    return frames


def _drop_state(pipeline: Any) -> None:
    """Let go of what a run leaves behind in the pipeline; after one that was cut short this can be gigabytes."""
    pipeline.maybe_free_model_hooks()
    pipeline.vae.clear_cache()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)


def _scheduler(wanted: Scheduler, config: Any) -> Any:
    kind = getattr(diffusers, wanted.kind, None)
    if kind is None:
        raise CheckpointUnusable(f"diffusers has no scheduler {wanted.kind}: correct checkpoint.scheduler.kind")
    # the flow-matching schedulers call it shift, the others flow_shift
    name = "flow_shift" if "flow_shift" in inspect.signature(kind).parameters else "shift"
    return kind.from_config(config, **{name: wanted.flow_shift})
