"""What a lane warms up with, and what it says when that fails: pure."""

import hashlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.generation.request import parameter_errors
from contracts.geometry import Size, largest_sizes
from contracts.images import read_header
from contracts.memory import MemoryReading
from contracts.settings import ModelEntry, load_settings
from lane_worker.forking.host_messages import Failed
from lane_worker.forking.outcome import Lost, TimedOut
from lane_worker.runtime.warm_up import (
    TooLargeForCard,
    fewest_steps,
    picture,
    warm_up_failure,
    warm_up_parameters,
    warm_up_request,
    warm_up_size,
)

TINY, PRODUCTION = (dict(load_settings().catalog(profile).models) for profile in ("tiny", "production"))
ANISORA = PRODUCTION["anisora"]
OUT_OF_MEMORY = Failed("warmup", "out_of_memory", "the device ran out of memory", MemoryReading(rss_bytes=1))


@pytest.mark.parametrize("entry", [*TINY.values(), *PRODUCTION.values()], ids=lambda entry: entry.checkpoint.folder)
def test_the_warm_up_is_a_request_that_the_model_admits(entry: ModelEntry, tmp_path: Path) -> None:
    """It has a picture if the model takes one, with real weights or without: otherwise AniSora would never be warm."""
    request = warm_up_request(entry, tmp_path)
    fewest = replace(request.parameters, steps=entry.constraints.steps.fixed or 0)
    assert parameter_errors(fewest, entry) == []
    reference = request.parameters.image
    assert (reference is None) == (entry.constraints.image.presence == "unsupported") == (request.image_path is None)
    if reference is not None:
        content = Path(str(request.image_path)).read_bytes()
        assert (reference.sha256, reference.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
        header = read_header(content)
        assert (header.media_type, header.width, header.height) == ("image/png", reference.width, reference.height)


def test_the_picture_of_a_warm_up_is_not_a_plain_colour() -> None:
    """A VAE divides by what a frame holds, so all plain colours are the same to it."""
    assert len(set(picture())) > 100


def test_each_profile_says_which_size() -> None:
    """The largest by the frame, or with tiling of the VAE by the transformer's share."""
    assert [warm_up_size(TINY[model]) for model in ("anisora", "phr00t")] == [Size(32, 32, 9), Size(32, 32, 5)]
    for entry in PRODUCTION.values():
        most, largest = largest_sizes(entry.constraints)
        for tiling, expected in ((False, largest), (True, most)):
            tiled = replace(entry, checkpoint=replace(entry.checkpoint, vae_tiling=tiling))
            assert warm_up_size(tiled) == expected


@pytest.mark.parametrize(
    ("shift", "boundary", "steps", "expected"),
    [(5.0, None, 8, 1), (5.0, 0.9, 8, 2), (8.0, 0.9, 8, 2), (5.0, 0.5, 8, 7), (5.0, 0.5, 4, 4), (1.0, 0.9, 8, 2)],
)
def test_the_fewest_steps_that_use_every_transformer(
    shift: float, boundary: float | None, steps: int, expected: int
) -> None:
    scheduler = replace(ANISORA.checkpoint.scheduler, flow_shift=shift)
    checkpoint = replace(ANISORA.checkpoint, scheduler=scheduler, boundary_ratio=boundary)
    assert fewest_steps(checkpoint, steps) == expected


def test_the_largest_runs_the_fewest_steps_and_the_smallest_all() -> None:
    assert warm_up_parameters(ANISORA).steps == 2
    assert warm_up_parameters(TINY["anisora"]).steps == 8


def test_a_card_that_is_too_small_is_reported_with_the_size_and_what_to_change() -> None:
    plain = replace(ANISORA, checkpoint=replace(ANISORA.checkpoint, vae_tiling=False, offload="none"))
    failure = warm_up_failure(plain, OUT_OF_MEMORY)
    assert isinstance(failure, TooLargeForCard)
    message = str(failure)
    assert message.startswith("this slot cannot serve the largest video that the settings of anisora admit: ")
    assert str(warm_up_size(plain)) in message
    for change in ("lower max_volume", '"vae_tiling": true', '"offload": "model" or "group"'):
        assert change in message
    offloaded = replace(ANISORA, checkpoint=replace(ANISORA.checkpoint, vae_tiling=True, offload="group"))
    assert "vae_tiling" not in str(warm_up_failure(offloaded, OUT_OF_MEMORY))
    assert "offload" not in str(warm_up_failure(offloaded, OUT_OF_MEMORY))


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Lost("warmup", "the pipeline host died"), "did not succeed: the pipeline host died"),
        (TimedOut("warmup", "step_s", 180, None), "took longer than timeouts.step_s of 180 s: raise that"),
    ],
)
def test_another_failure_says_nothing_of_the_card(outcome: Lost | TimedOut, reason: str) -> None:
    failure = warm_up_failure(ANISORA, outcome)
    assert not isinstance(failure, TooLargeForCard)
    assert reason in str(failure)
