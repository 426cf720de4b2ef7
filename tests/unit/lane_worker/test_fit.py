"""What a checkpoint needs, option by option, and the refusal when a slot cannot serve it."""

from typing import Any

import msgspec
import pytest

from contracts.checkpoints import Checkpoint, GroupOffload, Scheduler
from contracts.fit import (
    CONTEXT_BYTES,
    PROCESSES_BYTES,
    TEXT_ENCODER_BYTES,
    Components,
    Need,
    StoredTensor,
    host_never_holds,
    host_shortage,
    is_cast,
    loaded,
    need,
    never_fits,
    pinned_block,
)

PLAIN = Checkpoint(
    pipeline="WanPipeline",
    folder="f",
    dtype="bfloat16",
    scheduler=Scheduler(kind="UniPCMultistepScheduler", flow_shift=3.0),
    activation_bytes=7,
)
# In elements: two blocks of 1,000 that are cast and 10 that are kept in float32, and 100 outside of blocks.
TRANSFORMER = (
    StoredTensor("blocks.0.attn1.to_q.weight", "bfloat16", 600),
    StoredTensor("blocks.0.ffn.net.0.proj.weight", "bfloat16", 400),
    StoredTensor("blocks.0.norm2.weight", "float32", 10),
    StoredTensor("blocks.1.attn1.to_q.weight", "bfloat16", 600),
    StoredTensor("blocks.1.ffn.net.0.proj.weight", "bfloat16", 400),
    StoredTensor("blocks.1.norm2.weight", "float32", 10),
    StoredTensor("patch_embedding.weight", "bfloat16", 100),
)
COMPONENTS: Components = {
    "text_encoder": (
        StoredTensor("shared.weight", "bfloat16", 500),
        StoredTensor("encoder.block.0.layer.1.DenseReluDense.wo.weight", "bfloat16", 50),
    ),
    "transformer": TRANSFORMER,
    "transformer_2": TRANSFORMER,
    "vae": (StoredTensor("decoder.conv_in.weight", "float32", 20),),
}
ONE = 2 * 2 * 1000 + 2 * 4 * 10 + 2 * 100  # a transformer in bfloat16
CAST = 2 * 1 * 1000 + 2 * 4 * 10 + 2 * 100  # and with its blocks in float8
TEXT, VAE, USED = 2 * 550, 4 * 20, 7
ALL = TEXT + 2 * ONE + VAE
# What is moved in groups, block by block in pinned memory: 1,000 and 100 bytes of the text encoder; of a transformer
# 1,200, 800 and 40 in each of its blocks, and 200 outside.
PINNED = (1024 + 128) + 2 * (2 * (2048 + 1024 + 64) + 256)


@pytest.mark.parametrize(
    ("changes", "card_bytes", "host_bytes"),
    [
        pytest.param({}, ALL + USED, 0, id="none"),
        pytest.param(
            # 1,200: the largest layer, which is bfloat16 while it computes. The cast copies are made on the host.
            {"layerwise_casting": "float8_e4m3fn"},
            TEXT + 2 * CAST + VAE + USED + 1200,
            2 * 2000,
            id="none-float8",
        ),
        pytest.param({"offload": "model"}, ONE + USED, ALL, id="model"),
        pytest.param(
            {"offload": "model", "layerwise_casting": "float8_e4m3fn"},
            CAST + USED + 1200,
            TEXT + 2 * CAST + VAE,
            id="model-float8",
        ),
        # the layer that computes and the next: of 600 elements in the transformers
        pytest.param({"offload": "group"}, VAE + 2 * 1200 + USED, PINNED, id="group-leaf"),
        pytest.param(
            {"offload": "group", "group_offload": GroupOffload(pinned=False)},
            VAE + 2 * 1200 + USED,
            ALL - VAE,
            id="group-not-pinned",
        ),
        pytest.param(
            {"offload": "group", "group_offload": GroupOffload(stream=False)}, VAE + 1200 + USED, ALL - VAE, id="alone"
        ),
        pytest.param(
            {"offload": "group", "group_offload": GroupOffload(record_stream=True)},
            VAE + 3 * 1200 + USED,
            PINNED,
            id="group-leaf-record-stream",
        ),
        pytest.param(
            {"offload": "group", "group_offload": GroupOffload(level="block")},
            VAE + 200 + 2 * 2040 + USED,
            PINNED,
            id="group-block",
        ),
        pytest.param(
            {"offload": "group", "group_offload": GroupOffload(level="block", blocks=4, stream=False)},
            VAE + 200 + 4 * 2040 + USED,
            ALL - VAE,
            id="group-four-blocks",
        ),
        pytest.param(
            {"dtype": "float32"}, 2 * (4 * 2120) + 4 * 550 + VAE + USED, 4 * (2 * 2100 + 550), id="none-float32"
        ),
        # UMT5's `wo` stays float32 in float16 only
        pytest.param({"dtype": "float16"}, ALL + 2 * 50 + USED, 2 * (2 * 2100 + 500) + 4 * 50, id="none-float16"),
    ],
)
def test_what_is_needed(changes: dict[str, Any], card_bytes: int, host_bytes: int) -> None:
    checkpoint = msgspec.structs.replace(PLAIN, **changes)
    found = need(COMPONENTS, checkpoint, on_card=True)
    assert (found.card_bytes, found.host_bytes, found.slot_bytes) == (card_bytes, host_bytes, card_bytes)
    without = need(COMPONENTS, checkpoint, on_card=False)
    assert without.card_bytes == 0
    assert (
        without.slot_bytes
        == without.host_bytes
        >= sum(loaded(name, tensors, checkpoint).bytes for name, tensors in COMPONENTS.items())
    )


