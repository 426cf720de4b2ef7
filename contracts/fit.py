"""What a checkpoint needs on a card and on its host, by its options. Pure: tensors as stored and options in, bytes out.

The rules are those of diffusers and transformers; `tests/e2e/test_options.py` checks them against pipelines that were
loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, get_args

import msgspec
from msgspec import Struct

from contracts.checkpoints import Checkpoint, GroupOffload

GB: Final = 1_000_000_000
WIDTH_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
# Modules that stay float32 whatever the dtype: first those of Wan's transformers, then those of UMT5, which stay so
# only in float16.
KEPT_FLOAT32: Final = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
KEPT_FLOAT32_IN_FLOAT16: Final = frozenset({"wo"})
# Modules whose layers layerwise casting leaves alone: diffusers' own list, that of Wan's transformers, and the modules
# that stay float32.
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
# Offloading moves the text encoder and the transformers; the VAE stays on the card (docs/models/checkpoint-options.md).
KEPT_ON_CARD: Final = "vae"
# The text encoder reads 512 tokens and is done before the first step. So what it holds does not grow with the video,
# and does not add to what the transformer and the VAE hold.
TEXT_ENCODER: Final = "text_encoder"
TEXT_ENCODER_BYTES: Final = 500_000_000
# What CUDA takes of a card for a process and its kernels, before any tensor. A running pipeline host has taken it
# already, so it counts towards what a card must have in all, and not towards what must be free.
CONTEXT_BYTES: Final = 600_000_000
# How much of the host's memory its processes take beside the weights: torch alone takes half a gigabyte.
PROCESSES_BYTES: Final = 2_000_000_000
# torch rounds a pinned block up to a power of two, up to this size: `lane_worker/forking/allocator.py` sets it, because
# without it 68.6 GB of weights take 104.7. Beyond it, whole pages are locked.
PINNED_ROUND_MAX_BYTES: Final = 1 << 20
PAGE_BYTES: Final = 4096
Offload = Literal["none", "model", "group"]


class StoredTensor(Struct, frozen=True):
    """A tensor of a checkpoint's folder, by its header."""

    name: str
    dtype: str
    elements: int


Components = Mapping[str, tuple[StoredTensor, ...]]
"""The tensors of each component (`transformer`, `vae`, …) of a folder."""


class LoadedComponent(Struct, frozen=True, kw_only=True):
    """A component as it lies in memory. *converted_bytes* of it have another type than the stored one, and so are
    copies on the host rather than pages of the file. *pinned_bytes* is its size in pinned memory, rounded up block by
    block. *working_bytes* is the largest layer that is cast before it computes."""

    name: str
    bytes: int
    converted_bytes: int
    pinned_bytes: int
    working_bytes: int
    largest_layer_bytes: int
    largest_block_bytes: int
    outside_blocks_bytes: int


class Need(Struct, frozen=True, kw_only=True):
    """The memory that must be there before the load: on the card, if the slot is a card (*on_card*), and on the
    host."""

    on_card: bool
    card_bytes: int
    host_bytes: int
    pinned: bool = False
    """The host's part is locked: the system cannot swap it out."""
    parts: str
    """Where the figures come from, in words."""
    pooled: bool = False
    """Whether the card has no memory of its own, so that *card_bytes* are all that is needed."""

    @property
    def room_bytes(self) -> int:
        """How large the slot's own memory must be in all."""
        return self.slot_bytes + (CONTEXT_BYTES if self.on_card else 0)

    @property
    def slot_bytes(self) -> int:
        """How much of the slot's own memory must be free."""
        return self.card_bytes if self.on_card else self.host_bytes


