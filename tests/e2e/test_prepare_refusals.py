"""Published files that `prepare` refuses before it writes: of another model, broken, incomplete or dangerous."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.work_folder import free_bytes_at
from tests.kit.published import (
    ANISORA,
    DIT,
    ONE,
    PHR00T,
    T5,
    VAE,
    Change,
    Q,
    add,
    changed,
    drop,
    prepared,
    run_models,
    sha256,
)
from tests.kit.small_checkpoints import (
    layout,
)


@pytest.mark.parametrize(
    ("change", "error"),
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
        pytest.param(add(f"{Q}.comfy_quant", ONE), r"but in a form that cannot be read", id="comfy_quant-broken"),
        pytest.param(
            add(f"{Q}.comfy_quant", torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)),
            r"q\.weight \(nvfp4\) are not packed as fp8 with a scale",
            id="nvfp4",
        ),
        pytest.param(
            add(f"{Q}x.comfy_quant", torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)),
            r"says how .*qx\.weight are packed, but does not hold them",
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
        pytest.param(drop(VAE), r"is not an all-in-one file: it has no keys vae\.\*", id="no-vae"),
        pytest.param(add(f"{DIT}blocks.2.modulation", ONE), r"does not have: blocks\.2\.modulation", id="a-block-more"),
        pytest.param(add("lora.up", ONE), r"belong to no component of .*: lora\.up", id="stray"),
        pytest.param(
            add(f"{Q}.weight", torch.ones(24, 25)),
            "q.weight is 24x25 instead of 24x24; it is a different model",
            id="shape",
        ),
    ],
)
def test_a_wrong_all_in_one_file_is_refused(change: Change, error: str, phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, change)
    with pytest.raises(CheckpointRefused, match=error) as caught:
        plan(PHR00T, source)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_a_file_without_vace_is_no_mega_build(phr00t: Path) -> None:
    with pytest.raises(CheckpointRefused, match="wrong base model: it holds a transformer without VACE"):
        plan(layout("phr00t", "mega"), phr00t)


@pytest.mark.parametrize("kept", [0, 7, 5_000, -1])
def test_a_truncated_all_in_one_file_is_refused(kept: int, phr00t: Path, tmp_path: Path) -> None:
    source = changed(phr00t, tmp_path, drop())
    whole = source.read_bytes()
    source.write_bytes(whole[:kept])
    with pytest.raises(CheckpointRefused, match="is truncated or not a safetensors file"):
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
    """An object whose unpickling runs code, where that is allowed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(truncate(SHARD, 9_000), f"{SHARD} is truncated or not a safetensors file", id="shard-truncated"),
        pytest.param(remove(SHARD), f"lacks {Path(SHARD).name}, which", id="shard-missing"),
        pytest.param(remove(INDEX), "holds 2 safetensors files and 0 indexes", id="index-missing"),
        pytest.param(write(INDEX, b"{"), "cannot be read", id="index-broken"),
        pytest.param(
            write(INDEX, b'{"weight_map": {"a": "../../x.safetensors"}}'),
            "names files outside its folder",
            id="outside",
        ),
        pytest.param(move_key, r"blocks\.0\.nothing are not where", id="key-missing-in-shard"),
        pytest.param(remove(EXPERT), "lacks low_noise_model of AniSora", id="expert-missing"),
        pytest.param(remove("Wan2.1_VAE.pth"), r"lacks Wan2\.1_VAE\.pth of AniSora .*; give --base", id="vae-missing"),
        pytest.param(
            truncate("Wan2.1_VAE.pth", 50_000), r"Wan2\.1_VAE\.pth is truncated, or holds", id="vae-truncated"
        ),
        pytest.param(save("Wan2.1_VAE.pth", [1]), "is not a plain set of named tensors", id="vae-no-tensors"),
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
def test_broken_published_files_are_refused(
    change: Callable[[Path], object], error: str, anisora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(anisora, tmp_path / "published")
    change(tmp_path / "published")
    with pytest.raises(CheckpointRefused, match=error) as caught:
        plan(ANISORA, tmp_path / "published")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["published"]  # no code from a file has run


def test_a_tokenizer_of_another_model_is_refused(phr00t: Path, tmp_path: Path) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(phr00t / "google" / "umt5-xxl")
    tokens.add_tokens(["one more"])
    tokens.save_pretrained(tmp_path / "tokens")
    with pytest.raises(CheckpointRefused, match="has 260 tokens and the text encoder 259"):
        plan(PHR00T, phr00t, tokenizer=tmp_path / "tokens")


def test_a_file_with_another_sha256_than_the_pinned_one_is_refused(phr00t: Path, anisora: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    prepares = ("prepare", "phr00t", "--from", phr00t, "--to", target, "--sha256")
    refused = run_models(*prepares, "0" * 64)
    assert refused.exit_code == 1
    assert f"has the SHA-256 {sha256(phr00t / 'aio.safetensors')} and not {'0' * 64}" in refused.output
    assert list(tmp_path.iterdir()) == []
    assert run_models(*prepares, sha256(phr00t / "aio.safetensors").upper()).exit_code == 0
    refused = run_models(*prepares, "0" * 64)
    assert refused.exit_code == 1
    assert "was prepared from other files" in refused.output
    assert "is not a SHA-256: it needs 64" in run_models(*prepares, "abc").output
    several = run_models("prepare", "anisora", "--from", anisora, "--to", tmp_path / "other", "--sha256", "0" * 64)
    assert several.exit_code == 2
    assert "consists of several files" in several.output


def test_a_full_disk_is_refused_before_anything_is_written(phr00t: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"has 0\.1 GB free and 0\.1 GB are needed; make room"):
        prepared(PHR00T, phr00t, tmp_path / "deep" / "made", free_bytes=lambda _: 64_000_000)
    assert list(tmp_path.iterdir()) == []
    assert free_bytes_at(tmp_path / "deep" / "made") > 0  # the folder does not exist yet
