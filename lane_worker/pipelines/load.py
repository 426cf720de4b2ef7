"""From a diffusers folder to a pipeline on its device, and from a pipeline and parameters to frames."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import diffusers
import msgspec
import numpy as np
import torch
from diffusers.hooks import apply_group_offloading
from PIL import Image

from contracts.checkpoints import Checkpoint, GroupOffload, Scheduler
from contracts.fit import KEPT_ON_CARD
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.inputs import BadInput, gradient
from lane_worker.pipelines.sigmas import BetaSigmasEuler
from lane_worker.pipelines.tiny import ensure_tiny_pipeline
from lane_worker.pipelines.video import Frames
from ops.machine.weights import MODEL_INDEX, missing_folder

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
TRANSFORMERS: Final = ("transformer", "transformer_2")
# Options of diffusers' schedulers that place the steps otherwise than the settings say, or draw noise beside the seed.
OWN_SIGMAS: Final = (
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_dynamic_shifting",
    "stochastic_sampling",
)


class CheckpointUnusable(Exception):
    """The checkpoint's folder is missing or holds something else. The text says what to do."""


class LoadTimes:
    """What the parts of a load took, in seconds, as in `SwapReceipt`; None until a load has come that far."""

    read_s: float | None = None
    copy_s: float | None = None


