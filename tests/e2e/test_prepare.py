"""`warmlane models prepare`: from small files of the published layouts to folders that a lane loads."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from lane_worker.checkpoints.folder import SourceFile
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import WAN_FLOAT32
from lane_worker.pipelines.load import load_pipeline
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.writing import prepare
from tests.kit.published import ANISORA, NOW, PHR00T, SHARED, frames, load_all, prepared, run_models, sha256, silent
from tests.kit.small_checkpoints import (
    SHARD_BYTES,
    checkpoint,
    layout,
    original,
    published,
    write_all_in_one,
)

# The experts that AniSora publishes.
WHOLE = ("high_noise_model", "low_noise_model")


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
    # the experts differ and are not swapped: high noise comes first
    key = "blocks.0.attn1.to_q.weight"
    files = [load_all(tmp_path / "anisora-v3.2" / name)[key] for name in ("transformer", "transformer_2")]
    high, low = (
        load_all(anisora / name)["blocks.0.self_attn.q.weight"].to(torch.bfloat16)
        for name in ("high_noise_model", "low_noise_model")
    )
    assert torch.equal(files[0], high)
    assert torch.equal(files[1], low)
    assert not torch.equal(high, low)


@pytest.mark.parametrize("variant", ["i2v", "mega"])
def test_each_other_build_becomes_its_own_pipeline(variant: str, tokens: Path, tmp_path: Path) -> None:
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


def test_shards_are_bf16_except_what_is_loaded_in_float32(anisora: Path, tmp_path: Path) -> None:
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


def plain(key: str) -> bool:
    return not set(key.split(".")) & set(WAN_FLOAT32)


def test_shards_have_the_permissions_of_the_other_files(phr00t: Path, tmp_path: Path) -> None:
    """safetensors makes files that only their owner may read, and a lane may run as another user."""
    prepared(PHR00T, phr00t, tmp_path / "made")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    (tmp_path / "plain").touch()
    assert modes == dict.fromkeys(modes, stat.S_IMODE((tmp_path / "plain").stat().st_mode))


def test_the_experts_of_anisora_are_joined_with_the_rest_of_wan(
    as_downloaded: tuple[Path, Path], anisora: Path, tmp_path: Path
) -> None:
    """From a whole download or from the folder V3.2, the result is that of one folder that has everything."""
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
    # a second run has nothing to do
    again = run_models("prepare", "anisora", "--from", source, "--base", base, "--to", tmp_path / "joined")
    assert again.exit_code == 0, again.output
    assert "is prepared already" in again.output
    # an extra folder around everything
    (tmp_path / "around").mkdir()
    shutil.copytree(anisora, tmp_path / "around" / "V3.2")
    assert len(plan(ANISORA, tmp_path / "around").sources) == 6


def test_a_base_lends_what_is_shared_and_no_expert(as_downloaded: tuple[Path, Path], tmp_path: Path) -> None:
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


def test_an_all_in_one_file_is_found_in_the_folder_of_its_version(phr00t: Path, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "download" / "v10").mkdir(parents=True)
    shutil.copy(phr00t / "aio.safetensors", tmp_path / "download" / "v10" / "aio.safetensors")
    planned = plan(PHR00T, tmp_path / "download", tokenizer=tokens)
    assert planned.sources == {"v10/aio.safetensors": tmp_path / "download" / "v10" / "aio.safetensors"}


def test_files_in_torch_s_old_format_are_read(anisora: Path, tmp_path: Path) -> None:
    shutil.copytree(anisora, tmp_path / "published")
    file = tmp_path / "published" / "Wan2.1_VAE.pth"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert len(plan(ANISORA, tmp_path / "published").shards) == 4
