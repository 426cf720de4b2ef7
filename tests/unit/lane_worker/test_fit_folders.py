"""What a folder of a checkpoint needs, and the refusal before it is loaded."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.checkpoints import RandomWeights
from contracts.fit import (
    CONTEXT_BYTES,
    StoredTensor,
)
from contracts.settings import ModelEntry, load_settings
from lane_worker.residence.fit import PACKAGES, LoadRefusal, SlotDemand
from ops.machine.readings import Reading
from ops.machine.weights import WeightsUnreadable, weights_of
from tests.unit.lane_worker.test_fit import PLAIN

# A folder


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    body = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(body)) + body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `f` as diffusers writes it: a transformer in two shards, a text encoder, no second expert."""
    root = tmp_path / "f"
    shards = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": {"blocks.0.attn1.to_q.weight": ("BF16", [2, 3])},
        "diffusion_pytorch_model-00002-of-00002.safetensors": {"scale_shift_table": ("F32", [4])},
    }
    for name, tensors in shards.items():
        safetensors(root / "transformer" / name, tensors)
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(root / "text_encoder" / "model.safetensors", {"shared.weight": ("F16", [5])})
    (root / "scheduler").mkdir()
    (root / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "WanPipeline",
                "boundary_ratio": None,
                "scheduler": ["diffusers", "UniPCMultistepScheduler"],
                "text_encoder": ["transformers", "UMT5EncoderModel"],
                "transformer": ["diffusers", "WanTransformer3DModel"],
                "transformer_2": [None, None],
            }
        )
    )
    return root


def test_the_tensors_of_a_folder_are_read_from_its_headers(folder: Path) -> None:
    assert weights_of(folder) == {
        "text_encoder": (StoredTensor("shared.weight", "float16", 5),),
        "transformer": (
            StoredTensor("blocks.0.attn1.to_q.weight", "bfloat16", 6),
            StoredTensor("scale_shift_table", "float32", 4),
        ),
    }
    assert weights_of(folder / "nowhere") is None


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("model_index.json", b"[1]"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", b"{}"),
        ("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", b"\x10"),
        ("text_encoder/model.safetensors", b"\xff" * 9),
        ("text_encoder/model.safetensors", struct.pack("<Q", 2) + b"[]"),
    ],
)
def test_unreadable_weight_files_are_named(folder: Path, path: str, content: bytes) -> None:
    (folder / path).write_bytes(content)
    with pytest.raises(WeightsUnreadable, match=re.escape(str(folder / path))):
        weights_of(folder)


# What a worker checks before it loads


def demand(at: Path, *, slot: str = "GPU-1", **changes: Any) -> SlotDemand:
    entry = load_settings().catalog("production").models["phr00t"]
    return SlotDemand.of(with_options(entry, **changes), at.parent, slot=slot)


def with_options(entry: ModelEntry, **changes: Any) -> ModelEntry:
    return msgspec.structs.replace(entry, checkpoint=msgspec.structs.replace(PLAIN, **changes))


ROOMY = Reading(used_bytes=0, free_bytes=1000 + CONTEXT_BYTES)


def refusal(found: SlotDemand, reading: Reading | None = ROOMY) -> LoadRefusal:
    refused = found.refusal(reading)
    assert refused is not None
    return refused


def test_a_folder_that_fits_is_not_refused(folder: Path) -> None:
    # 6 elements in bfloat16, 4 in float32 and 5 in bfloat16, and the activations
    assert demand(folder).need.card_bytes == 12 + 16 + 10 + 7
    assert demand(folder).refusal(Reading(used_bytes=44, free_bytes=1 + CONTEXT_BYTES)) is None
    assert demand(folder).refusal(None) is None  # a card that cannot be read: the release finds that out
    refused = refusal(demand(folder), Reading(used_bytes=43, free_bytes=1 + CONTEXT_BYTES))
    assert refused.code == "out_of_memory"
    assert refused.message.startswith(
        f"phr00t does not fit: with offload none it needs {45 + CONTEXT_BYTES:,} bytes on the card, which has "
        f"{44 + CONTEXT_BYTES:,} in all and {1 + CONTEXT_BYTES:,} free"
    )