def load_pipeline(
    checkpoint: Checkpoint, models_dir: Path, *, device: str, model: str = "MODEL", times: LoadTimes | None = None
) -> Any:
    """The pipeline of *checkpoint*, ready to be called. Nothing is downloaded; tiny weights are made if absent.

    *model* is the name that the settings give it; *times* is filled in. Raises CheckpointUnusable, OSError, and
    whatever diffusers and torch raise.
    """
    times = times or LoadTimes()
    folder = models_dir / checkpoint.folder
    if checkpoint.random_weights is not None:
        ensure_tiny_pipeline(checkpoint, checkpoint.random_weights, folder)
    elif not (folder / MODEL_INDEX).is_file():
        raise CheckpointUnusable(missing_folder(model, folder))
    begun_s = time.perf_counter()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        local_files_only=True,
        # the VAE of Wan loses detail below float32, and is small
        dtype={"default": DTYPES[checkpoint.dtype], "vae": torch.float32},
        device_map=device if checkpoint.device_map else None,
    )
    times.read_s = round(time.perf_counter() - begun_s, 4)
    if type(pipeline).__name__ != checkpoint.pipeline:
        raise CheckpointUnusable(f"{folder} holds a {type(pipeline).__name__}; expected a {checkpoint.pipeline}")
    pipeline.scheduler = _scheduler(checkpoint.scheduler, pipeline.scheduler.config)
    if checkpoint.boundary_ratio is not None:
        pipeline.register_to_config(boundary_ratio=checkpoint.boundary_ratio)
    _check_experts(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    for transformer in _transformers(pipeline):
        _prepare(transformer, checkpoint)
    if checkpoint.vae_tiling:
        pipeline.vae.enable_tiling()
    copying_s = time.perf_counter()
    _place(pipeline, checkpoint, torch.device(device))
    if device != "cpu":
        torch.cuda.synchronize()
    if device == "cpu" or not checkpoint.device_map:  # else it was copied while it was read
        times.copy_s = 0.0 if device == "cpu" else round(time.perf_counter() - copying_s, 4)
    return pipeline


def with_suffix(parameters: GenerationParameters, suffix: str) -> GenerationParameters:
    """*parameters* as the pipeline gets them: the prompt with the *suffix* that the operator adds to each."""
    return msgspec.structs.replace(parameters, prompt=f"{parameters.prompt} {suffix}") if suffix else parameters


def _transformers(pipeline: Any) -> list[Any]:
    return [each for name in TRANSFORMERS if (each := getattr(pipeline, name, None)) is not None]


def _check_experts(pipeline: Any, folder: Path) -> None:
    """Two transformers need a boundary and one allows none: else a step has no expert, or one expert is never used."""
    experts, boundary_ratio = len(_transformers(pipeline)), pipeline.config.get("boundary_ratio")
    if (experts == 2) != (boundary_ratio is not None):
        raise CheckpointUnusable(
            f"{folder} holds {experts} transformers and the boundary is {boundary_ratio}: set "
            "checkpoint.boundary_ratio where there are two, and leave it out where there is one"
        )


def _prepare(transformer: Any, checkpoint: Checkpoint) -> None:
    # Set always: a backend applies to the whole process, and so to the next model's transformers too.
    try:
        transformer.set_attention_backend(checkpoint.attention_backend)
    except (RuntimeError, ValueError) as error:
        raise CheckpointUnusable(f"checkpoint.attention_backend {checkpoint.attention_backend}: {error}") from error
    if checkpoint.layerwise_casting is not None:
        transformer.enable_layerwise_casting(
            storage_dtype=DTYPES[checkpoint.layerwise_casting], compute_dtype=DTYPES[checkpoint.dtype]
        )


def _place(pipeline: Any, checkpoint: Checkpoint, device: torch.device) -> None:
    """Hooks of offloading come after those of casting: a layer is fetched first and then cast."""
    if checkpoint.offload == "none":
        pipeline.to(device)  # with a device map it is there already
    elif checkpoint.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        _offload_groups(pipeline, checkpoint.group_offload or GroupOffload(), device)


def _offload_groups(pipeline: Any, group: GroupOffload, device: torch.device) -> None:
    # There are no streams on a CPU.
    streams = {
        "use_stream": True,
        "record_stream": group.record_stream,
        "low_cpu_mem_usage": not group.pinned,
    }
    for name, component in pipeline.components.items():
        if name == KEPT_ON_CARD:
            # Pipelines call its `encode` and `decode`, which bypass the hook that learns the order of its layers. With
            # a stream, diffusers would note every call of every layer as long as the pipeline lives. It is also small.
            component.to(device)
        elif isinstance(component, torch.nn.Module):
            blocks = group.level == "block" and name in TRANSFORMERS
            apply_group_offloading(
                component,
                onload_device=device,
                offload_type="block_level" if blocks else "leaf_level",
                num_blocks_per_group=group.blocks if blocks else None,
                **(streams if group.stream and device.type != "cpu" else {}),
            )


def run_pipeline(
    pipeline: Any, parameters: GenerationParameters, image: Image.Image | None, on_step: Callable[[int], None]
) -> Frames:
    """One inference. *on_step* is called with the number of finished steps; what it raises ends the inference.

    *image* is the first frame, in the size of the video. An image-to-video pipeline without one gets a gradient made
    from the seed; a caller that wants none asks `needs_image` first. The same parameters and image give the same frames
    in every process on the same kind of device. Raises BadInput for an image that the pipeline cannot take.
    """

    def after_step(_pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(index + 1)
        return tensors

    try:
        return _frames(pipeline, parameters, after_step, _conditions(pipeline, parameters, image))
    finally:
        _drop_state(pipeline)


def needs_image(pipeline: Any) -> bool:
    """Whether *pipeline* turns an image into a video, and does nothing without one."""
    return "image" in inspect.signature(pipeline.__call__).parameters


def _conditions(pipeline: Any, parameters: GenerationParameters, image: Image.Image | None) -> dict[str, Any]:
    """What *pipeline* is given for *image*, by the form of its class."""
    if needs_image(pipeline):
        return {"image": image or gradient(parameters.seed, parameters.width, parameters.height)}
    is_vace = {"video", "mask"} <= inspect.signature(pipeline.__call__).parameters.keys()
    if is_vace and image is None:
        # "T2V=Strength 0, I2V=Strength 1" in the workflow of Phr00t's MEGA builds (ADR 0028): text alone counts
        return {"conditioning_scale": 0.0}
    if image is None:
        return {}
    if is_vace:
        return _first_frame(image, parameters.num_frames)
    raise BadInput("this model takes text only; send the request again without its image")


def _first_frame(image: Image.Image, num_frames: int) -> dict[str, torch.Tensor]:
    """*image* as VACE takes a first frame: a video of it followed by grey frames, and a mask of the frames to be made.

    Values are 0 to 1, which diffusers maps to -1 to 1. So the grey is the authors' 127.5 and 0 to the VAE, like every
    frame of a request without an image. A list of 8-bit pictures could not hold that value (ADR 0022).
    """
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    video = torch.full((1, num_frames, *pixels.shape), 0.5)
    video[0, 0] = pixels
    mask = torch.ones(1, num_frames, 1, image.height, image.width)
    mask[0, 0] = 0
    return {"video": video, "mask": mask}


def _frames(
    pipeline: Any, parameters: GenerationParameters, after_step: Callable[..., Any], conditions: dict[str, Any]
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
        **conditions,
    ).frames[0]
    # to bytes on the video's device: float frames of a 1280x720 video take 0.9 GB
    pixels = (video * 255).round_().to(torch.uint8).permute(0, 2, 3, 1)
    frames: Frames = pixels.contiguous().cpu().numpy()
    return frames


def _drop_state(pipeline: Any) -> None:
    """Drops what a run leaves behind in the pipeline: gigabytes, after a run that was cut short."""
    pipeline.maybe_free_model_hooks()
    pipeline.vae.clear_cache()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)


def _scheduler(wanted: Scheduler, config: Any) -> Any:
    kind = BetaSigmasEuler if wanted.sigmas == "beta" else getattr(diffusers, wanted.kind)
    known = inspect.signature(kind).parameters
    config = {name: value for name, value in config.items() if name in known}  # diffusers would warn of the others
    # without these, the scheduler would take the flow for noise, or keep the sigmas of the folder's own scheduler
    flow: dict[str, Any] = {name: False for name in OWN_SIGMAS if name in known}
    if "flow_shift" not in known:  # a scheduler that is made for flows calls it shift
        return kind.from_config(config, shift=wanted.flow_shift, **flow)
    flow |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return kind.from_config(config, flow_shift=wanted.flow_shift, **flow)
