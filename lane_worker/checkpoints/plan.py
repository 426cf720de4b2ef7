"""Turns the tensors that were found into the shards to write, or refuses them. Pure: touches no file."""

import json
import math
from collections.abc import Container, Iterable, Mapping
from typing import Final, NoReturn

import msgspec
from msgspec import Struct

from lane_worker.checkpoints.found import QUANTIZED_LAYER, CheckpointRefused, Shape, Tensor, some
from lane_worker.checkpoints.keys import keys_beside
from lane_worker.checkpoints.layouts import Component, Layout

# A shard is held in memory while it is written: this bounds the memory, and the work that an interruption loses.
SHARD_BYTES: Final = 2_500_000_000
WIDTH_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# SCALES: how the key of a weight's scale ends, in ComfyUI's older and newer convention. BESIDE: the same for keys that
# are not needed, scales of activations and the note on how a weight is packed.
SCALES: Final = (".scale_weight", ".weight_scale")
BESIDE: Final = (".scale_input", ".input_scale", QUANTIZED_LAYER)
MARKER: Final = "scaled_fp8"
# Packed weights that are a number times a scale. Others (int8 in blocks, fp4, rotated) would need other rules.
FP8: Final = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
PATCH: Final = "patch_embedding.weight"
CLIP: Final = "img_emb.proj.1.weight"
VACE_PATCH: Final = "vace_patch_embedding.weight"
# Keys that only transformers of other models have. Naming that model helps more than a list of unexpected keys.
MARKS: Final = {
    CLIP: "an image-to-video transformer of Wan 2.1 (it has a CLIP embedder)",
    "motion_encoder.dec.direction.weight": "a transformer of Wan Animate",
    "casual_audio_encoder.weights": "a transformer of Wan S2V",
    VACE_PATCH: "a VACE transformer (MEGA build)",
}
# (width, input channels) of a transformer
BASES: Final = {
    (5120, 16): "a 14B text-to-video transformer",
    (5120, 36): "a 14B image-to-video transformer of Wan 2.2",
    (3072, 48): "the transformer of Wan 2.2 TI2V-5B",
    (1536, 16): "the 1.3B text-to-video transformer of Wan 2.1",
}


class Move(Struct, frozen=True):
    """One tensor that becomes *parameter*, multiplied by *scale* where there is one, written as *dtype*."""

    tensor: Tensor
    parameter: str
    dtype: str
    scale: Tensor | None = None

    @property
    def size_bytes(self) -> int:
        return math.prod(self.tensor.shape) * WIDTH_BYTES[self.dtype]


class Shard(Struct, frozen=True):
    """One file to write, at *path* below the folder."""

    path: str
    moves: tuple[Move, ...]

    @property
    def size_bytes(self) -> int:
        return sum(move.size_bytes for move in self.moves)


def split_all_in_one(
    layout: Layout, tensors: Mapping[str, Tensor], where: str, *, lent: Container[str] = ()
) -> dict[str, dict[str, Tensor]]:
    """The tensors of an all-in-one file, by component and by the name after its prefix.

    Raises CheckpointRefused where a component that is not *lent* is missing altogether, or a key belongs to none.
    """
    parts: dict[str, dict[str, Tensor]] = {component.name: {} for component in layout.components}
    strays = []
    for key, tensor in tensors.items():
        if key in keys_beside():
            continue
        owner = next((each for each in layout.components if key.startswith(each.source)), None)
        if owner is None:
            strays.append(key)
        else:
            parts[owner.name][key.removeprefix(owner.source)] = tensor
    absent = [each.source for each in layout.components if not parts[each.name] and each.name not in lent]
    if absent:
        raise CheckpointRefused(
            f"{where} is not an all-in-one file: it has no keys {', '.join(f'{prefix}*' for prefix in absent)}; take "
            f"the published single file of {layout.title}"
        )
    if strays:
        raise CheckpointRefused(
            f"{where} has keys that belong to no component of {layout.title}: {some(strays)}; take the published file"
        )
    return parts


