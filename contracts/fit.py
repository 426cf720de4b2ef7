"""What a checkpoint needs on a card and on its host, by its options. Pure: tensors as stored and options in, bytes out.

The rules are those of diffusers and transformers; `tests/e2e/test_options.py` holds them to pipelines that were loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, get_args

import msgspec
from msgspec import Struct

from contracts.settings import Checkpoint, GroupOffload

GB: Final = 1_000_000_000
WIDTH_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
# What stays float32 whatever the dtype: modules of Wan's transformers, and of UMT5 in float16 only.
KEPT_FLOAT32: Final = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
KEPT_FLOAT32_IN_FLOAT16: Final = frozenset({"wo"})
# Modules whose layers layerwise casting leaves alone: diffusers' own list, that of Wan's transformers, and what is
# kept in float32.
NOT_CAST: Final = (
    "pos_embed",
    "patch_embed",
    "norm",
    "^proj_in$",
    "^proj_out$",
    "patch_embedding",
    "condition_embedder",
    *sorted(KEPT_FLOAT32),
)
# Text encoder and transformers; the VAE stays on the card (docs/checkpoint-options.md).
KEPT_ON_CARD: Final = "vae"
Offload = Literal["none", "model", "group"]


class Stored(Struct, frozen=True):
    """A tensor of a checkpoint's folder, by its header."""

    name: str
    dtype: str
    elements: int


Components = Mapping[str, tuple[Stored, ...]]
"""The tensors of each component (`transformer`, `vae`, …) of a folder."""


class Loaded(Struct, frozen=True, kw_only=True):
    """A component as it lies in memory. *converted_bytes* of it are not of the type that is stored, and so are copies
    on the host rather than pages of the file. *working_bytes*: the largest layer that is cast before it computes."""

    name: str
    bytes: int
    converted_bytes: int
    working_bytes: int
    largest_layer_bytes: int
    largest_block_bytes: int
    outside_blocks_bytes: int


class Need(Struct, frozen=True, kw_only=True):
    """What must be there before the load: on the card, where the slot is one (*on_card*), and on the host."""

    on_card: bool
    card_bytes: int
    host_bytes: int
    parts: str
    """Where the figures come from, in words."""
    pooled: bool = False
    """Whether the card has no memory of its own, so that *card_bytes* are all that is needed."""

    @property
    def slot_bytes(self) -> int:
        """What the slot's own memory must have room for."""
        return self.card_bytes if self.on_card else self.host_bytes


def loaded(name: str, tensors: Iterable[Stored], checkpoint: Checkpoint) -> Loaded:
    """Component *name* as `load_pipeline` has it in memory."""
    total = converted = working = 0
    layers: dict[str, int] = {}
    blocks: dict[str, int] = {}
    outside = 0
    for tensor in tensors:
        dtype = _dtype_in_memory(name, tensor, checkpoint)
        held = tensor.elements * WIDTH_BYTES[dtype]
        total += held
        if dtype != tensor.dtype:
            converted += held
        layer, _, _ = tensor.name.rpartition(".")
        layers[layer] = layers.get(layer, 0) + held
        if dtype == "float8_e4m3fn":
            working = max(working, tensor.elements * WIDTH_BYTES[checkpoint.dtype])
        block = re.match(r"\w*blocks\.\d+(?=\.)", tensor.name)
        if block is None:
            outside += held
        else:
            blocks[block[0]] = blocks.get(block[0], 0) + held
    return Loaded(
        name=name,
        bytes=total,
        converted_bytes=converted,
        working_bytes=working,
        largest_layer_bytes=max(layers.values(), default=0),
        largest_block_bytes=max(blocks.values(), default=0),
        outside_blocks_bytes=outside,
    )


def _dtype_in_memory(component: str, tensor: Stored, checkpoint: Checkpoint) -> str:
    path = tensor.name.split(".")
    if component == "vae":
        return "float32"
    if not component.startswith("transformer"):
        kept = checkpoint.dtype == "float16" and not KEPT_FLOAT32_IN_FLOAT16.isdisjoint(path)
        return "float32" if kept else checkpoint.dtype
    if checkpoint.layerwise_casting is not None and is_cast(tensor.name):
        return checkpoint.layerwise_casting
    return checkpoint.dtype if KEPT_FLOAT32.isdisjoint(path) else "float32"


def is_cast(parameter: str) -> bool:
    """Whether layerwise casting stores *parameter* of a transformer in the smaller type."""
    module, _, last = parameter.rpartition(".")
    if last not in {"weight", "bias"}:
        return False
    path = module.split(".")
    above = [".".join(path[: depth + 1]) for depth in range(len(path))]
    return not any(re.search(pattern, each) for pattern in NOT_CAST for each in above)


