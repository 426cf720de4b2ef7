"""The published files of each model, and the diffusers folder that they become. Data; pure.

AniSora V3.2 has the layout of Wan 2.2 I2V-A14B: two folders of safetensors (the experts), torch files for UMT5 and VAE.
It publishes the experts alone; the rest is Wan's, unchanged.
Phr00t's files are all-in-one: one safetensors file with one transformer, UMT5 and VAE, each under a prefix.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, Literal

from msgspec import Struct

from contracts.nesting import decode_json
from lane_worker.checkpoints.keys import KeyTable, key_table

TOKENIZER_FOLDER: Final = (
    "google/umt5-xxl"  # below the published folder, as in t5_tokenizer of the Wan authors' configs
)
# Modules that diffusers keeps in float32 whatever dtype it is asked for (ADR 0021); a test checks the list.
WAN_FLOAT32: Final = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


class Component(Struct, frozen=True, kw_only=True):
    """One part of a pipeline.

    *source* is a prefix of the keys of an all-in-one file, else a file or folder below the published folder. Parameters
    are written as *dtype*. Those below a module named in *float32* are written as float32 where bfloat16 cannot hold
    every value of the source. A *shared* component is the base model's, and may be taken from that model's folder.
    """

    name: str
    library: Literal["diffusers", "transformers"]
    kind: str
    config: dict[str, Any]
    table: KeyTable
    source: str
    dtype: Literal["BF16", "F32"]
    float32: tuple[str, ...] = ()
    shared: bool = False


class Layout(Struct, frozen=True, kw_only=True):
    """A published form of *model*, and the diffusers folder that it becomes.

    *lent*: the shared components of an all-in-one file, as the base model publishes them.
    """

    model: str
    variant: str
    title: str
    pipeline: str
    form: Literal["files", "all-in-one"]
    components: tuple[Component, ...]
    scheduler: dict[str, Any]
    index: dict[str, Any]
    lent: tuple[Component, ...] = ()

    @property
    def transformer(self) -> Component:
        """The first of the components, which distinguishes one base model from another."""
        return self.components[0]


def _data(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath("data", f"{name}.json").read_bytes()
    return decode_json(text, dict[str, Any])


def _transformer(config: str, source: str, *, name: str = "transformer", vace: bool = False) -> Component:
    return Component(
        name=name,
        library="diffusers",
        kind="WanVACETransformer3DModel" if vace else "WanTransformer3DModel",
        config=_data(config),
        table=key_table("wan_transformer", *(["wan_vace"] if vace else [])),
        source=source,
        dtype="BF16",
        float32=WAN_FLOAT32,
    )


def _text_encoder(table: str, source: str) -> Component:
    return Component(
        name="text_encoder",
        library="transformers",
        kind="UMT5EncoderModel",
        config=_data("text_encoder"),
        table=key_table(table),
        source=source,
        dtype="BF16",
        shared=True,
    )


def _vae(source: str) -> Component:
    return Component(
        name="vae",
        library="diffusers",
        kind="AutoencoderKLWan",
        config=_data("vae"),
        table=key_table("wan_vae"),
        source=source,
        dtype="F32",  # as it is published and loaded: ADR 0021
        shared=True,
    )


def _of_wan() -> tuple[Component, ...]:
    """What Wan 2.1 and 2.2 14B share, as their authors publish it."""
    return _text_encoder("umt5_wan", "models_t5_umt5-xxl-enc-bf16.pth"), _vae("Wan2.1_VAE.pth")


def _anisora() -> Layout:
    return Layout(
        model="anisora",
        variant="v3.2",
        title="AniSora V3.2 (Wan 2.2 I2V-A14B, two experts)",
        pipeline="WanImageToVideoPipeline",
        form="files",
        components=(
            _transformer("transformer_i2v", "high_noise_model"),
            _transformer("transformer_i2v", "low_noise_model", name="transformer_2"),
            *_of_wan(),
        ),
        scheduler=_data("scheduler"),
        index={"boundary_ratio": 0.9, "expand_timesteps": False, "image_encoder": None, "image_processor": None},
    )


def _phr00t(variant: str, title: str, pipeline: str, config: str, index: dict[str, Any]) -> Layout:
    return Layout(
        model="phr00t",
        variant=variant,
        title=f"Phr00t Rapid AIO, {title}",
        pipeline=pipeline,
        form="all-in-one",
        components=(
            _transformer(config, "model.diffusion_model.", vace=variant == "mega"),
            _text_encoder("umt5_comfy", "text_encoders.umt5xxl.transformer."),
            _vae("vae."),
        ),
        scheduler=_data("scheduler_euler"),
        index={"boundary_ratio": None, "transformer_2": None, **index},
        lent=_of_wan(),
    )


def published_layouts() -> tuple[Layout, ...]:
    """Every published form that can be prepared. The pipeline in a model's settings decides which one it needs."""
    plain: Mapping[str, Any] = {"expand_timesteps": False}
    image = {**plain, "image_encoder": None, "image_processor": None}
    return (
        _anisora(),
        _phr00t("t2v", "text-to-video build", "WanPipeline", "transformer_t2v", {**plain}),
        _phr00t("i2v", "image-to-video build", "WanImageToVideoPipeline", "transformer_i2v", image),
        _phr00t("mega", "MEGA (VACE) build", "WanVACEPipeline", "transformer_vace", {}),
    )
