"""`warmlane models measure`: what an inference holds beside its weights, counted on the real classes without weights.

The classes are those that the pipeline host runs, in their published size, on the meta device: every shape is real and
no tensor has memory. What is counted and what is not: `lane_worker/pipelines/live_bytes.py` and ADR 0025.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import diffusers
import torch

from contracts.checkpoints import Checkpoint
from contracts.fit import Components, StoredTensor
from contracts.geometry import Size
from contracts.measured import Measured
from lane_worker.checkpoints.layouts import Component, Layout
from lane_worker.pipelines.live_bytes import FusedAttention, LiveBytes, RepeatedCoder
from lane_worker.pipelines.load import DTYPES
from lane_worker.pipelines.preparing.parameters import parameters_of

# How many tokens the pipelines of Wan pad a prompt to.
TEXT_TOKENS: Final = 512
# How many copies of the video `WanVACEPipeline.prepare_video_latents` holds beside the one that it encodes: the frames,
# their mask in three channels, and, of the part that stays and the part that is made, the one that it does not encode.
VACE_COPIES: Final = 3


def components_of(layout: Layout) -> Components:
    """The tensors of a folder of *layout*, as `weights_of` would read them from one."""
    return {
        component.name: tuple(
            StoredTensor(parameter, "float32" if component.dtype == "F32" else "bfloat16", math.prod(shape))
            for parameter, shape in parameters_of(component).items()
        )
        for component in layout.components
    }


def measure(layout: Layout, checkpoint: Checkpoint, model: str, sizes: Sequence[Size]) -> Measured:
    """The most that each part of *layout* holds for any of *sizes*, with the options of *checkpoint*."""
    vae_component = next(each for each in layout.components if each.name == "vae")
    with _without_gradients():
        vae = _vae(vae_component, checkpoint)
        copies = VACE_COPIES if layout.pipeline == "WanVACEPipeline" else 0
        return Measured(
            model=model,
            pipeline=layout.pipeline,
            sizes=tuple(sizes),
            vae_tiling=checkpoint.vae_tiling,
            dtype=checkpoint.dtype,
            decode_bytes=max(_decode_bytes(vae, size) for size in sizes),
            encode_bytes=max(_encode_bytes(vae, size, copies) for size in sizes),
            transformer_bytes=transformer_bytes(layout.transformer, checkpoint, sizes),
        )


def transformer_bytes(component: Component, checkpoint: Checkpoint, sizes: Sequence[Size]) -> int:
    """The most that one pass of the transformer *component* holds for any of *sizes*."""
    with _without_gradients():
        transformer = _transformer(component, checkpoint)
        return max(_pass_bytes(transformer, size, DTYPES[checkpoint.dtype]) for size in sizes)


@contextlib.contextmanager
def _without_gradients() -> Iterator[None]:
    # not inference_mode: its tensors do not show their storages
    with torch.no_grad(), torch.device("meta"):
        yield


def _vae(component: Component, checkpoint: Checkpoint) -> Any:
    vae = diffusers.AutoencoderKLWan.from_config(component.config).requires_grad_(False)
    if checkpoint.vae_tiling:
        vae.enable_tiling()
    return vae


def _transformer(component: Component, checkpoint: Checkpoint) -> Any:
    """As `from_pretrained` has it: of the checkpoint's dtype, but for the modules that diffusers keeps in float32."""
    kind = getattr(diffusers, component.kind)
    transformer = kind.from_config(component.config).requires_grad_(False)
    kept = set(kind._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(DTYPES[checkpoint.dtype])
    return transformer


def _latents(size: Size, channels: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(1, channels, (size.num_frames - 1) // 4 + 1, size.height // 8, size.width // 8, dtype=dtype)


def _decode_bytes(vae: Any, size: Size) -> int:
    with FusedAttention(), LiveBytes(vae) as count, _once_for_each_shape(vae, "decoder", count):
        vae.decode(_latents(size, vae.config.z_dim, torch.float32))
    return int(count.peak_bytes)


def _encode_bytes(vae: Any, size: Size, copies: int) -> int:
    with FusedAttention(), LiveBytes(vae) as count, _once_for_each_shape(vae, "encoder", count):
        held = [torch.empty(1, 3, size.num_frames, size.height, size.width) for _ in range(1 + copies)]
        vae.encode(held[0])
    return int(count.peak_bytes)


@contextlib.contextmanager
def _once_for_each_shape(vae: Any, name: str, count: LiveBytes) -> Iterator[None]:
    """Runs the coder's forward and the two blends of tiles once per shape: they do the same thousands of times."""
    coder = getattr(vae, name)
    forward, blend_v, blend_h = coder.forward, vae.blend_v, vae.blend_h
    coder.forward = RepeatedCoder(forward, count)
    vae.blend_v, vae.blend_h = _Blend(blend_v), _Blend(blend_h)
    try:
        yield
    finally:
        coder.forward, vae.blend_v, vae.blend_h = forward, blend_v, blend_h


class _Blend:
    """Blends two tiles in place, line by line. What it holds meanwhile is two lines, which are counted once."""

    def __init__(self, blend: Any) -> None:
        self._blend = blend
        self._seen: set[Any] = set()

    def __call__(self, above: torch.Tensor, tile: torch.Tensor, extent: int) -> torch.Tensor:
        key = (above.shape, tile.shape)
        if key not in self._seen:
            self._seen.add(key)
            self._blend(above, tile, min(extent, 1))
        return tile


def _pass_bytes(transformer: Any, size: Size, dtype: torch.dtype) -> int:
    config = transformer.config
    with FusedAttention(), LiveBytes(transformer) as count:
        more = {}
        if "vace_in_channels" in config:
            more["control_hidden_states"] = _latents(size, config.vace_in_channels, dtype)
        transformer(
            hidden_states=_latents(size, config.in_channels, dtype),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, TEXT_TOKENS, config.text_dim, dtype=dtype),
            return_dict=False,
            **more,
        )
    return int(count.peak_bytes)
