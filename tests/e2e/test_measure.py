"""The memory that an inference holds beside its weights, counted on the real classes, and what a card can serve."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace

from contracts.cards import CARDS, DRIVER_BYTES, Serving, markdown, servings, ways
from contracts.fit import Components, need, never_fits
from contracts.geometry import Size, largest_sizes
from contracts.settings import ModelEntry, load_settings
from lane_worker.checkpoints.command import command
from lane_worker.checkpoints.layouts import Layout, published_layouts
from lane_worker.checkpoints.tools import layout_of
from lane_worker.pipelines import measure as counting
from lane_worker.pipelines.live_bytes import FusedAttention, LiveBytes
from lane_worker.pipelines.measure import components_of, measure, transformer_bytes

ROOT = Path(__file__).parents[2]
MODELS = ("anisora", "phr00t")
# In shape the VAE of Wan 2.1, with a sixth of its channels.
SMALL_VAE: dict[str, Any] = {"base_dim": 16, "z_dim": 16}


def entry(model: str) -> ModelEntry:
    return load_settings().catalog("production").models[model]


def layout(model: str) -> Layout:
    return layout_of(published_layouts(), model, entry(model).checkpoint.pipeline)


# ── the count ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_count_on_the_meta_device_is_that_of_real_tensors() -> None:
    peaks = []
    for device in ("meta", "cpu"):
        with torch.no_grad(), torch.device(device):
            vae = diffusers.AutoencoderKLWan(**SMALL_VAE)
            with FusedAttention(), LiveBytes(vae) as count:
                video = vae.decode(torch.zeros(1, 16, 2, 4, 4)).sample
            assert video.shape == (1, 3, 5, 32, 32)
            assert count.live_bytes == video.untyped_storage().nbytes()  # everything else was freed
            peaks.append(count.peak_bytes)
    assert peaks[0] == peaks[1] > 10 * 4 * 3 * 5 * 32 * 32


@pytest.mark.parametrize("tiled", [True, False])
def test_counting_each_shape_once_gives_the_total_of_all_blocks(tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(464, 272, 13) if tiled else Size(64, 32, 21)
    with torch.no_grad(), torch.device("meta"):
        vae = diffusers.AutoencoderKLWan(**SMALL_VAE)
        if tiled:
            vae.enable_tiling()
        once = (counting._decode_bytes(vae, size), counting._encode_bytes(vae, size, 0))
        monkeypatch.setattr(counting, "RepeatedCoder", lambda forward, _: forward)
        monkeypatch.setattr(counting, "_Blend", lambda blend: blend)
        assert once == (counting._decode_bytes(vae, size), counting._encode_bytes(vae, size, 0))


def test_a_size_at_720p_without_tiles() -> None:
    """An independent count for the same classes gave 18.84 GB and 13.91 GB."""
    size = ["--width", "1280", "--height", "720", "--num-frames", "81"]
    result = CliRunner().invoke(command, ["measure", "anisora", *size, "--no-vae-tiling", "--json"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.output)
    assert measured["decode_bytes"] == pytest.approx(18.84e9, rel=0.01)
    assert measured["encode_bytes"] == pytest.approx(13.91e9, rel=0.01)
    # a real pass of one block on a CPU took 0.5539 GB for 4,680 positions where this count says 0.5534
    assert measured["transformer_bytes"] == pytest.approx(0.5539e9 / 4680 * 75_600, rel=0.04)
    assert measured["activation_bytes"] == pytest.approx(18.84e9 * 1.25, rel=0.01)
    assert measured["sizes"] == [{"width": 1280, "height": 720, "num_frames": 81}]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "anisora", "--width", "1000"], "expected a multiple of 16, got 1000"),
        (["measure", "anisora", "--num-frames", "80"], "expected 4 k + 1, got 80"),
        (["measure", "sora"], "no model is called sora; there are anisora, phr00t"),
        (["measure", "anisora", "--largest", "--width", "64"], "name a size, or --largest"),
        (["measure", "anisora", "--profile", "tiny"], "makes small random weights"),
    ],
)
def test_a_wrong_request_to_measure_is_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert words in result.output


# ── what follows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_packaged_activation_bytes_are_those_that_are_counted() -> None:
    anisora, phr00t = map(entry, MODELS)
    # one count of the VAE serves both: the VAE is the same, and Phr00t's largest sizes are no smaller than AniSora's
    sizes = largest_sizes(phr00t.constraints)
    assert layout("phr00t").components[-1].config == layout("anisora").components[-1].config
    assert sizes[0] == largest_sizes(anisora.constraints)[0]
    assert sizes[-1].area == largest_sizes(anisora.constraints)[-1].area
    assert sizes[-1].num_frames >= largest_sizes(anisora.constraints)[-1].num_frames
    assert anisora.checkpoint.vae_tiling
    assert phr00t.checkpoint.vae_tiling
    counted = measure(layout("anisora"), anisora.checkpoint, "anisora", sizes)
    assert anisora.checkpoint.activation_bytes == counted.activation_bytes
    own = transformer_bytes(layout("phr00t").transformer, phr00t.checkpoint, sizes)
    counted = replace(counted, pipeline=phr00t.checkpoint.pipeline, transformer_bytes=own)
    assert phr00t.checkpoint.activation_bytes == counted.activation_bytes


@pytest.fixture(scope="module")
def components() -> dict[str, Components]:
    return {model: components_of(layout(model)) for model in MODELS}


@pytest.fixture(scope="module")
def rows(components: dict[str, Components]) -> list[Serving]:
    return [row for model in MODELS for row in servings(model, components[model], entry(model).checkpoint)]


@pytest.mark.parametrize(
    ("model", "options", "cards", "card_gb"),
    [
        ("anisora", "none", (80, 141), 79.4),
        ("anisora", "none, fp8", (80, 141), 51.5),
        ("anisora", "model", (48, 80, 141), 38.9),
        ("anisora", "model, fp8", (48, 80, 141), 25.0),
        ("anisora", "group", (16, 24, 48, 80, 141), 11.4),
        ("anisora", "group, fp8", (16, 24, 48, 80, 141), 11.6),
        ("phr00t", "none", (80, 141), 50.8),
        ("phr00t", "none, fp8", (48, 80, 141), 36.9),
        ("phr00t", "model", (48, 80, 141), 38.9),
        ("phr00t", "model, fp8", (48, 80, 141), 25.0),
        ("phr00t", "group", (16, 24, 48, 80, 141), 11.4),
        ("phr00t", "group, fp8", (16, 24, 48, 80, 141), 11.6),
    ],
)
def test_a_card_serves_what_the_count_allows(
    rows: list[Serving], model: str, options: str, cards: tuple[int, ...], card_gb: float
) -> None:
    (row,) = (row for row in rows if (row.model, row.options) == (model, options))
    assert row.cards == cards
    assert row.card_bytes == pytest.approx(card_gb * 1e9, abs=0.06e9)


def test_the_tables_of_the_documentation_show_the_counted_figures(rows: list[Serving]) -> None:
    assert markdown(rows) in (ROOT / "docs" / "models" / "checkpoint-options.md").read_text()
    assert ways(rows) in (ROOT / "docs" / "operate" / "production.md").read_text()


def test_a_card_of_80_gb_is_refused_what_does_not_fit_without_tiles(components: dict[str, Components]) -> None:
    """All steps would run, but the decode would run out of memory: a count of 18.84 GB beside 69.14 GB of weights."""
    room_bytes = CARDS[80] - DRIVER_BYTES
    packaged = entry("anisora").checkpoint
    whole = replace(packaged, vae_tiling=False, activation_bytes=math.ceil(18.84e9))
    for checkpoint, fits in ((packaged, True), (whole, False)):
        wanted = need(components["anisora"], checkpoint, on_card=True)
        refused = never_fits(wanted, components["anisora"], checkpoint, room_bytes=room_bytes, free_bytes=room_bytes)
        assert (refused is None) is fits


def test_pinned_memory_is_counted_block_by_block(components: dict[str, Components]) -> None:
    """68.64 GB are moved. Rounded up to powers of two, which is torch's default, they would take half as much again."""
    checkpoint = replace(entry("anisora").checkpoint, offload="group")
    wanted = need(components["anisora"], checkpoint, on_card=True)
    assert wanted.pinned
    assert wanted.host_bytes == pytest.approx(68.64e9, rel=0.001)
    moved = [part for name, part in components["anisora"].items() if name != "vae"]
    rounded = sum(1 << (2 * tensor.elements - 1).bit_length() for part in moved for tensor in part)
    assert rounded > 1.45 * wanted.host_bytes