@pytest.mark.parametrize(
    ("held", "locked"),
    [(0, 0), (1, 1), (1000, 1024), (1 << 20, 1 << 20), ((1 << 20) + 1, (1 << 20) + 4096), (141_557_760, 141_557_760)],
)
def test_what_is_locked_for_a_tensor(held: int, locked: int) -> None:
    """As `CachingHostAllocator.h` of torch with the setting of `lane_worker/forking/allocator.py`."""
    assert pinned_block(held) == locked


def test_components_that_come_one_after_another_do_not_add_up() -> None:
    """The text encoder's largest groups are on the card before the first step, the transformer's and the activations
    later."""
    wide: Components = {
        "text_encoder": (StoredTensor("shared.weight", "bfloat16", 5_000_000_000),),
        "transformer": TRANSFORMER,
    }
    used = msgspec.structs.replace(PLAIN, offload="group", activation_bytes=15_000_000_000)
    assert need(wide, used, on_card=True).card_bytes == 2 * 10_000_000_000 + TEXT_ENCODER_BYTES
    used = msgspec.structs.replace(used, activation_bytes=25_000_000_000)
    assert need(wide, used, on_card=True).card_bytes == 2 * 1200 + 25_000_000_000
    whole = msgspec.structs.replace(used, offload="model")
    assert need(wide, whole, on_card=True).card_bytes == ONE + 25_000_000_000


def test_the_setting_stands_for_a_folder_that_is_not_there() -> None:
    expected = msgspec.structs.replace(PLAIN, expected_bytes=1000)
    assert need(None, expected, on_card=True).card_bytes == 1007
    assert need(None, expected, on_card=False).host_bytes == 1007


@pytest.mark.parametrize(
    ("parameter", "cast"),
    [
        ("blocks.7.attn2.to_out.0.bias", True),
        ("vace_blocks.0.proj_in.weight", True),
        ("blocks.7.attn1.norm_q.weight", False),
        ("blocks.7.scale_shift_table", False),
        ("condition_embedder.time_proj.weight", False),
        ("patch_embedding.weight", False),
        ("proj_out.weight", False),
        ("scale_shift_table", False),
    ],
)
def test_what_layerwise_casting_casts(parameter: str, cast: bool) -> None:
    assert is_cast(parameter) is cast


# Refusals


def wanted(**changes: Any) -> tuple[Need, Components, Checkpoint]:
    checkpoint = msgspec.structs.replace(PLAIN, **changes)
    return need(COMPONENTS, checkpoint, on_card=True), COMPONENTS, checkpoint


def test_what_fits_to_the_byte_is_not_refused() -> None:
    room_bytes = ALL + USED + CONTEXT_BYTES
    assert never_fits(*wanted(), room_bytes=room_bytes, free_bytes=0) is None
    assert never_fits(*wanted(), room_bytes=room_bytes - 1, free_bytes=0) is not None


def test_a_refusal_shows_the_arithmetic_and_what_would_fit() -> None:
    text = never_fits(*wanted(), room_bytes=CONTEXT_BYTES + 6000, free_bytes=5500)
    assert text is not None
    assert f"needs {CONTEXT_BYTES + ALL + USED:,} bytes on the card, which has {CONTEXT_BYTES + 6000:,} in all" in text
    assert "5,500 free" in text
    assert "CUDA's own 0.60 GB" in text
    assert '"offload": "model" (' in text
    assert '"offload": "none" with' not in text  # 6,967 with float8
    assert text.index('"model"') < text.index('"group"')


def test_a_refusal_says_when_no_option_would_fit() -> None:
    text = never_fits(*wanted(), room_bytes=100, free_bytes=100)
    assert text is not None
    assert "would fit" not in text
    assert "larger card" in text


def test_the_hosts_part_is_refused_with_its_arithmetic() -> None:
    found, _, _ = wanted(offload="model")
    assert host_shortage(found, free_bytes=ALL) is None
    text = host_shortage(found, free_bytes=ALL - 1)
    assert text is not None
    assert f"{ALL:,} bytes of the host's memory, of which {ALL - 1:,} are available" in text


def test_what_the_host_can_never_hold_is_reported() -> None:
    found, _, _ = wanted(offload="group")
    assert host_never_holds(found, total_bytes=PINNED + PROCESSES_BYTES) is None
    text = host_never_holds(found, total_bytes=PINNED + PROCESSES_BYTES - 1)
    assert text is not None
    assert f"{PINNED:,} bytes of the host's memory in pinned memory, which has {PINNED + PROCESSES_BYTES - 1:,}" in text
    on_host = need(COMPONENTS, PLAIN, on_card=False)
    assert host_never_holds(on_host, total_bytes=0) is None  # the slot's own memory, which is read by itself