def loaded(name: str, tensors: Iterable[StoredTensor], checkpoint: Checkpoint) -> LoadedComponent:
    """Component *name* as `load_pipeline` holds it in memory."""
    total = converted = pinned = working = 0
    layers: dict[str, int] = {}
    blocks: dict[str, int] = {}
    outside = 0
    for tensor in tensors:
        dtype = _dtype_in_memory(name, tensor, checkpoint)
        held = tensor.elements * WIDTH_BYTES[dtype]
        total += held
        pinned += pinned_block(held)
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
    return LoadedComponent(
        name=name,
        bytes=total,
        converted_bytes=converted,
        pinned_bytes=pinned,
        working_bytes=working,
        largest_layer_bytes=max(layers.values(), default=0),
        largest_block_bytes=max(blocks.values(), default=0),
        outside_blocks_bytes=outside,
    )


def pinned_block(held: int) -> int:
    """How much of the host's memory torch locks for a tensor of *held* bytes."""
    if held <= PINNED_ROUND_MAX_BYTES:
        return 1 << max(held - 1, 0).bit_length() if held else 0
    return -(-held // PAGE_BYTES) * PAGE_BYTES


def _dtype_in_memory(component: str, tensor: StoredTensor, checkpoint: Checkpoint) -> str:
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
    2. `none`: the card holds all weights; the host holds, during the load, those that it converts.
    3. `model`: the card holds one component at a time; the host holds all of them.
    4. `group`: the card holds the VAE and, of one other component, the groups that are there at a time. The host holds
       all components but the VAE, in pinned memory if the settings say so.
    With `model` and `group` the components run one after another, and the one that needs most counts.
    A component on the card needs *activation_bytes* beside its weights, and room for the largest layer that is cast
    before it computes. The text encoder needs its own activations instead. Without *components* (no folder yet),
    `expected_bytes` stands for all weights.
    """
    parts = [loaded(name, tensors, checkpoint) for name, tensors in (components or {}).items()]
    parts = parts or [_unknown(checkpoint)]
    weights = sum(part.bytes for part in parts)
    words = ", ".join(f"{part.name} {gb(part.bytes)}" for part in parts)
    beside = max(checkpoint.activation_bytes, *(_beside(part, checkpoint) for part in parts))
    if not on_card:  # 1
        what = f"weights {gb(weights)} ({words}), activations {gb(beside)}"
        return Need(on_card=False, card_bytes=0, host_bytes=weights + beside, parts=what)
    pinned = False
    if checkpoint.offload == "none":  # 2
        on, host = weights + beside, sum(part.converted_bytes for part in parts)
        what = f"all weights {gb(weights)} ({words}), activations {gb(beside)}"
    elif checkpoint.offload == "model":  # 3
        most = max(parts, key=lambda part: part.bytes + _beside(part, checkpoint))
        on, host = most.bytes + _beside(most, checkpoint), weights
        what = f"the {most.name} {gb(most.bytes)} (of {words}), activations {gb(_beside(most, checkpoint))}"
    else:  # 4
        group = checkpoint.group_offload or GroupOffload()
        pinned = group.stream and group.pinned
        stays = sum(part.bytes for part in parts if part.name == KEPT_ON_CARD)
        moved = [part for part in parts if part.name != KEPT_ON_CARD] or parts
        most = max(moved, key=lambda part: _groups_bytes(part, group) + _beside(part, checkpoint))
        groups, used = _groups_bytes(most, group), _beside(most, checkpoint)
        on = stays + max(groups + used, checkpoint.activation_bytes)
        host = sum(part.pinned_bytes if pinned else part.bytes for part in moved)
        what = (
            f"the VAE {gb(stays)} and of the {most.name} the groups that are there at a time {gb(groups)} "
            f"(of {words}), activations {gb(used)}"
        )
    return Need(on_card=True, card_bytes=on, host_bytes=host, pinned=pinned, parts=what)


def _beside(part: LoadedComponent, checkpoint: Checkpoint) -> int:
    """What *part* needs on the card beside its weights while it computes."""
    if part.name == TEXT_ENCODER:
        return min(TEXT_ENCODER_BYTES, checkpoint.activation_bytes)
    return checkpoint.activation_bytes + part.working_bytes


def pooled(wanted: Need) -> Need:
    """*wanted* on a card that shares its host's memory: what either of them would hold comes out of one pool."""
    if not wanted.on_card:
        return wanted
    return msgspec.structs.replace(
        wanted,
        card_bytes=wanted.card_bytes + wanted.host_bytes,
        host_bytes=0,
        parts=f"{wanted.parts}; beside it {gb(wanted.host_bytes)}, since card and host share one memory",
        pooled=True,
    )


def _groups_bytes(part: LoadedComponent, group: GroupOffload) -> int:
    """How much of *part* is on the card at a time: the group that computes, the next one, and one that is being
    freed."""
    at_a_time = 1 + group.stream + group.record_stream
    if group.level == "block" and part.largest_block_bytes and part.name.startswith("transformer"):
        return part.outside_blocks_bytes + part.largest_block_bytes * max(group.blocks, at_a_time)
    return part.largest_layer_bytes * at_a_time


def _unknown(checkpoint: Checkpoint) -> LoadedComponent:
    return LoadedComponent(
        name="by checkpoint.expected_bytes",
        bytes=checkpoint.expected_bytes,
        converted_bytes=0,
        pinned_bytes=checkpoint.expected_bytes,
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
    if wanted.room_bytes <= room_bytes:
        return None
    where = "card" if wanted.on_card else "host"
    context = f", CUDA's own {gb(CONTEXT_BYTES)}" if wanted.on_card else ""
    text = (
        f"with offload {checkpoint.offload} it needs {wanted.room_bytes:,} bytes on the {where}, which has "
        f"{room_bytes:,} in all and {free_bytes:,} free: {wanted.parts}{context}"
    )
    others = _fitting(components, checkpoint, room_bytes, in_one_pool=wanted.pooled) if wanted.on_card else ()
    fitting = list(others) if components else []
    if fitting:
        return f"{text}; these would fit: {'; '.join(fitting)}"
    return f"{text}; give it a larger {where}, or lower geometry.max_volume and checkpoint.activation_bytes with it"


def host_never_holds(wanted: Need, *, total_bytes: int) -> str | None:
    """Why a host of *total_bytes* can never take its part of the weights of a card; None where it can."""
    room_bytes = total_bytes - PROCESSES_BYTES
    if not wanted.on_card or wanted.host_bytes <= room_bytes:
        return None
    pinned = " in pinned memory" if wanted.pinned else ""
    return (
        f"it needs {wanted.host_bytes:,} bytes of the host's memory{pinned}, which has {total_bytes:,} in all, "
        f"{gb(PROCESSES_BYTES)} of them for its processes; give it more (also in the limit of its container), or keep "
        'the weights on a larger card ("offload": "none")'
    )


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
    for other in alternatives(checkpoint):
        wanted = need(components, other, on_card=True)
        wanted = pooled(wanted) if in_one_pool else wanted
        if wanted.room_bytes <= room_bytes:
            casting = f' with "layerwise_casting": "{other.layerwise_casting}"' if other.layerwise_casting else ""
            yield f'"offload": "{other.offload}"{casting} ({gb(wanted.room_bytes)})'


def alternatives(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """*checkpoint* with each `offload`, the fastest first, both with and without casting to one byte."""
    casts: tuple[Literal["float8_e4m3fn"] | None, ...] = (checkpoint.layerwise_casting,)
    if checkpoint.layerwise_casting is None:
        casts = (None, "float8_e4m3fn")
    for offload in get_args(Offload):
        for cast in casts:
            yield msgspec.structs.replace(
                checkpoint, offload=offload, layerwise_casting=cast, group_offload=None, device_map=False
            )


def gb(count: int) -> str:
    """*count* bytes in words: gigabytes with two decimals."""
    return f"{count / GB:.2f} GB"