def is_finer(lent: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the base model's files hold a component in more bits than the all-in-one file does (ADR 0028)."""
    return _bytes_of(lent) > _bytes_of(own)


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(each.shape) * WIDTH_BYTES.get(each.dtype, 1) for each in tensors.values())


def scaled(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a component, and the scales by which some of them are multiplied, by the name of the weight.

    1. Left out: the marker of older files, scales of activations, and what `Tensor.packing` already says.
    2. A scale belongs to one weight that is present, has one of two names, and is a float.
    3. It is one number, or one for each row of a matrix.
    4. Where any weight has a scale, or the marker is there, every fp8 matrix must have one: otherwise one may be lost.
    5. A packed weight is fp8 with a scale.
    Raises CheckpointRefused, naming the keys.
    """

    def refuse(names: list[str], why: str) -> NoReturn:
        raise CheckpointRefused(
            f"{where} holds scaled weights that cannot be read: {some(names)} {why}; take another build"
        )

    weights = {
        key: each for key, each in tensors.items() if key != MARKER and not key.endswith((*SCALES, *BESIDE))
    }  # 1
    scales: dict[str, Tensor] = {}
    for key, scale in tensors.items():
        suffix = next((each for each in SCALES if key.endswith(each)), None)
        if suffix is None:
            continue
        name = f"{key.removesuffix(suffix)}.weight"
        if name not in weights or name in scales or scale.dtype not in {"F32", "F16", "BF16"}:  # 2
            refuse([key], f"({scale.dtype}) is not the one scale of a weight")
        rows = weights[name].shape[:1]
        if math.prod(scale.shape) != 1 and not (len(weights[name].shape) == 2 and scale.shape == (*rows, 1)):  # 3
            refuse([key], f"is {_shape(scale.shape)} for a weight of {_shape(weights[name].shape)}")
        scales[name] = scale
    bare = [key for key, each in weights.items() if each.dtype in FP8 and len(each.shape) == 2 and key not in scales]
    if bare and (scales or MARKER in tensors):  # 4
        refuse(bare, "have no scale, as others have")
    odd = [
        f"{key} ({each.packing})"
        for key, each in weights.items()
        if each.packing is not None and (each.packing != FP8.get(each.dtype) or key not in scales)
    ]
    if odd:  # 5
        refuse(odd, "are not packed as fp8 with a scale")
    return weights, scales


def matched(
    layout: Layout, component: Component, tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], where: str
) -> tuple[Move, ...]:
    """Where each parameter of *component* comes from, in the order of *expected* (its parameters and their shapes).

    1. Scales are distinguished from weights, by `scaled`.
    2. A transformer of another base model is refused, and the refusal names that model.
    3. Every parameter has a source, every tensor a parameter, of the same shape.
    4. Every tensor is of a floating-point type that can be written without loss of range.
    Raises CheckpointRefused.
    """
    tensors, scales = scaled(tensors, where)  # 1
    if component.library == "diffusers" and PATCH in expected:
        _refuse_other_base(layout, tensors, expected, where)  # 2
    sources = {parameter: component.table.source(parameter) for parameter in expected}
    unknown = [parameter for parameter, source in sources.items() if source is None]
    if unknown:
        raise CheckpointRefused(f"no published key is known for {some(unknown)} of {component.kind}; report this")
    missing = [source for source in sources.values() if source is not None and source not in tensors]
    if missing:  # 3
        raise CheckpointRefused(
            f"{where} lacks {len(missing)} of {len(sources)} tensors of {component.name}: {some(missing)}; download it "
            "again, or take the published file"
        )
    strays = sorted(set(tensors) - set(sources.values()))
    if strays:
        raise CheckpointRefused(
            f"{where} has tensors that {component.kind} does not have: {some(strays)}; it is a different model "
            f"from {layout.title}"
        )
    moves = [Move(tensors[str(source)], name, "", scales.get(str(source))) for name, source in sources.items()]
    misshapen = [
        f"{move.tensor.name} is {_shape(move.tensor.shape)} instead of {_shape(expected[move.parameter])}"
        for move in moves
        if move.tensor.shape != tuple(expected[move.parameter])
    ]
    if misshapen:
        raise CheckpointRefused(f"{where}: {some(misshapen, 3)}; it is a different model from {layout.title}")
    odd = [f"{move.tensor.name} ({move.tensor.dtype})" for move in moves if move.tensor.dtype not in WIDTH_BYTES]
    if odd:  # 4
        raise CheckpointRefused(
            f"{where} holds packed or integer weights: {some(odd)}; take the build in bf16, fp16 or fp8"
        )
    return tuple(msgspec.structs.replace(move, dtype=_written_as(component, move)) for move in moves)


def _refuse_other_base(
    layout: Layout, tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], where: str
) -> None:
    marks = [text for key, text in MARKS.items() if key in tensors and layout.transformer.table.target(key) is None]
    patch = tensors.get(PATCH)
    if marks:
        found = marks[0]
    elif VACE_PATCH in expected and VACE_PATCH not in tensors:
        found = "a transformer without VACE"
    elif patch is None or patch.shape[:2] == tuple(expected[PATCH])[:2]:
        return
    else:
        width, channels = patch.shape[:2] if len(patch.shape) >= 2 else (0, 0)
        found = BASES.get((width, channels), f"a transformer of width {width} with {channels} input channels")
    advice = "take that file, or name the other pipeline in checkpoint.pipeline of the settings"
    if CLIP in tensors and layout.model == "phr00t":
        advice = (
            "no pipeline here takes Phr00t's i2v files: take a MEGA file, which starts from an image as well "
            "(checkpoint.pipeline WanVACEPipeline), or a t2v file"
        )
    raise CheckpointRefused(
        f"{where} is the wrong base model: it holds {found}, and {layout.title} is needed for {layout.pipeline}; "
        f"{advice}"
    )


def _written_as(component: Component, move: Move) -> str:
    # bf16 can hold every value of bf16 and fp8, until a scale multiplies it
    narrow = move.tensor.dtype in {"BF16", *FP8} and move.scale is None
    keeps = any(part in component.float32 for part in move.parameter.split("."))
    return "F32" if component.dtype == "F32" or (keeps and not narrow) else "BF16"


def shards_of(component: Component, moves: Iterable[Move], *, limit_bytes: int) -> tuple[Shard, ...]:
    """*moves* in files of at most *limit_bytes* each (a tensor above that has a file of its own), named as
    diffusers and transformers look for them."""
    groups: list[list[Move]] = [[]]
    size_bytes = 0
    for move in moves:
        if groups[-1] and size_bytes + move.size_bytes > limit_bytes:
            groups.append([])
            size_bytes = 0
        groups[-1].append(move)
        size_bytes += move.size_bytes
    stem = weights_stem(component)
    if len(groups) == 1:
        return (Shard(f"{component.name}/{stem}.safetensors", tuple(groups[0])),)
    return tuple(
        Shard(f"{component.name}/{stem}-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    )


def weights_stem(component: Component) -> str:
    """How the names of the files with the weights of *component* begin."""
    return "diffusion_pytorch_model" if component.library == "diffusers" else "model"


def index_of(shards: Iterable[Shard]) -> bytes:
    """The index beside several shards of one component."""
    places = {move.parameter: shard.path.rpartition("/")[2] for shard in shards for move in shard.moves}
    total_bytes = sum(shard.size_bytes for shard in shards)
    return json.dumps(
        {"metadata": {"total_size": total_bytes}, "weight_map": places}, indent=2, sort_keys=True
    ).encode()


def model_index(layout: Layout, *, tokenizer: str, diffusers_version: str) -> bytes:
    """`model_index.json`, by which `DiffusionPipeline.from_pretrained` finds class and components."""
    index = {
        name: [None, None] if value is None and name != "boundary_ratio" else value
        for name, value in layout.index.items()
    }
    parts = {component.name: [component.library, component.kind] for component in layout.components}
    whole = {
        "_class_name": layout.pipeline,
        "_diffusers_version": diffusers_version,
        **index,
        **parts,
        "scheduler": ["diffusers", layout.scheduler["_class_name"]],
        "tokenizer": ["transformers", tokenizer],
    }
    return json.dumps(whole, indent=2, sort_keys=True).encode()


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
