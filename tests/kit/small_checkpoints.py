"""Small files of exactly the published layouts: the same keys, fewer blocks, smaller widths. Run as a program, this
forks processes that each prepare one of them and have an accident."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

import diffusers
import msgspec
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import save_file

from contracts.checkpoints import Checkpoint, Scheduler
from contracts.settings import load_settings
from lane_worker.checkpoints.command import command
from lane_worker.checkpoints.layouts import Component, Layout, published_layouts
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.writing import prepare
from lane_worker.pipelines.tiny import ensure_tiny_pipeline

CLONE_NEWNS: Final = 0x20000  # of <sched.h>; `os` has it from Python 3.12 on
SHARD_BYTES: Final = 30_000  # of a transformer of 52 kB and more
SMALL: Final[dict[str, dict[str, Any]]] = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 32,
        "freq_dim": 64,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 128,
    },
    "text_encoder": {
        "vocab_size": 259,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
    },
    "vae": {"base_dim": 2},
}


def small(layout: Layout) -> Layout:
    """*layout* with models of less than a megabyte."""
    return msgspec.structs.replace(
        layout, components=tuple(map(_small, layout.components)), lent=tuple(map(_small, layout.lent))
    )


def _small(component: Component) -> Component:
    config = {**component.config, **SMALL[component.name.removesuffix("_2")]}
    if "vace_layers" in config:
        config["vace_layers"] = [0, 1]
    return msgspec.structs.replace(component, config=config)


SMALL_LAYOUTS: Final = tuple(map(small, published_layouts()))


def layout(model: str, variant: str) -> Layout:
    return next(each for each in SMALL_LAYOUTS if (each.model, each.variant) == (model, variant))


def checkpoint(wanted: Layout, folder: str) -> Checkpoint:
    """The checkpoint as which the production profile would load *folder*, in the layout *wanted*."""
    return Checkpoint(
        pipeline=wanted.pipeline,
        folder=folder,
        dtype="bfloat16",
        scheduler=Scheduler(kind="UniPCMultistepScheduler", flow_shift=5.0),
        boundary_ratio=wanted.index["boundary_ratio"],
    )


def tokenizer(folder: Path) -> Path:
    """Makes a tokenizer in *folder*, as one is published."""
    tiny = load_settings().catalog("tiny").models["phr00t"].checkpoint
    assert tiny.random_weights is not None
    ensure_tiny_pipeline(tiny, tiny.random_weights, folder)
    return folder / "tokenizer"


def original(wanted: Layout, tokenizer_folder: Path) -> Any:
    """A pipeline of random float32 weights, made by the real classes and not by what is tested."""
    torch.manual_seed(7)
    parts = {}
    for component in wanted.components:
        if component.library == "diffusers":
            parts[component.name] = getattr(diffusers, component.kind).from_config(component.config)
        else:
            parts[component.name] = transformers.UMT5EncoderModel(transformers.AutoConfig.for_model(**component.config))
    return getattr(diffusers, wanted.pipeline)(
        tokenizer=transformers.AutoTokenizer.from_pretrained(tokenizer_folder),
        scheduler=getattr(diffusers, wanted.scheduler["_class_name"]).from_config(wanted.scheduler),
        boundary_ratio=wanted.index["boundary_ratio"],
        **{"transformer_2": None, **parts},
    )


def published(wanted: Layout, pipeline: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of *pipeline* under their published names, by component; each name without its prefix."""
    found = {}
    for component in wanted.components:
        state = getattr(pipeline, component.name).state_dict()
        state.pop("encoder.embed_tokens.weight", None)
        found[component.name] = {_source(component, name): value.contiguous() for name, value in state.items()}
    return found


def _source(component: Component, parameter: str) -> str:
    source = component.table.source(parameter)
    assert source is not None, parameter
    return source