def test_a_slot_without_a_card_counts_on_the_hosts_memory(folder: Path) -> None:
    refused = refusal(demand(folder, slot="cpu-0", offload="model"), Reading(used_bytes=0, free_bytes=44))
    assert "45 bytes on the host, which has 44 in all" in refused.message
    assert demand(folder, slot="cpu-0", offload="model").host_refusal() is None


@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_a_card_that_shares_the_hosts_memory_needs_room_for_both_parts(folder: Path, offload: str) -> None:
    apart = demand(folder, offload=offload)
    entry = with_options(load_settings().catalog("production").models["phr00t"], offload=offload)
    shared = SlotDemand.of(entry, folder.parent, slot="GPU-1", unified=True)
    assert shared.need.slot_bytes == apart.need.card_bytes + apart.need.host_bytes
    assert shared.host_refusal() is None  # it is counted already
    assert shared.refusal(Reading(used_bytes=0, free_bytes=shared.need.room_bytes)) is None
    refused = refusal(shared, Reading(used_bytes=0, free_bytes=shared.need.room_bytes - 1))
    assert "since card and host share one memory" in refused.message
    assert refusal(shared, Reading(used_bytes=0, free_bytes=20)).message.count("would fit") == 0


def test_a_missing_folder_is_refused_with_the_command_that_makes_it(folder: Path) -> None:
    refused = refusal(demand(folder, folder="nowhere"))
    assert refused.code == "storage_failed"
    assert f"`warmlane models prepare phr00t --from PATH --to {folder.parent / 'nowhere'}`" in refused.message
    tiny = RandomWeights(seed=1)  # is made by the load
    assert demand(folder, folder="nowhere", random_weights=tiny).refusal(ROOMY) is None


@pytest.mark.parametrize("backend", ["flash", "_flash_3", "sage_varlen", "xformers"])
def test_an_attention_backend_without_its_package_is_refused(folder: Path, backend: str) -> None:
    refused = refusal(demand(folder, attention_backend=backend))
    assert refused.code == "storage_failed"
    assert f"the attention backend {backend} needs the package" in refused.message


def test_more_than_the_host_can_ever_hold_is_refused_when_the_slot_is_taken(folder: Path) -> None:
    tiny = RandomWeights(seed=1)  # a folder that is made by the load
    huge = demand(folder, folder="nowhere", offload="group", expected_bytes=1 << 60, random_weights=tiny)
    refused = refusal(huge, Reading(used_bytes=0, free_bytes=1 << 61))
    assert refused.code == "out_of_memory"
    assert f"phr00t does not fit: it needs {1 << 60:,} bytes of the host's memory in pinned memory" in refused.message


def test_an_attention_backend_whose_kernels_cannot_be_built_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the containers there is no compiler. The package is installed."""
    monkeypatch.setitem(PACKAGES, "sage", "json")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = refusal(demand(folder, attention_backend="sage"))
    assert "has Triton build its kernels, which it cannot do here: there is no C compiler" in refused.message
    assert "or set checkpoint.attention_backend of phr00t to native" in refused.message


def test_more_than_the_host_has_is_refused_before_the_load(folder: Path) -> None:
    huge = demand(folder / "nowhere", folder="f", offload="model", expected_bytes=1 << 60)
    refused = huge.host_refusal()
    assert refused is not None
    assert refused.code == "out_of_memory"
    assert f"{1 << 60:,} bytes of the host's memory" in refused.message
    assert demand(folder, offload="model").host_refusal() is None


def test_a_folder_that_cannot_be_read_is_left_to_the_load(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"")
    found = demand(folder, expected_bytes=99)
    assert found.components is None
    assert found.need.card_bytes == 99 + 7
