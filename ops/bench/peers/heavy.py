"""Pipelines of several hundred MB with random weights, made on the spot: big enough to be seen in resident memory.

`python -m ops.bench.peers.heavy FOLDER` makes them, and settings that name them.
"""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Final

import diffusers
import transformers

from contracts.settings import Checkpoint, ModelEntry, load_settings
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.tiny import ensure_tiny_pipeline

LAYER_BYTES: Final = 37_800_000  # of a transformer layer with the width below, in float32
LAYERS: Final = {"anisora": 9, "phr00t": 22}  # anisora has two transformers
SETTINGS: Final = "settings.json"
TIMEOUTS: Final = {"load_s": 60, "step_s": 60, "total_s": 120}


def make_heavy(models_dir: Path) -> Path:
    """The packaged settings, with a checkpoint of 680 to 830 MB for each model of the profile `tiny`: a file in
    *models_dir*, beside the checkpoints. Both are made if absent (10 s)."""
    settings = models_dir / SETTINGS
    if settings.is_file():
        return settings
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    text = json.loads(resources.files("contracts").joinpath("inference_settings.json").read_text())
    for name, entry in load_settings().catalog("tiny").models.items():
        folder = models_dir / f"heavy-{name}"
        _build(entry.checkpoint, LAYERS[name], folder)
        tiny = text["models"][name]["profiles"]["tiny"]
        experts = tiny["checkpoint"]["random_weights"]["experts"]  # stays: the folder has the recipe of the tiny one
        tiny["checkpoint"] |= {"folder": folder.name, "expected_bytes": experts * LAYERS[name] * LAYER_BYTES}
        tiny["timeouts"] = TIMEOUTS
    settings.write_text(json.dumps(text))
    return settings


def heavy_models(models_dir: Path) -> dict[str, ModelEntry]:
    """The models of the settings that `make_heavy` leaves in *models_dir*."""
    return dict(load_settings(make_heavy(models_dir)).catalog("tiny").models)


def parameters_of(entry: ModelEntry, prompt: str = "weights") -> GenerationParameters:
    """A small picture with the model's own number of steps: every weight of every transformer is read."""
    steps = entry.constraints.steps.fixed
    assert steps is not None
    return GenerationParameters(
        prompt=prompt,
        negative_prompt="",
        image=None,
        width=32,
        height=32,
        num_frames=5,
        fps=8,
        seed=0,
        steps=int(steps),
        cfg=1.0,
    )


def _build(checkpoint: Checkpoint, layers: int, folder: Path) -> None:
    assert checkpoint.random_weights is not None
    ensure_tiny_pipeline(checkpoint, checkpoint.random_weights, folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for name in ("transformer", "transformer_2"):
        tiny = getattr(pipeline, name, None)
        if tiny is not None:
            wide = diffusers.WanTransformer3DModel.from_config(
                {**tiny.config, "num_attention_heads": 12, "attention_head_dim": 64, "ffn_dim": 3072}
                | {"num_layers": layers}
            )
            pipeline.register_modules(**{name: wide})
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    make_heavy(Path(sys.argv[1]))