def write_all_in_one(wanted: Layout, parts: dict[str, dict[str, torch.Tensor]], path: Path) -> None:
    """Writes a checkpoint as ComfyUI saves it, with what it adds to the weights."""
    tensors = {
        component.source + name: value
        for component in wanted.components
        for name, value in parts[component.name].items()
    }
    tensors["text_encoders.umt5xxl.logit_scale"] = torch.tensor(4.6055)
    tensors["text_encoders.spiece_model"] = torch.zeros(9, dtype=torch.uint8)
    save_file(tensors, path)


def as_phr00t_publishes(parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """*parts* in the types of Phr00t's files; a test compares them with the published sizes (ADR 0028).

    The transformer is in fp8 except for its patch embeddings. The VAE is in 16 bits. UMT5 is as in ComfyUI's
    `umt5_xxl_fp8_e4m3fn_scaled`: fp16, its linears in fp8 with a scale each, and an empty marker.
    """
    transformer = {
        name: value.float() if name.endswith("patch_embedding.weight") else value.to(torch.float8_e4m3fn)
        for name, value in parts["transformer"].items()
    }
    text_encoder = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, value in parts["text_encoder"].items():
        if value.ndim == 2 and not name.endswith(("shared.weight", "relative_attention_bias.weight")):
            scale = value.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            text_encoder[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            text_encoder[f"{name.removesuffix('.weight')}.scale_weight"] = scale
        else:
            text_encoder[name] = value.to(torch.float16)
    vae = {name: value.to(torch.float16) for name, value in parts["vae"].items()}
    return {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}


def write_files(wanted: Layout, parts: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
    """Writes files as the Wan authors publish them: sharded safetensors with an index for each expert, torch files for
    the rest."""
    for component in wanted.components:
        path, tensors = folder / component.source, parts[component.name]
        if path.suffix == ".pth":
            torch.save(tensors, path)
            continue
        path.mkdir(parents=True)
        places = {}
        names = list(tensors)
        halves = (names[: len(names) // 2], names[len(names) // 2 :])
        for number, half in enumerate(halves, start=1):
            file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in half}, path / file)
            places.update(dict.fromkeys(half, file))
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def killed(source: str, target: str, dies_in: str) -> None:
    """Prepares Phr00t's text-to-video build, and is killed when half of the file *dies_in* is on the disk."""

    def save_half(values: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(values, path, metadata)
        if str(path).endswith(f"{dies_in}.part"):
            path.with_name(".tmpA1b2C3").touch()  # safetensors writes such a file first
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    planned = plan(layout("phr00t", "t2v"), Path(source), shard_bytes=SHARD_BYTES)
    with mock.patch("safetensors.torch.save_file", save_half):
        prepare(planned, Path(target), now=datetime.now(UTC), on_progress=lambda *_: None)


def full(source: str, folder: str, size_bytes: str) -> None:
    """Runs the command on a disk of *size_bytes*, mounted at *folder*, which is too small although the command's check
    found room; then on a larger disk.

    Prints exit code, output and files of both runs. No other process sees the mounts.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)

    def run(size: str, *options: str) -> dict[str, Any]:
        subprocess.run(["mount", "-t", "tmpfs", *options, "-o", f"size={size}", "tmpfs", folder], check=True)
        arguments = ["prepare", "phr00t", "--from", source, "--to", f"{folder}/made"]
        result = CliRunner().invoke(command, arguments, obj=SMALL_LAYOUTS)
        files = {
            str(path.relative_to(folder)): path.stat().st_ino for path in Path(folder).rglob("*") if path.is_file()
        }
        return {"code": result.exit_code, "output": result.output, "files": files}

    usage = shutil.disk_usage(folder)
    with mock.patch("shutil.disk_usage", return_value=usage):  # the check sees the room of before the mount
        runs = [run(size_bytes), run("100m", "-o", "remount")]
    print(json.dumps(runs))


def main() -> None:
    """Forks a process for each line of input, and prints its exit code.

    A line is a list: the files for the process's output and errors, an accident, and its arguments. All processes share
    the imports, which are the slow part.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        output, errors, accident, *arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            for number, path in ((1, output), (2, errors)):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
            {"killed": killed, "full": full}[accident](*arguments)
            sys.stdout.flush()
            os._exit(0)  # tearing down all imports would take a second
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
