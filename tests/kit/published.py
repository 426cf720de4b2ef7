"""Published files for the tests of `warmlane models`: whole ones, changed ones, and short ways to prepare them."""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from lane_worker.checkpoints.command import command
from lane_worker.checkpoints.folder import Manifest
from lane_worker.checkpoints.layouts import Layout
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.preparing.writing import OnProgress, prepare
from tests.kit.records import small_parameters
from tests.kit.small_checkpoints import (
    SMALL_LAYOUTS,
    checkpoint,
    layout,
    original,
    published,
    write_all_in_one,
    write_files,
)

NOW: Final = datetime(2026, 11, 24, tzinfo=UTC)
ANISORA, PHR00T = layout("anisora", "v3.2"), layout("phr00t", "t2v")
DIT, T5, VAE = (component.source for component in PHR00T.components)
Q: Final = f"{DIT}blocks.0.self_attn.q"
"""A linear of the transformer in an all-in-one file; a weight's name is this and `.weight`."""
ONE: Final = torch.ones(1)
SHARED: Final = ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google")
"""What the Wan authors publish beside the experts."""

Change = Callable[[dict[str, torch.Tensor]], None]


def publish_anisora(folder: Path, tokens: Path) -> Path:
    """The folder `published`, in float32; beside it `original`, the pipeline that it was made from."""
    pipeline = original(ANISORA, tokens)
    pipeline.save_pretrained(folder / "original")
    write_files(ANISORA, published(ANISORA, pipeline), folder / "published")
    shutil.copytree(tokens, folder / "published" / "google" / "umt5-xxl")
    return folder / "published"


def publish_phr00t(folder: Path, tokens: Path) -> Path:
    """The folder `published` with `aio.safetensors`, in bf16 as a lane loads it; beside it `original`."""
    (folder / "published").mkdir()
    write_all_in_one(PHR00T, phr00t_in_bf16(folder, tokens), folder / "published" / "aio.safetensors")
    shutil.copytree(tokens, folder / "published" / "google" / "umt5-xxl")
    return folder / "published"


def phr00t_in_bf16(folder: Path, tokens: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the pipeline that this makes in `original` of *folder*, as a lane loads them."""
    original(PHR00T, tokens).save_pretrained(folder / "original")
    return published(PHR00T, load_pipeline(checkpoint(PHR00T, "original"), folder, device="cpu"))


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


def silent(done_bytes: int, total_bytes: int, file: str) -> None:
    """Takes a progress report and does nothing with it."""


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
    """Prepares *source* in the folder *target*."""
    planned = plan(wanted, source, base=base, shard_bytes=shard_bytes)
    return prepare(planned, target, now=NOW, on_progress=on_progress, **options)


class Stopped(Exception):
    """Ends a run in the middle."""


def stopped(source: Path, target: Path) -> list[str]:
    """A run that ends after its first shard; returns the files of its progress reports."""
    planned = plan(PHR00T, source)
    files: list[str] = []

    def on_progress(done_bytes: int, total_bytes: int, file: str) -> None:
        files.append(file)
        assert total_bytes == planned.source_bytes + planned.size_bytes
        if done_bytes > planned.source_bytes:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(planned, target, now=NOW, on_progress=on_progress)
    return files


def run_models(*arguments: str | Path, layouts: tuple[Layout, ...] | None = SMALL_LAYOUTS) -> Result:
    """`warmlane models` with *arguments*, for small files unless *layouts* says otherwise."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], obj=layouts)


def frames(wanted: Layout, folder: Path) -> Any:
    """What the pipeline in *folder* makes, always from the same seed and prompt."""
    pipeline = load_pipeline(checkpoint(wanted, folder.name), folder.parent, device="cpu")
    parameters = small_parameters(prompt="a red fox", fps=16, seed=11, steps=4)
    return run_pipeline(pipeline, parameters, None, lambda _: None)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all safetensors files in *folder*."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found.update(load_file(path))
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