def need(components: Components | None, checkpoint: Checkpoint, *, on_card: bool) -> Need:
    """What *checkpoint* needs by its options.

    1. Without a card everything is on the host.
    2. `none`: all weights on the card; on the host, while it loads, what is converted there.
    3. `model`: the largest component on the card at a time, all of them on the host.
    4. `group`: on the card the VAE and, of the rest, the groups that are there at a time; on the host the rest.
    To each on the card come *activation_bytes*, and the largest layer that is cast before it computes.
    Without *components* (no folder yet) `expected_bytes` stands for all weights.
    """
    if components is None:
        parts = [_unknown(checkpoint)]
    else:
        parts = [loaded(name, tensors, checkpoint) for name, tensors in components.items()]
    weights = sum(part.bytes for part in parts)
    working = max((part.working_bytes for part in parts), default=0)
    beside = checkpoint.activation_bytes + working
    words = ", ".join(f"{part.name} {gb(part.bytes)}" for part in parts)
    if not on_card:  # 1
        told = f"weights {gb(weights)} ({words}), activations {gb(beside)}"
        return Need(on_card=False, card_bytes=0, host_bytes=weights + beside, parts=told)
    if checkpoint.offload == "none":  # 2
        on, host = weights, sum(part.converted_bytes for part in parts)
        what = f"all weights {gb(on)} ({words})"
    elif checkpoint.offload == "model":  # 3
        on, host = max((part.bytes for part in parts), default=0), weights
        what = f"the largest component {gb(on)} (of {words})"
    else:  # 4
        stays = sum(part.bytes for part in parts if part.name == KEPT_ON_CARD)
        moved = [part for part in parts if part.name != KEPT_ON_CARD]
        groups = max((_groups_bytes(part, checkpoint.group_offload or GroupOffload()) for part in moved), default=0)
        on, host = stays + groups, weights - stays
        what = f"the VAE {gb(stays)} and the groups that are there at a time {gb(groups)} (of {words})"
    return Need(on_card=True, card_bytes=on + beside, host_bytes=host, parts=f"{what}, activations {gb(beside)}")


def pooled(wanted: Need) -> Need:
    """*wanted* on a card that shares its host's memory: there what would be on either of them comes out of one pool."""
    if not wanted.on_card:
        return wanted
    return msgspec.structs.replace(
        wanted,
        card_bytes=wanted.card_bytes + wanted.host_bytes,
        host_bytes=0,
        parts=f"{wanted.parts}; beside it {gb(wanted.host_bytes)}, since card and host share one memory",
        pooled=True,
    )


def _groups_bytes(part: Loaded, group: GroupOffload) -> int:
    """What of *part* is on the card at a time: the group that computes, the next one, and one that is being let go."""
    at_a_time = 1 + group.stream + group.record_stream
    if group.level == "block" and part.largest_block_bytes and part.name.startswith("transformer"):
        return part.outside_blocks_bytes + part.largest_block_bytes * max(group.blocks, at_a_time)
    return part.largest_layer_bytes * at_a_time


def _unknown(checkpoint: Checkpoint) -> Loaded:
    return Loaded(
        name="by checkpoint.expected_bytes",
        bytes=checkpoint.expected_bytes,
        converted_bytes=0,
        working_bytes=0,
        largest_layer_bytes=0,
        largest_block_bytes=0,
        outside_blocks_bytes=0,
    )


def never_fits(
    wanted: Need, components: Components | None, checkpoint: Checkpoint, *, room_bytes: int, free_bytes: int
) -> str | None:
    """Why the slot can never hold this, with the arithmetic and what to set; None where it can.

    *room_bytes* is what the slot has in all, *free_bytes* what is free of that now.
    """
    if wanted.slot_bytes <= room_bytes:
        return None
    where = "card" if wanted.on_card else "host"
    text = (
        f"with offload {checkpoint.offload} it needs {wanted.slot_bytes:,} bytes on the {where}, which has "
        f"{room_bytes:,} in all and {free_bytes:,} free: {wanted.parts}"
    )
    others = _fitting(components, checkpoint, room_bytes, in_one_pool=wanted.pooled) if wanted.on_card else ()
    fitting = list(others) if components else []
    if fitting:
        return f"{text}; these would fit: {'; '.join(fitting)}"
    return f"{text}; give it a larger {where}, or lower the limits of the model and checkpoint.activation_bytes"


def host_shortage(wanted: Need, *, free_bytes: int) -> str | None:
    """Why the host cannot take its part now; None where it can."""
    if wanted.host_bytes <= free_bytes:
        return None
    return (
        f"it needs {wanted.host_bytes:,} bytes of the host's memory, of which {free_bytes:,} are available; end what "
        'uses it, or keep the weights on a larger card ("offload": "none")'
    )


def _fitting(
    components: Components | None, checkpoint: Checkpoint, room_bytes: int, *, in_one_pool: bool
) -> Iterator[str]:
    """Other options with which it fits, the fastest first."""
    casts: tuple[Literal["float8_e4m3fn"] | None, ...] = (checkpoint.layerwise_casting,)
    if checkpoint.layerwise_casting is None:
        casts = (None, "float8_e4m3fn")
    for offload in get_args(Offload):
        for cast in casts:
            other = msgspec.structs.replace(checkpoint, offload=offload, layerwise_casting=cast, group_offload=None)
            wanted = need(components, other, on_card=True)
            wanted = pooled(wanted) if in_one_pool else wanted
            if wanted.card_bytes <= room_bytes:
                casting = f' with "layerwise_casting": "{cast}"' if cast is not None else ""
                yield f'"offload": "{offload}"{casting} ({gb(wanted.card_bytes)})'


def gb(count: int) -> str:
    """*count* bytes in words: gigabytes with two decimals."""
    return f"{count / GB:.2f} GB"
