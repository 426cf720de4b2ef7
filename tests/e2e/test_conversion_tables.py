"""The tables by which `prepare` converts published files agree with diffusers, transformers and the Wan authors."""

import inspect
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)

from lane_worker.checkpoints.layouts import WAN_FLOAT32, Layout, published_layouts
from lane_worker.pipelines.preparing.parameters import parameters_of
from tests.kit.published import ANISORA


@pytest.mark.parametrize("wanted", published_layouts(), ids=lambda wanted: f"{wanted.model}-{wanted.variant}")
def test_every_parameter_of_the_production_models_has_one_source(wanted: Layout) -> None:
    """The source is the one that diffusers' own conversion names."""
    conversions = {
        "WanTransformer3DModel": convert_wan_transformer_to_diffusers,
        "WanVACETransformer3DModel": convert_wan_transformer_to_diffusers,
        "AutoencoderKLWan": convert_wan_vae_to_diffusers,
    }
    # the counts of the Wan authors' classes
    counts = {"WanTransformer3DModel": 1095, "UMT5EncoderModel": 242, "AutoencoderKLWan": 194}
    for component in wanted.components:
        if component.name == "transformer_2":
            continue  # has the table of the first
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


def test_the_modules_kept_in_float32_are_those_of_diffusers() -> None:
    for kind in (diffusers.WanTransformer3DModel, diffusers.WanVACETransformer3DModel):
        assert tuple(kind._keep_in_fp32_modules) == WAN_FLOAT32


@pytest.mark.parametrize("wanted", published_layouts(), ids=lambda wanted: f"{wanted.model}-{wanted.variant}")
def test_the_configurations_name_only_arguments_of_the_classes(wanted: Layout) -> None:
    """A class drops a misspelt argument without a warning, and takes the default."""
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


def test_the_text_encoder_computes_what_the_wan_authors_describe(anisora: Path) -> None:
    """No function of diffusers converts it: the forward pass below follows the authors' description."""
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
