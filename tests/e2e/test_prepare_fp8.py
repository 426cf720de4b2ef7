"""Weights published in fp8, plain or with scales: what `prepare` makes of them, and which it refuses (ADR 0028)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lane_worker.checkpoints.folder import read_manifest
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import published_layouts
from lane_worker.pipelines.preparing.parameters import parameters_of
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.verifying import verify
from tests.kit.published import (
    ANISORA,
    DIT,
    ONE,
    PHR00T,
    SHARED,
    T5,
    VAE,
    Change,
    Q,
    add,
    changed,
    drop,
    frames,
    load_all,
    prepared,
    run_models,
    sha256,
)
from tests.kit.small_checkpoints import (
    SHARD_BYTES,
    SMALL_LAYOUTS,
    as_phr00t_publishes,
)


def test_plain_fp8_is_converted_exactly(phr00t: Path, tmp_path: Path) -> None:
    def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
        for key, value in tensors.items():
            if key.startswith("model.") and value.ndim == 2:
                tensors[key] = value.to(torch.float8_e4m3fn)

    source = changed(phr00t, tmp_path, to_fp8)
    prepared(PHR00T, source, tmp_path / "made")
    packed = load_file(source)["model.diffusion_model.blocks.1.ffn.0.weight"]
    assert packed.dtype == torch.float8_e4m3fn
    written = load_all(tmp_path / "made" / "transformer")["blocks.1.ffn.net.0.proj.weight"]
    assert written.dtype == torch.bfloat16
    assert torch.equal(written.float(), packed.float())


@pytest.mark.parametrize(("variant", "published_bytes"), [("t2v", 21_279_447_035), ("mega", 24_334_432_035)])
def test_the_types_of_phr00t_make_files_of_the_published_size(variant: str, published_bytes: int) -> None:
    """t2v v9 and MEGA v4, whose page states their sizes, without the workflow that ComfyUI writes into the metadata.

    https://huggingface.co/Phr00t/WAN2.2-14B-Rapid-AllInOne/commit/d65d72c402aec9b3f97cb476421d5fbee2018fcc,
    https://huggingface.co/Phr00t/WAN2.2-14B-Rapid-AllInOne/commit/eab89659d732f19a9c70b2137059571234eac43c
    """
    (wanted,) = (each for each in published_layouts() if (each.model, each.variant) == ("phr00t", variant))
    parts = as_phr00t_publishes(
        {
            component.name: {
                str(component.table.source(name)): torch.empty(shape, device="meta")
                for name, shape in parameters_of(component).items()
            }
            for component in wanted.components
        }
    )
    sources = {component.name: component.source for component in wanted.components}
    tensors = {f"{sources[part]}{name}": value for part, values in parts.items() for name, value in values.items()}
    data_bytes = 4_548_313 + sum(value.numel() * value.element_size() for value in tensors.values())  # and spiece.model
    header = {
        name: {"dtype": "F8_E4M3", "shape": list(value.shape), "data_offsets": [data_bytes, data_bytes]}
        for name, value in tensors.items()
    }
    header_bytes = len(json.dumps(header, separators=(",", ":")))
    assert 0 < published_bytes - data_bytes - header_bytes < 120_000


def by_the_rule(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder of an all-in-one file by the rule: each weight times its scale in float32, then bf16."""
    own = {key.removeprefix(T5): value for key, value in tensors.items() if key.startswith(T5)}
    scales = {key.rpartition(".")[0]: value for key, value in own.items() if key.endswith(("scale_weight", "_scale"))}
    return {
        key: (value.to(torch.float32) * scales.get(key.removesuffix(".weight"), torch.ones(()))).to(torch.bfloat16)
        for key, value in own.items()
        if key.endswith(".weight")
    }


def test_scaled_weights_of_phr00t_are_read_by_the_published_rule(as_published: Path, tmp_path: Path) -> None:
    prepared(PHR00T, as_published, tmp_path / "made", shard_bytes=SHARD_BYTES)
    tensors = load_file(as_published)
    assert tensors[f"{T5}encoder.block.1.layer.0.SelfAttention.q.scale_weight"].shape == ()
    written, meant = load_all(tmp_path / "made" / "text_encoder"), by_the_rule(tensors)
    assert written.keys() == meant.keys()
    assert all(torch.equal(written[key], meant[key]) for key in meant)
    expected = load_all(tmp_path / "made" / "transformer")["blocks.1.ffn.net.0.proj.weight"]
    assert torch.equal(expected.float(), tensors[f"{DIT}blocks.1.ffn.0.weight"].float())
    patch = load_all(tmp_path / "made" / "transformer")["patch_embedding.weight"]
    assert torch.equal(patch, tensors[f"{DIT}patch_embedding.weight"].to(torch.bfloat16))
    vae = load_all(tmp_path / "made" / "vae")["quant_conv.weight"]
    assert torch.equal(vae, tensors[f"{VAE}conv1.weight"].float())
    assert verify(tmp_path / "made", SMALL_LAYOUTS, lambda _: None)[1] == []
    assert frames(PHR00T, tmp_path / "made").shape == (5, 32, 32, 3)


def test_the_dequantised_weights_are_those_that_were_packed(as_published: Path, phr00t: Path, tmp_path: Path) -> None:
    prepared(PHR00T, as_published, tmp_path / "made")
    packed = load_all(tmp_path / "made" / "text_encoder")
    for key, before in load_all(phr00t.parent / "original" / "text_encoder").items():
        # half a step of fp8's three fraction bits and of bf16's seven; a subnormal step is 2^-9 of 448
        bound = before.abs() * (2**-4 + 2**-8) + before.abs().max() * 2**-9 / 448
        assert ((packed[key].float() - before.float()).abs() <= bound).all(), key


