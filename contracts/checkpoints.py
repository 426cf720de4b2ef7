"""A checkpoint of a model and how its pipeline is loaded, and the mistakes in such settings. Pure."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from contracts.fields import Presence
from contracts.strict import Strict

PROMPT_SUFFIX_MAX_CHARS: Final = 500
# The presences of an image that a pipeline class of diffusers can serve. A class that is not listed is not checked.
PRESENCES: Final[Mapping[str, tuple[Presence, ...]]] = {
    "WanPipeline": ("unsupported",),
    "WanImageToVideoPipeline": ("required",),
    "WanVACEPipeline": ("required", "optional", "unsupported"),
}

# The schedulers of diffusers that take a flow shift, predict a flow as Wan does, and add no noise of their own.
# SASolver and FlowMatchLCM draw noise past the seed, so that the same request would give a different video each time.
SchedulerKind = Literal[
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
]
# The only scheduler that can place its steps by `"sigmas": "beta"`.
BETA_KIND: Final = "FlowMatchEulerDiscreteScheduler"

# The attention backends of diffusers that run on a CUDA card without downloading code (`*_hub` does).
AttentionBackend = Literal[
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
    "flex",
    "flash",
    "flash_varlen",
    "_flash_3",
    "_flash_varlen_3",
    "sage",
    "sage_varlen",
    "_sage_qk_int8_pv_fp8_cuda",
    "_sage_qk_int8_pv_fp8_cuda_sm90",
    "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton",
    "xformers",
]


class Scheduler(Strict, frozen=True):
    """The diffusers scheduler class of a checkpoint and its flow shift.

    *sigmas* places its steps before the shift: `even` as in diffusers, `beta` as in ComfyUI's scheduler of that name
    (ADR 0028).
    """

    kind: SchedulerKind
    flow_shift: float
    sigmas: Literal["even", "beta"] = "even"


class RandomWeights(Strict, frozen=True):
    """Recipe of a tiny random-weight pipeline: seed, and 1 or 2 transformers (Wan 2.2 has two experts)."""

    seed: int
    experts: Literal[1, 2] = 1


class GroupOffload(Strict, frozen=True):
    """How `offload: group` moves the weights of the transformers and the text encoder to the card and back.

    *level* `leaf` moves one layer at a time. `block` moves *blocks* blocks of a transformer at a time, and one layer at
    a time of everything else. With *stream*, the next group is copied while one computes. *pinned* then keeps all moved
    weights in pinned host memory; without it, only one group at a time is pinned. *record_stream* saves a
    synchronisation for each group, and holds memory a little longer.
    """

    level: Literal["leaf", "block"] = "leaf"
    blocks: int = 1
    stream: bool = True
    record_stream: bool = False
    pinned: bool = True


class Checkpoint(Strict, frozen=True):
    """The diffusers folder below the models folder that the pipeline host loads, and how to load it
    (docs/models/checkpoint-options.md).

    *expected_bytes* is the size of all weights as loaded, used while there is no folder to count them in.
    *activation_bytes* is what an inference needs beside the weights. *layerwise_casting* is the type in which the
    transformers' layers are kept between two uses. *prompt_suffix* is added to each prompt, after a blank; no client
    sees it. With *device_map* and `offload: none`, each tensor goes to the card as soon as it is read, and not all of
    them after the last one.
    """

    pipeline: str
    folder: str
    dtype: Literal["float32", "bfloat16", "float16"]
    scheduler: Scheduler
    offload: Literal["none", "model", "group"] = "none"
    group_offload: GroupOffload | None = None
    device_map: bool = False
    layerwise_casting: Literal["float8_e4m3fn"] | None = None
    vae_tiling: bool = False
    attention_backend: AttentionBackend = "native"
    prompt_suffix: str = ""
    expected_bytes: int = 0
    activation_bytes: int = 0
    boundary_ratio: float | None = None
    random_weights: RandomWeights | None = None


def checkpoint_mistakes(place: str, checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong with *checkpoint*, which stands at *place* of the settings file."""
    folder, suffix, group = checkpoint.folder, checkpoint.prompt_suffix, checkpoint.group_offload
    if folder != Path(folder).name or folder in {"", ".", ".."}:
        yield f"{place}.folder: one folder name without a slash, got {folder!r}"
    if not 0 < checkpoint.scheduler.flow_shift < float("inf"):
        yield f"{place}.scheduler.flow_shift: more than 0"
    if checkpoint.scheduler.sigmas == "beta" and checkpoint.scheduler.kind != BETA_KIND:
        yield f"{place}.scheduler.sigmas: beta only with {BETA_KIND}"
    if checkpoint.boundary_ratio is not None and not 0 < checkpoint.boundary_ratio < 1:
        yield f"{place}.boundary_ratio: between 0 and 1, got {checkpoint.boundary_ratio:g}"
    for name in ("expected_bytes", "activation_bytes"):
        if getattr(checkpoint, name) < 0:
            yield f"{place}.{name}: 0 or more"
    if len(suffix) > PROMPT_SUFFIX_MAX_CHARS or suffix != suffix.strip():
        yield f"{place}.prompt_suffix: at most {PROMPT_SUFFIX_MAX_CHARS} characters, without blanks around them"
    if checkpoint.device_map and (checkpoint.offload != "none" or checkpoint.layerwise_casting is not None):
        # the host casts the weights: with a device map the card would hold all of them uncast
        yield f'{place}.device_map: only with "offload": "none", and without layerwise_casting'
    if group is None:
        return
    if checkpoint.offload != "group":
        yield f'{place}.group_offload: only with "offload": "group"'
    if group.blocks < 1:
        yield f"{place}.group_offload.blocks: at least 1"
    if group.blocks > 1 and (group.level == "leaf" or group.stream):
        yield f"{place}.group_offload.blocks: 1, unless level is block and stream is off"
    if group.record_stream and not group.stream:
        yield f"{place}.group_offload.record_stream: only with stream"


def presence_mistakes(place: str, presence: Presence, checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong if the pipeline of *checkpoint* cannot serve that *presence* of an image.

    The gateway would accept requests that cannot run, or that need an image that no client sent.
    """
    served = PRESENCES.get(checkpoint.pipeline)
    if served is None or presence in served:
        return
    if "unsupported" not in served and checkpoint.random_weights is not None:
        return  # with random weights a lane makes the image itself: no such picture is worth looking at (ADR 0022)
    yield f"{place}: {' or '.join(served)} with checkpoint.pipeline {checkpoint.pipeline}, got {presence}"
