"""Pipelines of several hundred MB with random weights, made on the spot: big enough to show in resident memory. For a
card they have several GB, and layers as wide as those of the real models.

`python -m tests.bench.peers.heavy FOLDER` makes them, and settings that name them.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import diffusers
import torch
import transformers
from msgspec import Struct

from contracts.checkpoints import Checkpoint
from contracts.settings import ModelEntry, load_settings
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.tiny import RECIPE, ensure_tiny_pipeline


class Shape(Struct, frozen=True, kw_only=True):
    """The layers of a transformer, and how they are stored. *shard_bytes* is the most for one file."""

    heads: int
    ffn_dim: int
    dtype: str
    head_dim: int
    shard_bytes: int = 2_500_000_000  # as `warmlane models prepare` writes them


NARROW: Final = Shape(heads=12, head_dim=64, ffn_dim=3072, dtype="float32")  # 37.8 MB a layer
WIDE: Final = Shape(heads=40, head_dim=128, ffn_dim=13824, dtype="bfloat16")  # 703 MB a layer, as in Wan 14B
LAYERS: Final = {"anisora": 9, "phr00t": 22}  # anisora has two transformers
SETTINGS: Final = "settings.json"
TIMEOUTS: Final = {"load_s": 60, "step_s": 60, "total_s": 120}


def make_heavy(models_dir: Path) -> Path:
    """A file with the packaged settings, with a checkpoint of 720 to 850 MB for each model of the profile `tiny`. It is
    in *models_dir*, beside the checkpoints. Both are made if absent (10 s)."""
    return make_pipelines(models_dir, LAYERS, NARROW)


def make_pipelines(models_dir: Path, layers: Mapping[str, int], shape: Shape) -> Path:
    """As `make_heavy`, with this many *layers* of *shape* in each transformer of each model."""
    settings = models_dir / SETTINGS
    if settings.is_file():
        return settings
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    text = json.loads(resources.files("contracts").joinpath("inference_settings.json").read_text())
    for name, entry in load_settings().catalog("tiny").models.items():
        folder = models_dir / f"heavy-{name}"
        _build(entry.checkpoint, layers[name], shape, folder)
        tiny = text["models"][name]["profiles"]["tiny"]
        # The recipe stays, and is in the folder: a lane makes an image for a model that turns images into videos.
        tiny["checkpoint"] |= {"folder": folder.name, "dtype": shape.dtype, "expected_bytes": weights_bytes(folder)}
        tiny["timeouts"] = TIMEOUTS
    settings.write_text(json.dumps(text))
    return settings


def weights_bytes(folder: Path) -> int:
    """The size of the weights of the pipeline in *folder*, on disk and, unless their dtype changes, in memory."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def heavy_models(models_dir: Path) -> dict[str, ModelEntry]:
    """The models of the settings that `make_heavy` leaves in *models_dir*."""
    return dict(load_settings(make_heavy(models_dir)).catalog("tiny").models)


def parameters_of(entry: ModelEntry, prompt: str = "weights") -> GenerationParameters:
    """A small video with the model's own number of steps, so that every weight of every transformer is read."""
    steps = entry.constraints.steps.fixed
    assert steps is not None
    return GenerationParameters(
        prompt=prompt,
        negative_prompt="",
        image=None,
        width=32,
        height=32,
        num_frames=entry.constraints.num_frames.minimum or 1,
        fps=8,
        seed=0,
        steps=int(steps),
        cfg=1.0,
    )


def _build(checkpoint: Checkpoint, layers: int, shape: Shape, folder: Path) -> None:
    assert checkpoint.random_weights is not None
    with tempfile.TemporaryDirectory() as made:
        tiny_folder = Path(made, "tiny")
        ensure_tiny_pipeline(checkpoint, checkpoint.random_weights, tiny_folder)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny_folder, local_files_only=True, disable_mmap=True)
        recipe = (tiny_folder / RECIPE).read_bytes()
    for name in ("transformer", "transformer_2"):
        tiny = getattr(pipeline, name, None)
        if tiny is not None:
            width = {"num_attention_heads": shape.heads, "attention_head_dim": shape.head_dim, "ffn_dim": shape.ffn_dim}
            default = torch.get_default_dtype()
            torch.set_default_dtype(
                getattr(torch, shape.dtype)
            )  # not made in float32 first, which takes twice as much memory
            try:
                wide = diffusers.WanTransformer3DModel.from_config({**tiny.config, **width, "num_layers": layers})
            finally:
                torch.set_default_dtype(default)
            pipeline.register_modules(**{name: wide})
    pipeline.save_pretrained(folder, max_shard_size=shape.shard_bytes)
    (folder / RECIPE).write_bytes(recipe)


if __name__ == "__main__":
    make_heavy(Path(sys.argv[1]))
