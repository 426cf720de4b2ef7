"""`warmlane models`: from small files of the published layouts to folders that a lane loads, and every refusal."""

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import load_file, save_file

from contracts.tasks import GenerationParameters
from lane_worker.checkpoints.command import command
from lane_worker.checkpoints.folder import MANIFEST, Manifest, SourceFile, read_manifest
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import WAN_FLOAT32, Layout, published_layouts
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.preparing.parameters import parameters_of
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.verifying import verify
from lane_worker.pipelines.preparing.work_folder import free_bytes_at
from lane_worker.pipelines.preparing.writing import OnProgress, prepare
from tests.kit.small_checkpoints import (
    SHARD_BYTES,
    SMALL_LAYOUTS,
    as_phr00t_publishes,
    checkpoint,
    layout,
    original,
    published,
    tokenizer,
    write_all_in_one,
    write_files,
)
from tests.kit.support import clean_environment

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 24, tzinfo=UTC)
ANISORA, PHR00T = layout("anisora", "v3.2"), layout("phr00t", "t2v")


def silent(done_bytes: int, total_bytes: int, file: str) -> None:
    """Nobody watches."""


def prepared(
    wanted: Layout,
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    shard_bytes: int = 10**9,
    on_progress: OnProgress = silent,
    **options: Any,
) -> Manifest:
    planned = plan(wanted, source, base=base, shard_bytes=shard_bytes)
    return prepare(planned, target, now=NOW, on_progress=on_progress, **options)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def anisora(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """The folder `published`, in float32; beside it `original`, the pipeline that it was made from."""
    folder = tmp_path_factory.mktemp("anisora")
    pipeline = original(ANISORA, tokens)
    pipeline.save_pretrained(folder / "original")
    write_files(ANISORA, published(ANISORA, pipeline), folder / "published")
    shutil.copytree(tokens, folder / "published" / "google" / "umt5-xxl")
    return folder / "published"


@pytest.fixture(scope="module")
def phr00t(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """The folder `published` with `aio.safetensors`, in bf16 as it is loaded; beside it `original`."""
    folder = tmp_path_factory.mktemp("phr00t")
    original(PHR00T, tokens).save_pretrained(folder / "original")
    pipeline = load_pipeline(checkpoint(PHR00T, "original"), folder, device="cpu")
    (folder / "published").mkdir()
    write_all_in_one(PHR00T, published(PHR00T, pipeline), folder / "published" / "aio.safetensors")
    shutil.copytree(tokens, folder / "published" / "google" / "umt5-xxl")
    return folder / "published"


def frames(wanted: Layout, folder: Path) -> Any:
    pipeline = load_pipeline(checkpoint(wanted, folder.name), folder.parent, device="cpu")
    parameters = GenerationParameters(
        prompt="a red fox",
        negative_prompt="",
        image=None,
        width=32,
        height=32,
        num_frames=5,
        fps=16,
        seed=11,
        steps=4,
        cfg=1.0,
    )
    return run_pipeline(pipeline, parameters, None, lambda _: None)


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wanted", published_layouts(), ids=lambda wanted: f"{wanted.model}-{wanted.variant}")
def test_every_parameter_of_the_production_models_has_one_source(wanted: Layout) -> None:
    """And it is the one that diffusers' own conversion knows."""
    conversions = {
        "WanTransformer3DModel": convert_wan_transformer_to_diffusers,
        "WanVACETransformer3DModel": convert_wan_transformer_to_diffusers,
        "AutoencoderKLWan": convert_wan_vae_to_diffusers,
    }
    # as many as the classes of the Wan authors have
    counts = {"WanTransformer3DModel": 1095, "UMT5EncoderModel": 242, "AutoencoderKLWan": 194}
    for component in wanted.components:
        if component.name == "transformer_2":
            continue  # as the first
        expected = parameters_of(component)
        assert len(expected) == counts.get(component.kind, len(expected))
        sources = {name: component.table.source(name) for name in expected}
        assert len({*sources.values(), None}) == len(expected) + 1
        assert {component.table.target(str(source)) for source in sources.values()} == set(expected)
        if component.kind in conversions:
            found = {str(source): torch.empty(expected[name], device="meta") for name, source in sources.items()}
            converted = conversions[component.kind](dict(found))
            assert {name: tuple(value.shape) for name, value in converted.items()} == expected
            one_by_one = {
                source: next(iter(conversions[component.kind]({source: value}))) for source, value in found.items()
            }
            assert one_by_one == {str(source): name for name, source in sources.items()}


def test_what_is_kept_in_float32_is_what_diffusers_keeps() -> None:
    for kind in (diffusers.WanTransformer3DModel, diffusers.WanVACETransformer3DModel):
        assert tuple(kind._keep_in_fp32_modules) == WAN_FLOAT32


@pytest.mark.parametrize("wanted", published_layouts(), ids=lambda wanted: f"{wanted.model}-{wanted.variant}")
def test_the_configurations_name_what_the_classes_know(wanted: Layout) -> None:
    """A misspelt name would be dropped without a word, and the default taken."""
    configs = [(each.library, each.kind, each.config) for each in wanted.components]
    for library, kind, config in [*configs, ("diffusers", wanted.scheduler["_class_name"], wanted.scheduler)]:
        if library == "diffusers":
            known = {"_class_name", *inspect.signature(getattr(diffusers, kind).__init__).parameters}
            assert config["_class_name"] == kind
        else:
            known = {*transformers.UMT5Config().to_dict()}
        assert config.keys() <= known


def test_the_vae_is_that_of_wan_2_1() -> None:
    vae = published_layouts()[0].components[-1].config
    defaults = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    assert {key: defaults[key].default for key in vae if key != "_class_name"} == {
        key: value for key, value in vae.items() if key != "_class_name"
    }


def test_the_text_encoder_of_the_wan_authors_says_the_same(anisora: Path) -> None:
    """No function of diffusers converts it, so its forward pass is written here from their description."""
    component = ANISORA.components[2]
    weights = torch.load(anisora / component.source, weights_only=True)
    ids = torch.tensor([[5, 9, 200, 1]])
    encoder = transformers.UMT5EncoderModel.from_pretrained(anisora.parent / "original" / "text_encoder")
    buckets = (
        encoder.encoder.block[0]
        .layer[0]
        .SelfAttention._relative_position_bucket(torch.arange(4)[None, :] - torch.arange(4)[:, None])
    )

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weights[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    x = weights["token_embedding.weight"][ids[0]]
    for block in ("blocks.0.", "blocks.1."):
        y = norm(x, f"{block}norm1.weight")
        q, k, v = ((y @ weights[f"{block}attn.{each}.weight"].T).view(4, 4, 8).transpose(0, 1) for each in "qkv")
        bias = weights[f"{block}pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        heads = torch.softmax(q @ k.transpose(1, 2) + bias, dim=-1) @ v
        x = x + heads.transpose(0, 1).reshape(4, 32) @ weights[f"{block}attn.o.weight"].T
        y = norm(x, f"{block}norm2.weight")
        gate = torch.nn.functional.gelu(y @ weights[f"{block}ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (y @ weights[f"{block}ffn.fc1.weight"].T * gate) @ weights[f"{block}ffn.fc2.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids).last_hidden_state[0], norm(x, "norm.weight"))


# ── the conversions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prepared_all_in_one_file_makes_the_same_frames(phr00t: Path, tmp_path: Path) -> None:
    manifest = prepared(PHR00T, phr00t / "aio.safetensors", tmp_path / "phr00t-aio", shard_bytes=SHARD_BYTES)
    assert np.array_equal(frames(PHR00T, tmp_path / "phr00t-aio"), frames(PHR00T, phr00t.parent / "original"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phr00t-aio"]
    assert (manifest.model, manifest.variant, manifest.pipeline) == ("phr00t", "t2v", "WanPipeline")
    aio = phr00t / "aio.safetensors"
    assert manifest.sources == (SourceFile("aio.safetensors", aio.stat().st_size, sha256(aio)),)
    index = json.loads((tmp_path / "phr00t-aio" / "model_index.json").read_bytes())
    made = json.loads((phr00t.parent / "original" / "model_index.json").read_bytes())
    assert index == made


def test_a_prepared_folder_of_two_experts_makes_the_same_frames(anisora: Path, tmp_path: Path) -> None:
    prepared(ANISORA, anisora, tmp_path / "anisora-v3.2")
    assert np.array_equal(frames(ANISORA, tmp_path / "anisora-v3.2"), frames(ANISORA, anisora.parent / "original"))
    index = json.loads((tmp_path / "anisora-v3.2" / "model_index.json").read_bytes())
    assert index == json.loads((anisora.parent / "original" / "model_index.json").read_bytes())
    # the experts are not the same, and not exchanged: high noise first
    key = "blocks.0.attn1.to_q.weight"
    files = [load_all(tmp_path / "anisora-v3.2" / name)[key] for name in ("transformer", "transformer_2")]
    high, low = (
        load_all(anisora / name)["blocks.0.self_attn.q.weight"].to(torch.bfloat16)
        for name in ("high_noise_model", "low_noise_model")
    )
    assert torch.equal(files[0], high)
    assert torch.equal(files[1], low)
    assert not torch.equal(high, low)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found.update(load_file(path))
    return found


@pytest.mark.parametrize("variant", ["i2v", "mega"])
def test_the_other_builds_become_their_own_pipelines(variant: str, tokens: Path, tmp_path: Path) -> None:
    wanted = layout("phr00t", variant)
    pipeline = original(wanted, tokens)
    write_all_in_one(wanted, published(wanted, pipeline), tmp_path / "aio.safetensors")
    planned = plan(wanted, tmp_path / "aio.safetensors", tokenizer=tokens)
    prepare(planned, tmp_path / "made", now=NOW, on_progress=silent)
    loaded = load_pipeline(checkpoint(wanted, "made"), tmp_path, device="cpu")
    assert type(loaded).__name__ == wanted.pipeline
    for name, value in pipeline.transformer.state_dict().items():
        there = loaded.transformer.state_dict()[name]
        assert torch.equal(there, value.to(there.dtype))


def test_shards_are_bf16_but_for_what_is_loaded_in_float32(anisora: Path, tmp_path: Path) -> None:
    prepared(ANISORA, anisora, tmp_path / "made", shard_bytes=SHARD_BYTES)
    dtypes = {
        part: {str(value.dtype) for key, value in load_all(tmp_path / "made" / part).items() if plain(key)}
        for part in ("transformer", "transformer_2", "text_encoder", "vae")
    }
    assert dtypes == {
        "transformer": {"torch.bfloat16"},
        "transformer_2": {"torch.bfloat16"},
        "text_encoder": {"torch.bfloat16"},
        "vae": {"torch.float32"},
    }
    transformer = load_all(tmp_path / "made" / "transformer")
    assert {value.dtype for key, value in transformer.items() if not plain(key)} == {torch.float32}
    shards = sorted((tmp_path / "made" / "transformer").glob("*.safetensors"))
    assert len(shards) >= 2
    assert all(path.stat().st_size < 2 * SHARD_BYTES for path in shards)


def test_shards_may_be_read_by_whoever_may_read_the_rest(phr00t: Path, tmp_path: Path) -> None:
    """safetensors makes files that nobody but their owner may read; a lane may run as another user."""
    prepared(PHR00T, phr00t, tmp_path / "made")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    (tmp_path / "plain").touch()
    assert modes == dict.fromkeys(modes, stat.S_IMODE((tmp_path / "plain").stat().st_mode))


# What AniSora publishes, and what the Wan authors do.
WHOLE = ("high_noise_model", "low_noise_model")
SHARED = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google")


@pytest.fixture
def as_downloaded(anisora: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folders Index-anisora, with one file for each expert of V3.2, and Wan2.2-I2V-A14B, with everything."""
    downloads = tmp_path / "downloads"
    for name in WHOLE:
        (downloads / "Index-anisora" / "V3.2" / name).mkdir(parents=True)
        expert = downloads / "Index-anisora" / "V3.2" / name / "diffusion_pytorch_model.safetensors"
        save_file(load_all(anisora / name), expert)
    shutil.copytree(anisora, downloads / "Wan2.2-I2V-A14B")
    return downloads / "Index-anisora", downloads / "Wan2.2-I2V-A14B"


def test_the_experts_of_anisora_are_joined_with_the_rest_of_wan(
    as_downloaded: tuple[Path, Path], anisora: Path, tmp_path: Path
) -> None:
    """From a whole download or from the folder V3.2, and the same as from one folder with everything."""
    source, base = as_downloaded
    in_one = prepared(ANISORA, anisora, tmp_path / "in-one", shard_bytes=SHARD_BYTES)
    joined = prepared(ANISORA, source, tmp_path / "joined", base=base, shard_bytes=SHARD_BYTES)
    assert joined.files == in_one.files
    experts = {f"V3.2/{name}/diffusion_pytorch_model.safetensors": source for name in WHOLE}
    assert joined.sources == tuple(
        SourceFile(name, (folder / name).stat().st_size, sha256(folder / name))
        for name, folder in sorted({**experts, SHARED[0]: base, SHARED[1]: base}.items())
    )
    planned = plan(ANISORA, source / "V3.2", base=base)
    assert planned.sources.keys() == {*(name.removeprefix("V3.2/") for name in experts), *SHARED[:2]}
    # a second run finds nothing to do
    again = run("prepare", "anisora", "--from", source, "--base", base, "--to", tmp_path / "joined")
    assert again.exit_code == 0, again.output
    assert "is prepared already" in again.output
    # an extra folder around everything
    (tmp_path / "around").mkdir()
    shutil.copytree(anisora, tmp_path / "around" / "V3.2")
    assert len(plan(ANISORA, tmp_path / "around").sources) == 6


def test_a_base_gives_what_is_shared_and_no_expert(as_downloaded: tuple[Path, Path], tmp_path: Path) -> None:
    source, base = as_downloaded
    with pytest.raises(
        CheckpointRefused, match=rf"lacks {SHARED[0]}, {SHARED[1]} of AniSora .*; give --base the folder"
    ):
        plan(ANISORA, source)
    with pytest.raises(CheckpointRefused, match="is not there; give --base what was downloaded"):
        plan(ANISORA, source, base=tmp_path / "nothing")
    shutil.copytree(source / "V3.2", source / "V3.3")
    with pytest.raises(CheckpointRefused, match=r"holds V3\.2, V3\.3; give --from the one of AniSora V3\.2"):
        plan(ANISORA, source, base=base)
    shutil.rmtree(source / "V3.2" / "low_noise_model")
    with pytest.raises(CheckpointRefused, match=r"V3\.2 lacks low_noise_model of AniSora [^;]*; download the rest$"):
        plan(ANISORA, source / "V3.2", base=base)


def test_an_all_in_one_file_may_lie_in_the_folder_of_its_version(phr00t: Path, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "download" / "v10").mkdir(parents=True)
    shutil.copy(phr00t / "aio.safetensors", tmp_path / "download" / "v10" / "aio.safetensors")
    planned = plan(PHR00T, tmp_path / "download", tokenizer=tokens)
    assert planned.sources == {"v10/aio.safetensors": tmp_path / "download" / "v10" / "aio.safetensors"}


def plain(key: str) -> bool:
    return not set(key.split(".")) & set(WAN_FLOAT32)


def test_plain_fp8_is_taken_exactly(phr00t: Path, tmp_path: Path) -> None:
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


@pytest.fixture(scope="module")
def as_published(phr00t: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the types of Phr00t's v9 and v10, in a folder with the tokenizer."""
    folder = tmp_path_factory.mktemp("v10")
    pipeline = load_pipeline(checkpoint(PHR00T, "original"), phr00t.parent, device="cpu")
    write_all_in_one(PHR00T, as_phr00t_publishes(published(PHR00T, pipeline)), folder / "aio.safetensors")
    shutil.copytree(phr00t / "google", folder / "google")
    return folder / "aio.safetensors"


@pytest.mark.parametrize(("variant", "published_bytes"), [("t2v", 21_279_447_035), ("mega", 24_334_432_035)])
def test_these_types_make_files_of_the_published_size(variant: str, published_bytes: int) -> None:
    """To the workflow that ComfyUI writes into a file's metadata: t2v v9 and MEGA v4, as their page tells their sizes.

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
    """The text encoder of an all-in-one file as it is meant: each weight times its scale, in float32, then bf16."""
    own = {key.removeprefix(T5): value for key, value in tensors.items() if key.startswith(T5)}
    scales = {key.rpartition(".")[0]: value for key, value in own.items() if key.endswith(("scale_weight", "_scale"))}
    return {
        key: (value.to(torch.float32) * scales.get(key.removesuffix(".weight"), torch.ones(()))).to(torch.bfloat16)
        for key, value in own.items()
        if key.endswith(".weight")
    }


def test_what_phr00t_publishes_is_read_by_the_published_rule(as_published: Path, tmp_path: Path) -> None:
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
        # half a step of fp8's three bits behind the point, and of bf16's seven; subnormals are steps of 2^-9 of 448
        bound = before.abs() * (2**-4 + 2**-8) + before.abs().max() * 2**-9 / 448
        assert ((packed[key].float() - before.float()).abs() <= bound).all(), key


def test_a_base_lends_what_it_has_in_more_bits(
    as_published: Path, as_downloaded: tuple[Path, Path], tmp_path: Path
) -> None:
    """The example of docs/models/models.md: text encoder and VAE of Wan, the transformer of the file."""
    base, target = as_downloaded[1], tmp_path / "made"
    alone = tmp_path / "v10" / "aio.safetensors"
    alone.parent.mkdir()
    shutil.copy(as_published, alone)
    pinned = sha256(alone)
    command = ("prepare", "phr00t", "--from", alone, "--base", base, "--to", target, "--sha256", pinned)
    made = run(*command)
    assert made.exit_code == 0, made.output
    assert f"taken from --base: {SHARED[1]}, {SHARED[0]}" in made.output
    assert "is prepared already" in run(*command).output
    assert "was prepared from other files" in run(*command[:-1], "0" * 64).output
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
    # a text encoder and a VAE that the file has in as many bits are its own; what it has not at all is the base's
    bare = {key: value for key, value in load_file(alone).items() if not key.startswith((T5, VAE))}
    save_file(bare, alone)
    assert len(plan(PHR00T, alone, base=base).sources) == 3


def test_a_file_with_all_bits_keeps_its_own(phr00t: Path, as_downloaded: tuple[Path, Path]) -> None:
    """As many as the base has: its text encoder is published in bf16, its VAE in float32."""
    encoder = as_downloaded[1] / SHARED[0]
    narrow = {key: value.to(torch.bfloat16) for key, value in torch.load(encoder, weights_only=True).items()}
    torch.save(narrow, encoder)
    assert plan(PHR00T, phr00t, base=as_downloaded[1]).sources.keys() == {"aio.safetensors"}


def newer(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, str]]:
    """The linears of the text encoder in ComfyUI's newer convention; returns what its metadata would say of them."""
    layers = {}
    for key in [key for key in tensors if key.endswith(".scale_weight")]:
        layer = key.removesuffix(".scale_weight")
        tensors[f"{layer}.weight_scale"] = tensors.pop(key)
        tensors[f"{layer}.input_scale"] = torch.tensor(0.5)
        layers[layer] = {"format": "float8_e4m3fn"}
    del tensors[f"{T5}scaled_fp8"]
    return layers


@pytest.mark.parametrize("says", ["nothing", "metadata", "tensors", "a scale for each row"])
def test_the_newer_conventions_are_read_alike(says: str, as_published: Path, tmp_path: Path) -> None:
    tensors = load_file(as_published)
    layers = newer(tensors)
    if says == "tensors":
        for layer, told in layers.items():
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
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


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────

Change = Callable[[dict[str, torch.Tensor]], None]
DIT, T5, VAE = (component.source for component in PHR00T.components)


def changed(phr00t: Path, tmp_path: Path, change: Change) -> Path:
    """A copy of the all-in-one file with other tensors."""
    tensors = load_file(phr00t / "aio.safetensors")
    change(tensors)
    folder = tmp_path / "published"
    shutil.copytree(phr00t, folder)
    save_file(tensors, folder / "aio.safetensors")
    return folder / "aio.safetensors"


def add(key: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({key: value})


def drop(*prefixes: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith(prefixes)]:
            del tensors[key]

    return change


ONE = torch.ones(1)
Q = f"{DIT}blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(
            add(f"{Q}x.scale_weight", ONE), r"self_attn\.qx\.scale_weight \(F32\) is not the one", id="scale-of-nothing"
        ),
        pytest.param(
            add(f"{Q}.weight_scale", torch.ones(3, 1)),
            r"q\.weight_scale is 3x1 for a weight of 24x24",
            id="scale-shape",
        ),
        pytest.param(
            add(f"{Q}.weight_scale_2", ONE), r"does not have: blocks\.0\.self_attn\.q\.weight_scale_2", id="two-scales"
        ),
        pytest.param(add(f"{Q}.comfy_quant", ONE), r"not in a way that can be read", id="comfy_quant-broken"),
        pytest.param(
            add(f"{Q}.comfy_quant", torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)),
            r"q\.weight \(nvfp4\) are not packed as fp8 with a scale",
            id="nvfp4",
        ),
        pytest.param(
            add(f"{Q}x.comfy_quant", torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)),
            r"says how .*qx\.weight are packed, and does not hold them",
            id="comfy_quant-of-nothing",
        ),
        pytest.param(
            add(f"{Q}.weight", torch.ones(24, 24, dtype=torch.int8)), r"integer .*q\.weight \(I8\)", id="int8"
        ),
        pytest.param(
            add(f"{DIT}patch_embedding.weight", torch.ones(24, 36, 1, 2, 2)),
            "wrong base model: it holds a transformer of width 24 with 36 input channels",
            id="image-to-video",
        ),
        pytest.param(
            add(f"{DIT}patch_embedding.weight", torch.ones(3072, 48, 1, 2, 2)),
            "wrong base model: it holds the transformer of Wan 2.2 TI2V-5B",
            id="5b",
        ),
        pytest.param(add(f"{DIT}img_emb.proj.1.weight", ONE), "wrong base model: .* of Wan 2.1", id="wan-2.1-i2v"),
        pytest.param(add(f"{DIT}vace_patch_embedding.weight", ONE), "wrong base model: .*MEGA", id="mega"),
        pytest.param(
            drop(f"{DIT}blocks.1.ffn"), r"lacks 4 of \d+ tensors of transformer: blocks\.1\.ffn", id="missing"
        ),
        pytest.param(drop(f"{T5}shared"), r"lacks 1 of \d+ tensors of text_encoder: shared\.weight", id="missing-t5"),
        pytest.param(drop(VAE), r"no all-in-one file: it has no keys vae\.\*", id="no-vae"),
        pytest.param(add(f"{DIT}blocks.2.modulation", ONE), r"does not have: blocks\.2\.modulation", id="a-block-more"),
        pytest.param(add("lora.up", ONE), r"belong to no component of .*: lora\.up", id="stray"),
        pytest.param(
            add(f"{Q}.weight", torch.ones(24, 25)),
            "q.weight is 24x25 instead of 24x24; it is another model",
            id="shape",
        ),
    ],
)
def test_an_all_in_one_file_is_refused(change: Change, told: str, phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, change)
    with pytest.raises(CheckpointRefused, match=told) as caught:
        plan(PHR00T, source)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_a_file_without_vace_is_no_mega_build(phr00t: Path) -> None:
    with pytest.raises(CheckpointRefused, match="wrong base model: it holds a transformer without VACE"):
        plan(layout("phr00t", "mega"), phr00t)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(drop(f"{T5}encoder.block.0.layer.0.SelfAttention.q.scale"), r"q\.weight have no scale", id="lost"),
        pytest.param(
            add(f"{T5}encoder.block.0.layer.0.SelfAttention.q.weight_scale", ONE), r"is not the one scale", id="two"
        ),
    ],
)
def test_scaled_weights_that_cannot_be_read_rightly_are_refused(
    change: Change, told: str, as_published: Path, tmp_path: Path
) -> None:
    source = changed(as_published.parent, tmp_path, change)
    with pytest.raises(CheckpointRefused, match=told) as caught:
        plan(PHR00T, source)
    assert str(source) in str(caught.value)


def test_a_scale_that_is_no_number_is_refused(as_published: Path, tmp_path: Path) -> None:
    scale = f"{T5}encoder.block.0.layer.0.SelfAttention.q.scale_weight"
    source = changed(as_published.parent, tmp_path, add(scale, torch.tensor(torch.nan)))
    with pytest.raises(CheckpointRefused, match=r"a scale that is no number: .*SelfAttention\.q\.scale_weight"):
        prepared(PHR00T, source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_weights_that_are_packed_by_their_metadata_are_refused(phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, drop())
    layers = {f"{Q}": {"format": "int8_blockwise", "group_size": 128}}
    save_file(load_file(source), source, metadata={"_quantization_metadata": json.dumps({"layers": layers})})
    with pytest.raises(CheckpointRefused, match=r"q\.weight \(int8_blockwise\) are not packed as fp8 with a scale"):
        plan(PHR00T, source)


@pytest.mark.parametrize("kept", [0, 7, 5_000, -1])
def test_a_truncated_all_in_one_file_is_refused(kept: int, phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, drop())
    whole = source.read_bytes()
    source.write_bytes(whole[:kept])
    with pytest.raises(CheckpointRefused, match="is truncated or no safetensors file"):
        plan(PHR00T, source)
    source.write_bytes(b"GGUF" + whole)
    with pytest.raises(CheckpointRefused, match="is a GGUF file"):
        plan(PHR00T, source)


EXPERT = "low_noise_model"
SHARD = f"{EXPERT}/diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = f"{EXPERT}/diffusion_pytorch_model.safetensors.index.json"


def truncate(name: str, size_bytes: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size_bytes)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def save(name: str, content: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / name)


def move_key(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    index["weight_map"]["blocks.0.nothing"] = index["weight_map"]["head.head.weight"]
    (folder / INDEX).write_text(json.dumps(index))


class Code:
    """What runs when it is unpickled, where that is allowed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(truncate(SHARD, 9_000), f"{SHARD} is truncated or no safetensors file", id="shard-truncated"),
        pytest.param(remove(SHARD), f"lacks {Path(SHARD).name}, which", id="shard-missing"),
        pytest.param(remove(INDEX), "holds 2 safetensors files and 0 indexes", id="index-missing"),
        pytest.param(write(INDEX, b"{"), "cannot be read", id="index-broken"),
        pytest.param(
            write(INDEX, b'{"weight_map": {"a": "../../x.safetensors"}}'),
            "names files outside its folder",
            id="outside",
        ),
        pytest.param(move_key, r"blocks\.0\.nothing not where", id="key-missing-in-shard"),
        pytest.param(remove(EXPERT), "lacks low_noise_model of AniSora", id="expert-missing"),
        pytest.param(remove("Wan2.1_VAE.pth"), r"lacks Wan2\.1_VAE\.pth of AniSora .*; give --base", id="vae-missing"),
        pytest.param(
            truncate("Wan2.1_VAE.pth", 50_000), r"Wan2\.1_VAE\.pth is truncated, or holds", id="vae-truncated"
        ),
        pytest.param(save("Wan2.1_VAE.pth", [1]), "is no plain set of named tensors", id="vae-no-tensors"),
        pytest.param(save("Wan2.1_VAE.pth", {}), r"lacks 194 of 194 tensors of vae", id="vae-empty"),
        pytest.param(save("Wan2.1_VAE.pth", {"a": Code()}), "is truncated, or holds more than tensors", id="code"),
        pytest.param(
            remove("google"), r"holds no tokenizer .*give --tokenizer the folder google/umt5-xxl", id="tokens"
        ),
        pytest.param(
            write("google/umt5-xxl/tokenizer.json", b"{}"), "holds a tokenizer that does not load", id="tokens-broken"
        ),
    ],
)
def test_published_files_are_refused(
    change: Callable[[Path], object], told: str, anisora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(anisora, tmp_path / "published")
    change(tmp_path / "published")
    with pytest.raises(CheckpointRefused, match=told) as caught:
        plan(ANISORA, tmp_path / "published")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["published"]  # no code of a file has run


def test_torch_s_old_format_is_read_too(anisora: Path, tmp_path: Path) -> None:
    shutil.copytree(anisora, tmp_path / "published")
    file = tmp_path / "published" / "Wan2.1_VAE.pth"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert len(plan(ANISORA, tmp_path / "published").shards) == 4


def test_a_tokenizer_of_another_model_is_refused(phr00t: Path, tmp_path: Path) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(phr00t / "google" / "umt5-xxl")
    tokens.add_tokens(["one more"])
    tokens.save_pretrained(tmp_path / "tokens")
    with pytest.raises(CheckpointRefused, match="has 260 tokens and the text encoder 259"):
        plan(PHR00T, phr00t, tokenizer=tmp_path / "tokens")


def test_a_full_disk_is_told_before_anything_is_written(phr00t: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"has 0\.1 GB free and 0\.1 GB are needed; make room"):
        prepared(PHR00T, phr00t, tmp_path / "deep" / "made", free_bytes=lambda _: 64_000_000)
    assert list(tmp_path.iterdir()) == []
    assert free_bytes_at(tmp_path / "deep" / "made") > 0  # of a folder that is not there yet


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────


def accident(*arguments: str | Path, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A run of its own, with one of the accidents of tests/kit/small_checkpoints.py."""
    program = [*under, sys.executable, "-m", "tests.kit.small_checkpoints", *map(str, arguments)]
    return subprocess.run(program, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)


def test_a_disk_that_fills_up_is_told_and_the_work_goes_on_when_there_is_room(phr00t: Path, tmp_path: Path) -> None:
    alone = ("unshare", "--mount", "--propagation", "private")
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    done = accident("full", phr00t, tmp_path, "400k", under=alone)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    vae = f"{tmp_path}/made.part/vae/diffusion_pytorch_model.safetensors.part"
    assert (first["code"], first["output"].strip()) == (
        1,
        f"Error: {vae}: No space left on device; what is finished is kept in {tmp_path}/made.part: "
        "run the same command again",
    )
    assert not any(path.startswith(("made/", "made.part/vae/diffusion")) for path in first["files"])
    assert second["code"] == 0, second["output"]
    kept = "transformer/diffusion_pytorch_model.safetensors"
    assert second["files"][f"made/{kept}"] == first["files"][f"made.part/{kept}"]


def test_a_run_that_is_killed_within_a_write_is_taken_up(phr00t: Path, tmp_path: Path) -> None:
    source, target, part = phr00t / "aio.safetensors", tmp_path / "made", tmp_path / "made.part"
    shards = [shard.path for each in plan(PHR00T, source, shard_bytes=SHARD_BYTES).shards for shard in each]
    killed = accident("killed", source, target, shards[2])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(tmp_path.iterdir()) == [part]
    assert (part / f"{shards[2]}.part").is_file()  # a half of it
    assert not (part / shards[2]).exists()
    (part / "vae" / "of-another-version.safetensors").parent.mkdir(exist_ok=True)
    (part / "vae" / "of-another-version.safetensors").write_bytes(b"")
    first, second = ((part / path).stat() for path in shards[:2])
    rotten = (part / shards[1]).read_bytes()
    (part / shards[1]).write_bytes(rotten[:-1] + bytes([rotten[-1] ^ 1]))

    begun = []
    planned = plan(PHR00T, source, shard_bytes=SHARD_BYTES)
    manifest = prepare(planned, target, now=NOW, on_progress=lambda _done, _total, file: begun.append(file))
    assert begun[0] == "aio.safetensors"  # known already, and not read through again
    assert set(begun[1:]) == set(shards)
    assert (target / shards[0]).stat().st_ino == first.st_ino  # kept
    assert (target / shards[1]).stat().st_ino != second.st_ino  # it was rotten, and is written anew
    assert (target / shards[1]).read_bytes() == rotten
    assert sorted(tmp_path.iterdir()) == [target]
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {
        *(file.path for file in manifest.files),
        MANIFEST,
    }
    assert verify(target, SMALL_LAYOUTS, lambda _: None) == (manifest, [])


class Stopped(Exception):
    """In the middle."""


def stopped(source: Path, target: Path) -> list[str]:
    """A run that ends after its first shard, and what it told."""
    planned = plan(PHR00T, source)
    told: list[str] = []

    def on_progress(done_bytes: int, total_bytes: int, file: str) -> None:
        told.append(file)
        assert total_bytes == planned.source_bytes + planned.size_bytes
        if done_bytes > planned.source_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(planned, target, now=NOW, on_progress=on_progress)
    return told


def test_a_source_that_changed_between_two_runs_is_noticed(phr00t: Path, tmp_path: Path) -> None:
    """Even one of the same size and time. A copy of the same content elsewhere is the same, and is read for that."""
    source = changed(phr00t, tmp_path, drop())
    stopped(source, tmp_path / "made")
    shutil.move(source.parent, tmp_path / "moved")
    source = tmp_path / "moved" / "aio.safetensors"
    os.utime(source, ns=(0, 0))
    seen = stopped(source, tmp_path / "made")
    assert "SHA-256 of aio.safetensors" in seen
    before, whole = source.stat(), source.read_bytes()
    with source.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([whole[-1] ^ 1]))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CheckpointRefused, match="was begun from other files"):
        prepared(PHR00T, source, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("during", ["SHA-256 of", "vae/"])
def test_a_source_that_is_written_to_meanwhile_is_refused(during: str, phr00t: Path, tmp_path: Path) -> None:
    """A download that is not complete yet, for example."""
    source = changed(phr00t, tmp_path, drop())

    def on_progress(done_bytes: int, total_bytes: int, file: str) -> None:
        if file.startswith(during):
            with source.open("r+b") as opened:
                opened.seek(-1, os.SEEK_END)
                opened.write(b"x")

    with pytest.raises(CheckpointRefused, match=r"aio\.safetensors was written to while it was read"):
        prepared(PHR00T, source, tmp_path / "made", on_progress=on_progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_another_file_than_the_pinned_one_is_refused(phr00t: Path, anisora: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    prepares = ("prepare", "phr00t", "--from", phr00t, "--to", target, "--sha256")
    refused = run(*prepares, "0" * 64)
    assert refused.exit_code == 1
    assert f"has the SHA-256 {sha256(phr00t / 'aio.safetensors')} and not {'0' * 64}" in refused.output
    assert list(tmp_path.iterdir()) == []
    assert run(*prepares, sha256(phr00t / "aio.safetensors").upper()).exit_code == 0
    refused = run(*prepares, "0" * 64)
    assert refused.exit_code == 1
    assert "was prepared from other files" in refused.output
    assert "is no SHA-256, which has 64" in run(*prepares, "abc").output
    several = run("prepare", "anisora", "--from", anisora, "--to", tmp_path / "other", "--sha256", "0" * 64)
    assert several.exit_code == 2
    assert "is of several files" in several.output


def test_a_work_folder_of_other_files_is_left_alone(phr00t: Path, tmp_path: Path) -> None:
    target, part = tmp_path / "made", tmp_path / "made.part"
    stopped(phr00t, target)
    before = {path: path.read_bytes() for path in part.rglob("*") if path.is_file()}
    other = changed(phr00t, tmp_path, add(f"{DIT}head.head.bias", torch.zeros(64)))
    with pytest.raises(CheckpointRefused, match=r"was begun from other files \(.*--restart to begin anew"):
        prepared(PHR00T, other, target)
    with pytest.raises(CheckpointRefused, match="or by another version of Warmlane"):  # whose shards are others
        prepared(PHR00T, phr00t, target, shard_bytes=SHARD_BYTES)
    assert {path: path.read_bytes() for path in part.rglob("*") if path.is_file()} == before
    prepared(PHR00T, other, target, restart=True)
    assert torch.equal(load_all(target / "transformer")["proj_out.bias"], torch.zeros(64, dtype=torch.bfloat16))


def test_two_processes_do_not_write_the_same_folder(phr00t: Path, tmp_path: Path) -> None:
    stopped(phr00t, tmp_path / "made")
    with (tmp_path / "made.part" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointRefused, match="another process is writing"):
            prepared(PHR00T, phr00t, tmp_path / "made")
    prepared(PHR00T, phr00t, tmp_path / "made")


def test_a_process_that_came_second_does_not_take_the_firsts_work_away(phr00t: Path, tmp_path: Path) -> None:
    """Both saw that there was no work folder; one was faster."""
    begun = tmp_path / "made.part" / "model-00001-of-00002.safetensors"
    with contextlib.ExitStack() as held:

        def is_overtaken(_: Path) -> int:
            begun.parent.mkdir()
            begun.write_bytes(b"hours of work")
            lock = held.enter_context((begun.parent / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            return 1 << 40

        with pytest.raises(CheckpointRefused, match="another process is writing"):
            prepared(PHR00T, phr00t, tmp_path / "made", free_bytes=is_overtaken)
    assert begun.read_bytes() == b"hours of work"


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str | Path, layouts: tuple[Layout, ...] | None = SMALL_LAYOUTS) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], obj=layouts)


def test_the_command_prepares_verifies_and_lists(phr00t: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "phr00t-aio"
    prepares = ("prepare", "phr00t", "--from", phr00t / "aio.safetensors", "--to", target)
    first = run(*prepares)
    assert first.exit_code == 0, first.output
    assert f"prepared: {target} holds Phr00t Rapid AIO, text-to-video build" in first.output
    assert "a lane looks for it" not in first.output
    stamp = (target / MANIFEST).stat().st_mtime_ns
    second = run(*prepares)
    assert second.exit_code == 0
    assert f"{target} is prepared already" in second.output
    assert (target / MANIFEST).stat().st_mtime_ns == stamp
    assert run("verify", target).exit_code == 0

    stopped(phr00t, tmp_path / "models" / "half")
    (tmp_path / "models" / "foreign").mkdir()
    shown = run("list", "--data-dir", tmp_path).output
    assert "whole" in shown
    assert "half.part" in shown
    assert "foreign" in shown

    elsewhere = run("prepare", "rapid-aio", "--from", phr00t, "--to", tmp_path / "mine")
    assert "a lane looks for it as phr00t-aio" in elsewhere.output


def test_a_finished_folder_of_something_else_is_left_alone(phr00t: Path, anisora: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    prepared(PHR00T, phr00t, target)
    refused = run("prepare", "anisora", "--from", anisora, "--to", target)
    assert refused.exit_code == 1
    assert "holds phr00t t2v, not anisora v3.2" in refused.output
    other = changed(phr00t, tmp_path, add("text_encoders.spiece_model", torch.zeros(999, dtype=torch.uint8)))
    refused = run("prepare", "phr00t", "--from", other, "--to", target)
    assert refused.exit_code == 1
    assert "was prepared from other files" in refused.output
    gone = run("prepare", "phr00t", "--from", tmp_path / "thrown-away.safetensors", "--to", target)
    assert gone.exit_code == 0, gone.output
    (tmp_path / "mine").mkdir()
    refused = run("prepare", "phr00t", "--from", phr00t, "--to", tmp_path / "mine")
    assert refused.exit_code == 1
    assert "has no manifest.json" in refused.output


def test_the_production_layouts_refuse_a_small_file_in_one_line(phr00t: Path, tmp_path: Path) -> None:
    refused = run("prepare", "phr00t", "--from", phr00t, "--to", tmp_path / "made", layouts=None)
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ")
    assert "wrong base model: it holds a transformer of width 24 with 16 input channels" in refused.output
    assert refused.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_command_lines_are_refused(phr00t: Path, tmp_path: Path) -> None:
    assert run("prepare", "sora", "--from", phr00t, "--to", tmp_path / "made").exit_code == 2
    absent = run("prepare", "phr00t", "--from", tmp_path / "nothing", "--to", tmp_path / "made")
    assert absent.exit_code == 1
    assert "is not there" in absent.output
    single = run("prepare", "anisora", "--from", phr00t / "aio.safetensors", "--to", tmp_path / "made")
    assert "is a file; give --from the folder" in single.output
    shutil.copytree(phr00t, tmp_path / "two")
    shutil.copy(phr00t / "aio.safetensors", tmp_path / "two" / "b.safetensors")
    two = run("prepare", "phr00t", "--from", tmp_path / "two", "--to", tmp_path / "made")
    assert "holds 2 safetensors files; give --from the one file" in two.output
    assert run("verify", tmp_path).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]


def test_a_pipeline_that_no_build_has_is_refused(phr00t: Path, tmp_path: Path) -> None:
    settings = json.loads((ROOT / "contracts" / "inference_settings.json").read_bytes())
    settings["models"]["phr00t"]["profiles"]["production"]["checkpoint"]["pipeline"] = "WanVideoToVideoPipeline"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    options = ("--from", phr00t, "--to", tmp_path / "made", "--settings", tmp_path / "settings.json")
    refused = run("prepare", "phr00t", *options)
    assert refused.exit_code == 1
    assert "no published form is known (known: WanPipeline, WanImageToVideoPipeline, WanVACEPipeline)" in refused.output


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verify_tells_every_fault(phr00t: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    prepared(PHR00T, phr00t, target)
    (target / "tokenizer" / "tokenizer_config.json").unlink()
    (target / "extra.txt").write_text("not ours")
    with (target / "model_index.json").open("a") as file:
        file.write("\n")
    vae = target / "vae" / "diffusion_pytorch_model.safetensors"
    whole = vae.read_bytes()
    vae.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    manifest, faults = verify(target, SMALL_LAYOUTS, lambda _: None)
    size_bytes = next(file.bytes for file in manifest.files if file.path == "model_index.json")
    assert faults == [
        f"model_index.json has {size_bytes + 1:,} bytes instead of {size_bytes:,}",
        "tokenizer/tokenizer_config.json is missing",
        "extra.txt is not in the manifest",
        "model_index.json is not what was written (its SHA-256 differs)",
        "vae/diffusion_pytorch_model.safetensors is not what was written (its SHA-256 differs)",
    ]
    told = run("verify", target)
    assert told.exit_code == 1
    assert "is not whole (5 faults)" in told.output


def test_verify_holds_keys_and_shapes_to_the_model(phr00t: Path, tmp_path: Path) -> None:
    """A manifest can be right about files that are wrong."""
    target = tmp_path / "made"
    prepared(PHR00T, phr00t, target)
    tensors = load_file(target / "vae" / "diffusion_pytorch_model.safetensors")
    del tensors["quant_conv.bias"]
    tensors["odd"] = torch.zeros(1)
    tensors["post_quant_conv.bias"] = ONE
    save_file(tensors, target / "vae" / "diffusion_pytorch_model.safetensors")
    config = json.loads((target / "text_encoder" / "config.json").read_bytes())
    (target / "text_encoder" / "config.json").write_text(json.dumps({**config, "d_kv": 9}))
    _, faults = verify(target, SMALL_LAYOUTS, lambda _: None)
    assert faults[-4:] == [
        "text_encoder/config.json differs from that of this version of Warmlane",
        "vae lacks quant_conv.bias",
        "vae has tensors that AutoencoderKLWan does not have: odd",
        "vae has tensors of another shape: post_quant_conv.bias",
    ]


def test_a_manifest_of_another_version_is_refused(phr00t: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    manifest = prepared(PHR00T, phr00t, target)
    (target / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, variant="v99")))
    assert verify(target, SMALL_LAYOUTS, lambda _: None)[1] == ["this version of Warmlane knows no phr00t v99"]
    (target / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, format=3)))
    with pytest.raises(CheckpointRefused, match="has format 3"):
        read_manifest(target)
    (target / MANIFEST).write_text("{")
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        read_manifest(target)