def test_a_base_lends_what_it_has_in_more_bits(
    as_published: Path, as_downloaded: tuple[Path, Path], tmp_path: Path
) -> None:
    """The example of docs/models/models.md: text encoder and VAE are Wan's, the transformer is the file's."""
    base, target = as_downloaded[1], tmp_path / "made"
    alone = tmp_path / "v10" / "aio.safetensors"
    alone.parent.mkdir()
    shutil.copy(as_published, alone)
    pinned = sha256(alone)
    command = ("prepare", "phr00t", "--from", alone, "--base", base, "--to", target, "--sha256", pinned)
    made = run_models(*command)
    assert made.exit_code == 0, made.output
    assert f"taken from --base: {SHARED[1]}, {SHARED[0]}" in made.output
    assert "is prepared already" in run_models(*command).output
    assert "was prepared from other files" in run_models(*command[:-1], "0" * 64).output
    assert [file.path for file in read_manifest(target).sources] == [SHARED[1], "aio.safetensors", SHARED[0]]
    lent = ANISORA.components[2]
    theirs = {lent.table.target(key): value for key, value in torch.load(base / SHARED[0], weights_only=True).items()}
    ours = load_all(target / "text_encoder")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[str(key)], value.to(torch.bfloat16)) for key, value in theirs.items())
    vae = torch.load(base / SHARED[1], weights_only=True)["conv1.weight"]
    assert torch.equal(load_all(target / "vae")["quant_conv.weight"], vae)
    q = load_all(target / "transformer")["blocks.0.attn1.to_q.weight"]
    assert torch.equal(q.float(), load_file(alone)[f"{Q}.weight"].float())
    # the base also lends a text encoder and a VAE that the file does not hold at all
    bare = {key: value for key, value in load_file(alone).items() if not key.startswith((T5, VAE))}
    save_file(bare, alone)
    assert len(plan(PHR00T, alone, base=base).sources) == 3


def test_a_file_with_as_many_bits_as_the_base_keeps_its_own_weights(
    phr00t: Path, as_downloaded: tuple[Path, Path]
) -> None:
    """The base publishes its text encoder in bf16 here, and its VAE in float32."""
    encoder = as_downloaded[1] / SHARED[0]
    narrow = {key: value.to(torch.bfloat16) for key, value in torch.load(encoder, weights_only=True).items()}
    torch.save(narrow, encoder)
    assert plan(PHR00T, phr00t, base=as_downloaded[1]).sources.keys() == {"aio.safetensors"}


def newer(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """Rewrites the text encoder's linears to ComfyUI's newer convention; returns their entries in the metadata."""
    layers = {}
    for key in [key for key in tensors if key.endswith(".scale_weight")]:
        layer = key.removesuffix(".scale_weight")
        tensors[f"{layer}.weight_scale"] = tensors.pop(key)
        tensors[f"{layer}.input_scale"] = torch.tensor(0.5)
        layers[layer] = {"format": "float8_e4m3fn"}
    del tensors[f"{T5}scaled_fp8"]
    return layers


@pytest.mark.parametrize("says", ["nothing", "metadata", "tensors", "a scale for each row"])
def test_the_newer_conventions_are_read_by_the_same_rule(says: str, as_published: Path, tmp_path: Path) -> None:
    tensors = load_file(as_published)
    layers = newer(tensors)
    if says == "tensors":
        for layer, entry in layers.items():
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)
    elif says == "a scale for each row":
        for layer in layers:
            rows = tensors[f"{layer}.weight"].shape[0]
            tensors[f"{layer}.weight_scale"] = torch.linspace(0.001, 0.002, rows).reshape(rows, 1)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    shutil.copytree(as_published.parent, tmp_path / "published")
    source = tmp_path / "published" / "aio.safetensors"
    save_file(tensors, source, metadata=metadata if says == "metadata" else None)
    prepared(PHR00T, source, tmp_path / "made")
    written, meant = (
        load_all(tmp_path / "made" / "text_encoder"),
        by_the_rule({key: value for key, value in tensors.items() if not key.endswith(".input_scale")}),
    )
    assert written.keys() == meant.keys()
    assert all(torch.equal(written[key], meant[key]) for key in meant)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(drop(f"{T5}encoder.block.0.layer.0.SelfAttention.q.scale"), r"q\.weight have no scale", id="lost"),
        pytest.param(
            add(f"{T5}encoder.block.0.layer.0.SelfAttention.q.weight_scale", ONE), r"is not the one scale", id="two"
        ),
    ],
)
def test_scaled_weights_without_exactly_one_scale_are_refused(
    change: Change, error: str, as_published: Path, tmp_path: Path
) -> None:
    source = changed(as_published.parent, tmp_path, change)
    with pytest.raises(CheckpointRefused, match=error) as caught:
        plan(PHR00T, source)
    assert str(source) in str(caught.value)


def test_a_scale_that_is_no_number_is_refused(as_published: Path, tmp_path: Path) -> None:
    scale = f"{T5}encoder.block.0.layer.0.SelfAttention.q.scale_weight"
    source = changed(as_published.parent, tmp_path, add(scale, torch.tensor(torch.nan)))
    with pytest.raises(
        CheckpointRefused, match=r"a scale that is not a finite number: .*SelfAttention\.q\.scale_weight"
    ):
        prepared(PHR00T, source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_weights_that_the_metadata_calls_int8_are_refused(phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, drop())
    layers = {f"{Q}": {"format": "int8_blockwise", "group_size": 128}}
    save_file(load_file(source), source, metadata={"_quantization_metadata": json.dumps({"layers": layers})})
    with pytest.raises(CheckpointRefused, match=r"q\.weight \(int8_blockwise\) are not packed as fp8 with a scale"):
        plan(PHR00T, source)
