"""`warmlane models` on the command line: `prepare`, `list` and `verify`, with what each prints and refuses."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from lane_worker.checkpoints.folder import MANIFEST, read_manifest
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.pipelines.preparing.verifying import verify
from tests.kit.published import ONE, PHR00T, add, changed, prepared, run_models, stopped
from tests.kit.small_checkpoints import (
    SMALL_LAYOUTS,
)

ROOT = Path(__file__).parents[2]


def test_the_command_prepares_verifies_and_lists(phr00t: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "phr00t-aio"
    prepares = ("prepare", "phr00t", "--from", phr00t / "aio.safetensors", "--to", target)
    first = run_models(*prepares)
    assert first.exit_code == 0, first.output
    assert f"prepared: {target} holds Phr00t Rapid AIO, text-to-video build" in first.output
    assert "a lane looks for it" not in first.output
    stamp = (target / MANIFEST).stat().st_mtime_ns
    second = run_models(*prepares)
    assert second.exit_code == 0
    assert f"{target} is prepared already" in second.output
    assert (target / MANIFEST).stat().st_mtime_ns == stamp
    assert run_models("verify", target).exit_code == 0

    stopped(phr00t, tmp_path / "models" / "half")
    (tmp_path / "models" / "foreign").mkdir()
    shown = run_models("list", "--data-dir", tmp_path).output
    assert "whole" in shown
    assert "half.part" in shown
    assert "foreign" in shown

    elsewhere = run_models("prepare", "rapid-aio", "--from", phr00t, "--to", tmp_path / "mine")
    assert "a lane looks for it as phr00t-aio" in elsewhere.output


def test_a_finished_folder_of_something_else_is_left_alone(phr00t: Path, anisora: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    prepared(PHR00T, phr00t, target)
    refused = run_models("prepare", "anisora", "--from", anisora, "--to", target)
    assert refused.exit_code == 1
    assert "holds phr00t t2v, not anisora v3.2" in refused.output
    other = changed(phr00t, tmp_path, add("text_encoders.spiece_model", torch.zeros(999, dtype=torch.uint8)))
    refused = run_models("prepare", "phr00t", "--from", other, "--to", target)
    assert refused.exit_code == 1
    assert "was prepared from other files" in refused.output
    gone = run_models("prepare", "phr00t", "--from", tmp_path / "thrown-away.safetensors", "--to", target)
    assert gone.exit_code == 0, gone.output
    (tmp_path / "mine").mkdir()
    refused = run_models("prepare", "phr00t", "--from", phr00t, "--to", tmp_path / "mine")
    assert refused.exit_code == 1
    assert "has no manifest.json" in refused.output


def test_the_production_layouts_refuse_a_small_file_in_one_line(phr00t: Path, tmp_path: Path) -> None:
    refused = run_models("prepare", "phr00t", "--from", phr00t, "--to", tmp_path / "made", layouts=None)
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: ")
    assert "wrong base model: it holds a transformer of width 24 with 16 input channels" in refused.output
    assert refused.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_command_lines_are_refused(phr00t: Path, tmp_path: Path) -> None:
    assert run_models("prepare", "sora", "--from", phr00t, "--to", tmp_path / "made").exit_code == 2
    absent = run_models("prepare", "phr00t", "--from", tmp_path / "nothing", "--to", tmp_path / "made")
    assert absent.exit_code == 1
    assert "is not there" in absent.output
    single = run_models("prepare", "anisora", "--from", phr00t / "aio.safetensors", "--to", tmp_path / "made")
    assert "is a file; give --from the folder" in single.output
    shutil.copytree(phr00t, tmp_path / "two")
    shutil.copy(phr00t / "aio.safetensors", tmp_path / "two" / "b.safetensors")
    two = run_models("prepare", "phr00t", "--from", tmp_path / "two", "--to", tmp_path / "made")
    assert "holds 2 safetensors files; give --from the one file" in two.output
    assert run_models("verify", tmp_path).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]


def test_a_pipeline_that_no_build_has_is_refused(phr00t: Path, tmp_path: Path) -> None:
    settings = json.loads((ROOT / "contracts" / "inference_settings.json").read_bytes())
    settings["models"]["phr00t"]["profiles"]["production"]["checkpoint"]["pipeline"] = "WanVideoToVideoPipeline"
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    options = ("--from", phr00t, "--to", tmp_path / "made", "--settings", tmp_path / "settings.json")
    refused = run_models("prepare", "phr00t", *options)
    assert refused.exit_code == 1
    assert "no published form is known (known: WanPipeline, WanImageToVideoPipeline, WanVACEPipeline)" in refused.output


def test_verify_reports_every_fault(phr00t: Path, tmp_path: Path) -> None:
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
    refused = run_models("verify", target)
    assert refused.exit_code == 1
    assert "is not whole (5 faults)" in refused.output


def test_verify_compares_keys_and_shapes_with_the_model(phr00t: Path, tmp_path: Path) -> None:
    """A manifest can describe wrong files correctly."""
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
    assert verify(target, SMALL_LAYOUTS, lambda _: None)[1] == ["this version of Warmlane does not know phr00t v99"]
    (target / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, format=3)))
    with pytest.raises(CheckpointRefused, match="has format 3"):
        read_manifest(target)
    (target / MANIFEST).write_text("{")
    with pytest.raises(CheckpointRefused, match="cannot be read"):
        read_manifest(target)
