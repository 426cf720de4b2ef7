"""The options of a checkpoint, with real pipelines on a CPU; what needs a card is in tests/gpu/test_options.py."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import mpmath
import msgspec
import numpy as np
import pytest
import torch
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from transformers import UMT5EncoderModel

from contracts.checkpoints import AttentionBackend, Checkpoint, GroupOffload, Scheduler, SchedulerKind
from contracts.fit import KEPT_FLOAT32, KEPT_FLOAT32_IN_FLOAT16, NOT_CAST, StoredTensor, loaded, need
from contracts.settings import Catalog, load_settings
from lane_worker.checkpoints.layouts import published_layouts
from lane_worker.pipelines.cleanup import Watched, release
from lane_worker.pipelines.load import CheckpointUnusable, load_pipeline, run_pipeline, with_suffix
from lane_worker.pipelines.load import _scheduler as scheduler_of
from lane_worker.pipelines.preparing.parameters import parameters_of
from lane_worker.pipelines.rehearsal import rehearse
from lane_worker.pipelines.sigmas import beta_levels
from lane_worker.pipelines.video import Frames
from lane_worker.residence.fit import PACKAGES
from lane_worker.residence.rehearsal import to_rehearse
from lane_worker.runtime.warm_up import fewest_steps
from ops.machine.weights import weights_of
from tests.kit.records import small_parameters

MODELS = ("anisora", "phr00t")
CAST = {"layerwise_casting": "float8_e4m3fn"}
BETA = Scheduler(kind="FlowMatchEulerDiscreteScheduler", flow_shift=8.0, sigmas="beta")
BLOCKS = {"offload": "group", "group_offload": GroupOffload(level="block", blocks=2, stream=False)}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_settings().catalog("tiny")


@pytest.fixture(scope="module")
def plain_frames(catalog: Catalog, models_dir: Path) -> dict[str, Frames]:
    """The frames of each model without any option."""
    return {model: frames(load_pipeline(options(catalog, model), models_dir, device="cpu")) for model in MODELS}


def options(catalog: Catalog, model: str, **changes: Any) -> Checkpoint:
    return msgspec.structs.replace(catalog.models[model].checkpoint, **{"dtype": "bfloat16", **changes})


def frames(pipeline: Any, **changes: Any) -> Frames:
    return run_pipeline(pipeline, small_parameters(**changes), None, lambda _: None)


# ── what is loaded is what was counted ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "changes",
    [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float16"}, CAST, {"dtype": "float16", **CAST}],
    ids=["float32", "bfloat16", "float16", "bfloat16-float8", "float16-float8"],
)
def test_a_loaded_pipeline_holds_the_bytes_that_were_counted(
    catalog: Catalog, models_dir: Path, model: str, changes: dict[str, Any]
) -> None:
    checkpoint = options(catalog, model, **changes)
    pipeline = load_pipeline(checkpoint, models_dir, device="cpu")
    components = weights_of(models_dir / checkpoint.folder)
    assert components is not None
    held = {
        name: sum(parameter.numel() * parameter.element_size() for parameter in component.parameters())
        for name, component in pipeline.components.items()
        if isinstance(component, torch.nn.Module)
    }
    assert {name: loaded(name, tensors, checkpoint).bytes for name, tensors in components.items()} == held


def test_the_lists_of_what_is_kept_are_those_of_the_libraries() -> None:
    for kind in (diffusers.WanTransformer3DModel, diffusers.WanVACETransformer3DModel):
        assert set(kind._keep_in_fp32_modules) == KEPT_FLOAT32
        patterns = {*DEFAULT_SKIP_MODULES_PATTERN, *kind._skip_layerwise_casting_patterns, *KEPT_FLOAT32}
        assert {pattern.removeprefix("vace_") for pattern in patterns} == set(NOT_CAST)
    assert set(UMT5EncoderModel._keep_in_fp32_modules) == KEPT_FLOAT32_IN_FLOAT16


def test_the_packaged_figures_are_those_of_the_published_shapes() -> None:
    """`expected_bytes`, which docs/models/models.md and docs/models/checkpoint-options.md state in gigabytes."""
    for name, entry in load_settings().catalog("production").models.items():
        layout = next(
            each for each in published_layouts() if (each.model, each.pipeline) == (name, entry.checkpoint.pipeline)
        )
        shapes = {
            component.name: tuple(
                StoredTensor(parameter, "bfloat16", math.prod(shape))
                for parameter, shape in parameters_of(component).items()
            )
            for component in layout.components
        }
        needed = need(shapes, entry.checkpoint, on_card=True).card_bytes
        assert needed == entry.checkpoint.expected_bytes + entry.checkpoint.activation_bytes


# ── offloading and casting ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "changes",
    [
        {"device_map": True},
        {"offload": "model"},
        {"offload": "group"},
        BLOCKS,
        CAST,
        {"offload": "model", **CAST},
        {"offload": "group", **CAST},
    ],
    ids=["device-map", "model", "leaf", "block", "float8", "model-float8", "leaf-float8"],
)
def test_hooks_change_no_frame_and_leave_nothing_alive(
    catalog: Catalog, models_dir: Path, plain_frames: dict[str, Frames], model: str, changes: dict[str, Any]
) -> None:
    """Design §7: `_unload` in the pipeline host is enough for all hooks, also after a run."""
    expected = plain_frames[model]
    pipeline = load_pipeline(options(catalog, model, **changes), models_dir, device="cpu")
    made = frames(pipeline)
    if "layerwise_casting" in changes:
        assert pipeline.transformer.blocks[0].attn1.to_q.weight.dtype is torch.float8_e4m3fn
        difference = np.abs(made.astype(int) - expected.astype(int))
        assert difference.mean() < 1  # of 255: the picture is the same
    else:
        assert np.array_equal(made, expected)
    hooked = {name for name, each in pipeline.components.items() if _has_hook(each)}
    transformers = {"transformer", "transformer_2"} if model == "anisora" else {"transformer"}
    if changes.get("offload") == "model":
        assert hooked == {*transformers, "text_encoder", "vae"}
    else:
        assert hooked == ({*transformers, "text_encoder"} if "offload" in changes else transformers)
    watched = Watched(pipeline)
    pipeline.remove_all_hooks()
    del pipeline
    release("cpu")
    assert watched.still_alive() == ()


def _has_hook(component: Any) -> bool:
    if not isinstance(component, torch.nn.Module):
        return False
    return any(hasattr(each, "_hf_hook") or hasattr(each, "_diffusers_hook") for each in component.modules())


def test_the_vae_and_the_text_encoder_are_never_cast(catalog: Catalog, models_dir: Path) -> None:
    pipeline = load_pipeline(options(catalog, "phr00t", **CAST), models_dir, device="cpu")
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pipeline.text_encoder.parameters()} == {torch.bfloat16}
    assert pipeline.transformer.patch_embedding.weight.dtype is torch.bfloat16
    assert pipeline.transformer.blocks[0].norm2.weight.dtype is torch.float32


# ── tiling ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("width", "same"), [(256, True), (272, False)])
def test_tiles_are_for_what_is_larger_than_one(catalog: Catalog, models_dir: Path, width: int, same: bool) -> None:
    whole = load_pipeline(options(catalog, "phr00t"), models_dir, device="cpu")
    tiled = load_pipeline(options(catalog, "phr00t", vae_tiling=True), models_dir, device="cpu")
    pair = [frames(each, width=width, steps=1) for each in (whole, tiled)]
    assert pair[0].shape == pair[1].shape == (5, 32, width, 3)
    assert np.array_equal(pair[0], pair[1]) is same


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_backends_of_the_settings_are_those_that_diffusers_has_for_a_card() -> None:
    known = {backend.value for backend in AttentionBackendName}
    elsewhere = {name for name in known if name.endswith("_hub")} | {"_native_npu", "_native_xla"}
    assert set(get_args(AttentionBackend)) == known - elsewhere
    assert set(PACKAGES) == {name for name in known - elsewhere if "native" not in name and name != "flex"}


@pytest.mark.parametrize("backend", ["_native_math", "_native_flash", "_native_efficient"])
def test_a_backend_makes_the_same_picture(catalog: Catalog, models_dir: Path, backend: str) -> None:
    expected = frames(load_pipeline(options(catalog, "anisora"), models_dir, device="cpu"))
    pipeline = load_pipeline(options(catalog, "anisora", attention_backend=backend), models_dir, device="cpu")
    for transformer in (pipeline.transformer, pipeline.transformer_2):
        assert {block.attn1.processor._attention_backend.value for block in transformer.blocks} == {backend}
    if backend != "_native_efficient":  # a CPU does not have this one
        assert np.abs(frames(pipeline).astype(int) - expected.astype(int)).max() <= 8


def test_a_backend_does_not_become_that_of_the_next_model(catalog: Catalog, models_dir: Path) -> None:
    """diffusers makes the backend the default of the process, and the degraded worker loads the next model in the same
    process."""
    load_pipeline(options(catalog, "anisora", attention_backend="_native_cudnn"), models_dir, device="cpu")
    following = load_pipeline(options(catalog, "phr00t"), models_dir, device="cpu")
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE
    assert frames(following).shape == (5, 32, 32, 3)


def test_a_backend_that_is_not_installed_is_refused(catalog: Catalog, models_dir: Path) -> None:
    with pytest.raises(CheckpointUnusable, match=r"checkpoint\.attention_backend sage: .* install `sageattention"):
        load_pipeline(options(catalog, "phr00t", attention_backend="sage"), models_dir, device="cpu")


# ── scheduler, boundary, prompt ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", get_args(SchedulerKind))
def test_every_scheduler_of_the_settings_runs_with_its_shift(
    catalog: Catalog, models_dir: Path, kind: SchedulerKind
) -> None:
    pair = []
    for shift in (1.0, 8.0):
        wanted = Scheduler(kind=kind, flow_shift=shift)
        pipeline = load_pipeline(options(catalog, "phr00t", scheduler=wanted), models_dir, device="cpu")
        assert type(pipeline.scheduler).__name__ == kind
        pair.append(frames(pipeline, steps=4))
        # the scheduler drops its state, and draws nothing but by the seed
        assert np.array_equal(frames(pipeline, steps=4), pair[-1])
    assert not np.array_equal(pair[0], pair[1])


def test_a_scheduler_takes_the_flow_for_a_flow_whatever_the_folders_was(catalog: Catalog, tmp_path: Path) -> None:
    unipc = Scheduler(kind="UniPCMultistepScheduler", flow_shift=3.0)
    checkpoint = options(catalog, "phr00t", scheduler=unipc)
    expected = load_pipeline(checkpoint, tmp_path, device="cpu")
    other = options(catalog, "phr00t", scheduler=unipc, random_weights=None, folder="other")
    saved = load_pipeline(checkpoint, tmp_path, device="cpu")
    saved.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    saved.save_pretrained(tmp_path / "other")
    assert np.array_equal(frames(load_pipeline(other, tmp_path, device="cpu")), frames(expected))


def test_the_steps_of_phr00t_lie_where_its_authors_workflow_puts_them(catalog: Catalog, models_dir: Path) -> None:
    """In the tiny profile too, whatever scheduler the folder has."""
    production = load_settings().catalog("production").models["phr00t"].checkpoint
    tiny = options(catalog, "phr00t")
    assert tiny.scheduler == production.scheduler == BETA
    load_pipeline(tiny, models_dir, device="cpu")
    config = json.loads((models_dir / tiny.folder / "scheduler" / "scheduler_config.json").read_bytes())
    own = {"_class_name": BETA.kind, "use_karras_sigmas": True, "stochastic_sampling": True, "shift": 1.0}
    shutil.copytree(models_dir / tiny.folder, models_dir / "other")
    (models_dir / "other" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | own))
    for folder in (tiny.folder, "other"):
        weights = tiny.random_weights if folder == tiny.folder else None
        pipeline = load_pipeline(
            options(catalog, "phr00t", folder=folder, random_weights=weights), models_dir, device="cpu"
        )
        first = frames(pipeline, steps=4)
        pipeline.scheduler.set_timesteps(4)
        assert [round(float(sigma), 4) for sigma in pipeline.scheduler.sigmas] == [1.0, 0.974, 0.8893, 0.6324, 0.0]
        assert np.array_equal(frames(pipeline, steps=4), first)


@pytest.mark.parametrize("steps", [1, 4, 9, 50])
def test_the_levels_are_those_of_comfyui(steps: int) -> None:
    """`beta_scheduler` of the ComfyUI that `beta_levels` names, with mpmath in the place of scipy."""

    def quantile(wanted: float) -> float:
        if wanted == 1:
            return 1.0
        return float(
            mpmath.findroot(
                lambda x: mpmath.betainc(0.6, 0.6, 0, x, regularized=True) - wanted,
                (1e-9, 1 - 1e-9),
                solver="anderson",
            )
        )

    expected = [(round(quantile(1 - step / steps) * 999) + 1) / 1000 for step in range(steps)]
    assert beta_levels(steps).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_boundary_decides_which_expert_runs(catalog: Catalog, models_dir: Path) -> None:
    pair = []
    for boundary in (0.01, 0.99):
        pipeline = load_pipeline(options(catalog, "anisora"), models_dir, device="cpu")
        pipeline.register_to_config(boundary_ratio=boundary)
        pair.append(frames(pipeline))
    assert not np.array_equal(pair[0], pair[1])


@pytest.mark.parametrize(("model", "boundary"), [("phr00t", 0.9), ("anisora", None)])
def test_a_boundary_needs_two_experts_and_they_need_one(
    catalog: Catalog, tmp_path: Path, model: str, boundary: float | None
) -> None:
    checkpoint = options(catalog, model, boundary_ratio=boundary)
    with pytest.raises(CheckpointUnusable, match=r"set checkpoint\.boundary_ratio where there are two"):
        load_pipeline(checkpoint, tmp_path, device="cpu")


def test_a_suffix_follows_the_prompt_of_the_pipeline_alone() -> None:
    accepted = small_parameters(prompt="a cat", negative_prompt="grey")
    assert with_suffix(accepted, "").prompt == "a cat"
    shown = with_suffix(accepted, "There is no text.")
    assert (shown.prompt, shown.negative_prompt) == ("a cat There is no text.", "grey")
    assert accepted.prompt == "a cat"


@pytest.mark.parametrize("kind", get_args(SchedulerKind))
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0])
def test_the_fewest_steps_of_a_warm_up_come_to_both_experts(kind: SchedulerKind, shift: float) -> None:
    """Each expert has steps of its own. The warm-up finds the fewest steps for both by one rule."""
    anisora = load_settings().catalog("production").models["anisora"].checkpoint
    sigmas: tuple[Literal["even", "beta"], ...] = ("even",)
    if kind == "FlowMatchEulerDiscreteScheduler":
        sigmas = ("even", "beta")
    for boundary, placed in itertools.product((0.5, 0.875, 0.9), sigmas):
        wanted = Scheduler(kind=kind, flow_shift=shift, sigmas=placed)
        checkpoint = msgspec.structs.replace(anisora, scheduler=wanted, boundary_ratio=boundary)
        scheduler = scheduler_of(wanted, diffusers.UniPCMultistepScheduler(use_flow_sigmas=True).config)
        scheduler.set_timesteps(fewest_steps(checkpoint, 100))
        first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
        assert last < boundary * scheduler.config.num_train_timesteps <= first


# ── rehearsal ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_can_rehearse_whatever_the_options_are(tmp_path: Path) -> None:
    """ADR 0029: a host without a rehearsal would take the memory of its first task for a leak."""
    production = load_settings().catalog("production").models["anisora"].checkpoint
    changes: list[dict[str, Any]] = [
        {"pipeline": "WanPipeline", "vae_tiling": True},
        {"pipeline": "WanVACEPipeline", "dtype": "float16"},
        {"attention_backend": "flash", **CAST},
        {"scheduler": BETA, **BLOCKS},
        *({"scheduler": Scheduler(kind=kind, flow_shift=5.0)} for kind in get_args(SchedulerKind)),
    ]
    planned = to_rehearse(msgspec.structs.replace(production, **change) for change in changes)
    assert len(planned) == len(changes)
    rehearsed = rehearse(planned, tmp_path / "rehearsal", "cpu")
    assert rehearsed.error == ""
    assert list(tmp_path.iterdir()) == []
