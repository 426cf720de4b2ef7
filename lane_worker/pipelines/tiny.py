"""Tiny random-weight Wan pipelines, as diffusers folders: the real classes, real videos, no download.

They show no picture worth looking at; they show that everything around the weights works.
"""

import os
import tempfile
from pathlib import Path
from typing import Final

import diffusers
import msgspec
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from contracts.checkpoints import Checkpoint, RandomWeights

RECIPE: Final = "recipe.json"
VERSION: Final = 1  # raise it when a change below makes other weights
TEXT_DIM: Final = 32
LATENT_CHANNELS: Final = 16
# an image-to-video transformer also sees the image's latents and a mask of the VAE's four frames per latent
IMAGE_CHANNELS: Final = LATENT_CHANNELS + 4
# VACE sees two videos' latents, what is kept and what is to be made, and a mask of 8 x 8 pixels per latent
VACE_CHANNELS: Final = 2 * LATENT_CHANNELS + 8 * 8


class _Recipe(msgspec.Struct, frozen=True):
    version: int
    pipeline: str
    weights: RandomWeights
    boundary_ratio: float | None


def ensure_tiny_pipeline(checkpoint: Checkpoint, weights: RandomWeights, folder: Path) -> None:
    """Make sure that *folder* holds the pipeline of this recipe.

    The folder appears complete or not at all, even if another process builds it at the same time. It replaces a folder
    of another recipe.
    """
    recipe = msgspec.json.encode(_Recipe(VERSION, checkpoint.pipeline, weights, checkpoint.boundary_ratio))
    if _recipe_in(folder) == recipe:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as made:
        built = Path(made, "new")
        _build(checkpoint, weights).save_pretrained(built)
        (built / RECIPE).write_bytes(recipe)
        if folder.exists() and _recipe_in(folder) != recipe:
            os.rename(folder, Path(made, "old"))
        try:
            os.rename(built, folder)
        except OSError:
            if _recipe_in(folder) != recipe:  # else another process was faster, with the same weights
                raise


def _recipe_in(folder: Path) -> bytes | None:
    try:
        return (folder / RECIPE).read_bytes()
    except OSError:
        return None


def _build(checkpoint: Checkpoint, weights: RandomWeights) -> diffusers.DiffusionPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        transformers = [_transformer(checkpoint.pipeline) for _ in range(weights.experts)]
        pipeline: diffusers.DiffusionPipeline = getattr(diffusers, checkpoint.pipeline)(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            vae=_vae(),
            scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            transformer=transformers[0],
            transformer_2=transformers[1] if weights.experts == 2 else None,
            boundary_ratio=checkpoint.boundary_ratio,
        )
    return pipeline


def _transformer(pipeline: str) -> diffusers.WanTransformer3DModel | diffusers.WanVACETransformer3DModel:
    shape = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "out_channels": LATENT_CHANNELS,
        "text_dim": TEXT_DIM,
        "freq_dim": 64,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 128,
    }
    if pipeline == "WanVACEPipeline":
        return diffusers.WanVACETransformer3DModel(
            **shape, in_channels=LATENT_CHANNELS, vace_layers=[0, 1], vace_in_channels=VACE_CHANNELS
        )
    image_channels = IMAGE_CHANNELS if pipeline == "WanImageToVideoPipeline" else 0
    return diffusers.WanTransformer3DModel(**shape, in_channels=LATENT_CHANNELS + image_channels)


def _vae() -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(base_dim=3, z_dim=LATENT_CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def _text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=259, d_model=TEXT_DIM, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0)
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    # one token per byte, so any text works; 256 bytes and T5's three special tokens
    pad, end, unknown = "<pad>", "</s>", "<unk>"
    tokens = [pad, end, unknown, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown, model_max_length=512
    )
