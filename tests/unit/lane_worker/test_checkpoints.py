"""Key tables, recognition of published files, and the plan of shards: pure, without torch."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from contracts.settings import load_settings
from lane_worker.checkpoints.found import CheckpointRefused, Tensor, some
from lane_worker.checkpoints.keys import KeyTable, key_table, keys_beside
from lane_worker.checkpoints.layouts import Component, published_layouts
from lane_worker.checkpoints.plan import index_of, matched, model_index, scaled, shards_of, split_all_in_one

ANISORA, T2V, I2V, MEGA = published_layouts()
TRANSFORMER = msgspec.structs.replace(
    T2V.transformer,
    table=KeyTable(
        {
            "patch_embedding.weight": "patch_embedding.weight",
            "blocks.{n}.ffn.0.weight": "blocks.{n}.ffn.net.0.proj.weight",
            "blocks.{n}.modulation": "blocks.{n}.scale_shift_table",
        }
    ),
)
EXPECTED = {
    "patch_embedding.weight": (5120, 16, 1, 2, 2),
    "blocks.0.ffn.net.0.proj.weight": (8, 4),
    "blocks.11.scale_shift_table": (1, 6, 4),
}
FOUND = {
    "patch_embedding.weight": ("BF16", (5120, 16, 1, 2, 2)),
    "blocks.0.ffn.0.weight": ("F32", (8, 4)),
    "blocks.11.modulation": ("F32", (1, 6, 4)),
}


def tensors(found: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {name: Tensor(name, dtype, shape, "aio.safetensors") for name, (dtype, shape) in found.items()}


def match(changes: Mapping[str, tuple[str, tuple[int, ...]]], *, component: Component = TRANSFORMER) -> list[str]:
    moves = matched(T2V, component, tensors({**FOUND, **changes}), EXPECTED, "aio.safetensors")
    return [f"{move.tensor.name} -> {move.parameter} {move.dtype}" for move in moves]


def test_a_pattern_stands_for_every_block_in_both_directions() -> None:
    table = key_table("wan_transformer", "wan_vace")
    pairs = {
        "blocks.39.cross_attn.norm_k.weight": "blocks.39.attn2.norm_k.weight",
        "blocks.7.norm3.bias": "blocks.7.norm2.bias",
        "vace_blocks.3.after_proj.bias": "vace_blocks.3.proj_out.bias",
        "head.modulation": "scale_shift_table",
    }
    for source, target in pairs.items():
        assert (table.target(source), table.source(target)) == (target, source)
    assert key_table("umt5_wan").target("blocks.23.ffn.fc1.weight") == (
        "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
    )
    assert table.target("blocks.0.norm2.weight") is None
    assert table.target("blocks.x.modulation") is None
    assert len(key_table("wan_vae").targets) == 194


def test_every_table_says_where_it_was_read() -> None:
    for file in resources.files("lane_worker.checkpoints").joinpath("data").iterdir():
        if file.name.endswith(".txt"):
            head = [line for line in file.read_text().splitlines() if line.startswith("#")]
            links = re.findall(r"https://\S+", "\n".join(head))
            # of a commit each: a branch would be another text tomorrow
            assert links, file.name
            assert all(re.search(r"/blob/[0-9a-f]{40}/", link) for link in links), links
    assert all(key.startswith("text_encoders.") for key in keys_beside())
    with pytest.raises(ValueError, match="appears twice"):
        key_table("wan_vae", "wan_vae")
    with pytest.raises(ValueError, match="is not KEY -> PARAMETER"):
        key_table("beside")


def test_every_refusal_that_is_documented_names_its_test() -> None:
    """`tests/unit/test_docs.py` sees to it that these exist."""
    text = (Path(__file__).parents[3] / "docs" / "models" / "models.md").read_text()
    table = text.split("## What is refused, and why")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    tests = r"`tests/(e2e/test_(prepare\w*|models_command)|unit/lane_worker/test_checkpoints)\.py::test_\w+`"
    assert all(re.search(tests, row) for row in rows)


@pytest.mark.parametrize("model", ["anisora", "phr00t"])
def test_the_production_profile_has_a_published_form(model: str) -> None:
    checkpoint = load_settings().catalog("production").models[model].checkpoint
    (found,) = (each for each in published_layouts() if (each.model, each.pipeline) == (model, checkpoint.pipeline))
    assert found.index["boundary_ratio"] == checkpoint.boundary_ratio
    assert found.scheduler["_class_name"] == checkpoint.scheduler.kind


def test_what_diffusers_keeps_in_float32_is_written_so_where_the_source_has_it() -> None:
    assert match({}) == [
        "patch_embedding.weight -> patch_embedding.weight BF16",
        "blocks.0.ffn.0.weight -> blocks.0.ffn.net.0.proj.weight BF16",
        "blocks.11.modulation -> blocks.11.scale_shift_table F32",
    ]
    assert match({"blocks.11.modulation": ("BF16", (1, 6, 4))})[-1].endswith("scale_shift_table BF16")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"blocks.1.ffn.0.scale_weight": ("F32", ())}, "is not the one scale of a weight", id="1-scale"),
        pytest.param({"patch_embedding.weight": ("BF16", (5120, 36, 1, 2, 2))}, "of Wan 2.2, and", id="2-i2v"),
        pytest.param({"patch_embedding.weight": ("BF16", (1536, 16, 1, 2, 2))}, "the 1.3B", id="2-small"),
        pytest.param({"patch_embedding.weight": ("BF16", ())}, "width 0 with 0 input channels", id="2-no-shape"),
        pytest.param(
            {"img_emb.proj.1.weight": ("BF16", (1,))},
            r"Wan 2.1 \(it has a CLIP embedder\).*no pipeline here takes Phr00t's i2v files: take a MEGA file, ",
            id="2-clip",
        ),
        pytest.param({"motion_encoder.dec.direction.weight": ("BF16", (1,))}, "Wan Animate", id="2-animate"),
        pytest.param({"casual_audio_encoder.weights": ("BF16", (1,))}, "Wan S2V", id="2-s2v"),
        pytest.param({"vace_patch_embedding.weight": ("BF16", (1,))}, "VACE", id="2-vace"),
        pytest.param({"blocks.1.modulation": ("BF16", (1, 6, 4))}, "does not have: blocks.1.modulation", id="3-stray"),
        pytest.param({"blocks.0.ffn.0.weight": ("BF16", (4, 8))}, "is 4x8 instead of 8x4", id="3-shape"),
        pytest.param({"blocks.0.ffn.0.weight": ("I8", (8, 4))}, r"blocks.0.ffn.0.weight \(I8\)", id="4-int8"),
        pytest.param({"blocks.0.ffn.0.weight": ("F64", (8, 4))}, r"blocks.0.ffn.0.weight \(F64\)", id="4-double"),
    ],
)
def test_a_component_is_refused(changes: Mapping[str, tuple[str, tuple[int, ...]]], reason: str) -> None:
    with pytest.raises(CheckpointRefused, match=reason):
        match(changes)


def test_a_tensor_that_is_missing_is_named() -> None:
    found = tensors(FOUND)
    del found["blocks.11.modulation"]
    with pytest.raises(
        CheckpointRefused, match=r"lacks 1 of 3 tensors of transformer: blocks\.11\.modulation; download"
    ):
        matched(T2V, TRANSFORMER, found, EXPECTED, "aio.safetensors")


def test_a_parameter_that_no_table_knows_is_no_guess() -> None:
    bare = msgspec.structs.replace(TRANSFORMER, table=KeyTable({"a": "patch_embedding.weight"}))
    with pytest.raises(CheckpointRefused, match=r"no published key is known for blocks\.0\.ffn"):
        match({}, component=bare)


def test_the_keys_that_are_named_are_some() -> None:
    assert some([f"blocks.{n}" for n in range(9)]) == "blocks.0, blocks.1, blocks.2, blocks.3, blocks.4 and 4 more"
    assert some(["a", "b"]) == "a, b"


FP8 = ("F8_E4M3", (8, 4))


@pytest.mark.parametrize(
    ("found", "scales"),
    [
        pytest.param({"q.weight": FP8, "norm.weight": ("F8_E4M3", (4,))}, {}, id="plain"),
        pytest.param(
            {"q.weight": FP8, "q.scale_weight": ("F32", ()), "scaled_fp8": ("F8_E4M3", (0,))}, ["q"], id="older"
        ),
        pytest.param(
            {"q.weight": FP8, "q.weight_scale": ("F32", (1,)), "q.input_scale": ("F32", ())}, ["q"], id="newer"
        ),
        pytest.param({"q.weight": FP8, "q.weight_scale": ("BF16", (8, 1))}, ["q"], id="rows"),
        # ComfyUI saves a scale of 1 for every linear of a model that has some, whatever its type
        pytest.param({"q.weight": ("BF16", (8, 4)), "q.scale_weight": ("F32", ())}, ["q"], id="of-bf16"),
    ],
)
def test_scales_are_distinguished_from_weights(
    found: Mapping[str, tuple[str, tuple[int, ...]]], scales: list[str]
) -> None:
    weights, found_scales = scaled(tensors(found), "aio.safetensors")
    assert list(weights) == [name for name in found if name.endswith(".weight")]
    assert list(found_scales) == [f"{name}.weight" for name in scales]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param({"q.scale_weight": ("F32", ())}, r"q\.scale_weight \(F32\) is not the one", id="2-no-weight"),
        pytest.param(
            {"q.weight": FP8, "q.scale_weight": ("F32", ()), "q.weight_scale": ("F32", ())},
            r"q\.weight_scale \(F32\) is not the one",
            id="2-two",
        ),
        pytest.param({"q.weight": FP8, "q.weight_scale": ("I8", ())}, r"q\.weight_scale \(I8\)", id="2-integer"),
        pytest.param({"q.weight": FP8, "q.weight_scale": ("F32", (4,))}, "is 4 for a weight of 8x4", id="3-columns"),
        pytest.param({"q.weight": FP8, "q.weight_scale": ("F32", (2, 2))}, "is 2x2 for a weight of 8x4", id="3-blocks"),
        pytest.param(
            {"q.weight": FP8, "k.weight": FP8, "q.scale_weight": ("F32", ())},
            r"k\.weight have no scale",
            id="4-one-lost",
        ),
        pytest.param({"q.weight": FP8, "scaled_fp8": ("F8_E4M3", (0,))}, r"q\.weight have no scale", id="4-all-lost"),
    ],
)
def test_scales_that_cannot_be_applied_are_refused(
    found: Mapping[str, tuple[str, tuple[int, ...]]], reason: str
) -> None:
    with pytest.raises(CheckpointRefused, match=reason):
        scaled(tensors(found), "aio.safetensors")


@pytest.mark.parametrize(("packing", "has_scale"), [("nvfp4", True), ("float8_e5m2", True), ("float8_e4m3fn", False)])
def test_what_is_packed_is_fp8_with_a_scale(packing: str, has_scale: bool) -> None:
    weight = Tensor("q.weight", "F8_E4M3", (8,), "aio.safetensors", packing)
    scale = tensors({"q.weight_scale": ("F32", ())}) if has_scale else {}
    with pytest.raises(CheckpointRefused, match=rf"q\.weight \({packing}\) are not packed as fp8 with a scale"):
        scaled({"q.weight": weight, **scale}, "aio.safetensors")


def test_an_all_in_one_file_is_split_by_its_prefixes() -> None:
    found = {
        "model.diffusion_model.head.modulation": ("BF16", (1,)),
        "text_encoders.umt5xxl.transformer.shared.weight": ("BF16", (1,)),
        "vae.conv1.bias": ("BF16", (1,)),
        "text_encoders.spiece_model": ("U8", (1,)),
    }
    parts = split_all_in_one(T2V, tensors(found), "aio.safetensors")
    assert {name: [*part] for name, part in parts.items()} == {
        "transformer": ["head.modulation"],
        "text_encoder": ["shared.weight"],
        "vae": ["conv1.bias"],
    }
    with pytest.raises(CheckpointRefused, match=r"belong to no component of .*: lora"):
        split_all_in_one(T2V, tensors({**found, "lora": ("BF16", (1,))}), "aio.safetensors")
    del found["vae.conv1.bias"]
    with pytest.raises(CheckpointRefused, match=r"it has no keys vae\.\*"):
        split_all_in_one(T2V, tensors(found), "aio.safetensors")


def test_shards_are_as_small_as_was_said_and_named_as_loaders_look_for_them() -> None:
    moves = matched(T2V, TRANSFORMER, tensors(FOUND), EXPECTED, "aio.safetensors")
    assert [move.size_bytes for move in moves] == [655_360, 64, 96]
    one = shards_of(TRANSFORMER, moves, limit_bytes=10**9)
    assert [shard.path for shard in one] == ["transformer/diffusion_pytorch_model.safetensors"]
    shards = shards_of(TRANSFORMER, moves, limit_bytes=160)
    assert [(shard.path, shard.size_bytes) for shard in shards] == [
        ("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", 655_360),
        ("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", 160),
    ]
    assert [len(shard.moves) for shard in shards_of(TRANSFORMER, moves, limit_bytes=159)] == [1, 1, 1]
    assert json.loads(index_of(shards)) == {
        "metadata": {"total_size": 655_520},
        "weight_map": {
            "patch_embedding.weight": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "blocks.0.ffn.net.0.proj.weight": "diffusion_pytorch_model-00002-of-00002.safetensors",
            "blocks.11.scale_shift_table": "diffusion_pytorch_model-00002-of-00002.safetensors",
        },
    }
    encoder = T2V.components[1]
    assert shards_of(encoder, moves, limit_bytes=10**9)[0].path == "text_encoder/model.safetensors"


def test_a_pipeline_without_a_component_says_so() -> None:
    index = json.loads(model_index(T2V, tokenizer="T5Tokenizer", diffusers_version="1"))
    assert index["transformer_2"] == [None, None]
    assert index["boundary_ratio"] is None
    assert index["tokenizer"] == ["transformers", "T5Tokenizer"]
    assert {each.pipeline for each in (T2V, I2V, MEGA)} == {
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVACEPipeline",
    }
    assert json.loads(model_index(ANISORA, tokenizer="T", diffusers_version="1"))["boundary_ratio"] == 0.9
