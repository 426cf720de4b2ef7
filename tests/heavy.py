"""Pipelines of several hundred MB with random weights, made on the spot: big enough to be seen in resident memory."""

from pathlib import Path
from typing import Final

import diffusers
import transformers
from msgspec.structs import replace

from contracts.settings import Catalog, ModelEntry, Timeouts
from contracts.tasks import GenerationParameters
from lane_worker.pipelines.tiny import ensure_tiny_pipeline

LAYER_BYTES: Final = 37_800_000  # of a transformer layer with the width below, in float32
LAYERS: Final = {"anisora": 9, "phr00t": 22}  # anisora has two transformers


def heavy_models(catalog: Catalog, models_dir: Path) -> dict[str, ModelEntry]:
    """The models of *catalog*, each with a checkpoint of 680 to 830 MB below *models_dir*; made if absent (10 s)."""
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    return {name: _heavy(entry, models_dir) for name, entry in catalog.models.items()}


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


def _heavy(entry: ModelEntry, models_dir: Path) -> ModelEntry:
    layers = LAYERS[entry.name]
    checkpoint = entry.checkpoint
    assert checkpoint.random_weights is not None
    folder = models_dir / f"heavy-{entry.name}"
    if not (folder / "model_index.json").is_file():
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
    experts = checkpoint.random_weights.experts
    return replace(
        entry,
        checkpoint=replace(
            checkpoint, folder=folder.name, random_weights=None, expected_bytes=experts * layers * LAYER_BYTES
        ),
        timeouts=Timeouts(load_s=60, step_s=60, total_s=120),
    )
