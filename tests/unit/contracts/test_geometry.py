"""The size of a video as a whole."""

import pytest
from msgspec.structs import replace

from contracts.fields import IntegerField, VideoGenerationConstraints
from contracts.geometry import Size, default_size, largest_sizes, most_frames, values
from tests.kit.samples import catalog


def limits(profile: str, model: str, **changes: object) -> VideoGenerationConstraints:
    return replace(catalog(profile).models[model].constraints, **changes)


def test_positions_are_those_of_the_published_figures() -> None:
    """75,600 tokens for 81 frames of 1280 x 720, as the authors of Wan 2.1 count."""
    assert Size(1280, 720, 81).positions == 75_600
    assert (Size(1280, 720, 81).area, Size(1280, 720, 81).volume) == (921_600, 74_649_600)


@pytest.mark.parametrize(
    ("profile", "model", "sizes"),
    [
        ("production", "anisora", ["1232 x 1232 x 49", "1280 x 1280 x 41"]),
        ("production", "phr00t", ["1232 x 1232 x 49", "1280 x 1280 x 45"]),
        ("tiny", "anisora", ["256 x 256 x 73"]),
    ],
)
def test_the_largest_sizes_are_admitted_and_nothing_larger_is(profile: str, model: str, sizes: list[str]) -> None:
    found = limits(profile, model)
    most, largest = largest_sizes(found)[0], largest_sizes(found)[-1]
    assert [str(size) for size in largest_sizes(found)] == sizes
    assert most.volume <= found.max_volume
    admitted = [
        Size(width, height, count)
        for width in values(found.width)
        for height in values(found.height)
        for count in values(found.num_frames)
        if width * height * count <= found.max_volume
    ]
    assert max(size.positions for size in admitted) == most.positions >= default_size(found).positions
    assert max((size.area, size.num_frames) for size in admitted) == (largest.area, largest.num_frames)


def test_a_model_that_is_fixed_has_one_size() -> None:
    sides = {"width": IntegerField(fixed=64), "height": IntegerField(fixed=32), "num_frames": IntegerField(fixed=9)}
    fixed = limits("tiny", "phr00t", max_volume=64 * 32 * 9, **sides)
    assert largest_sizes(fixed) == (default_size(fixed),) == (Size(64, 32, 9),)
    assert most_frames(fixed, area=64 * 32 + 1) is None
