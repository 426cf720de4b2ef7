"""How an image becomes the first frame (ADR 0022): the authors' sizes are not cropped, others are, at the centre."""

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from lane_worker.pipelines.inputs import GRID_PIXELS, fitted

MODELS_DOC: Final = Path(__file__).parents[3] / "docs" / "models" / "models.md"
SIDES: Final = st.integers(1, 300)
FRAME_SIDES: Final = st.integers(2, 8).map(lambda steps: steps * GRID_PIXELS)


def authors_size(width: int, height: int, *, max_area: int) -> tuple[int, int]:
    """The size that the authors' `generate` gives the video of an image, as docs/models/models.md cites it."""
    across, down = math.sqrt(max_area * width / height), math.sqrt(max_area * height / width)
    return int(across // GRID_PIXELS * GRID_PIXELS), int(down // GRID_PIXELS * GRID_PIXELS)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(SIDES, SIDES, st.integers(32 * 32, 300 * 300))
def test_a_size_that_the_authors_would_choose_shows_the_whole_image(width: int, height: int, max_area: int) -> None:
    size = authors_size(width, height, max_area=max_area)
    assume(min(size) > 0)
    image = noise(width, height)
    assert fitted(image, *size).tobytes() == image.resize(size, Image.Resampling.BICUBIC).tobytes()


@given(SIDES, SIDES, FRAME_SIDES, FRAME_SIDES)
@example(300, 1, 32, 128)
@example(1, 300, 128, 32)
@example(47, 300, 48, 32)  # 47 - 48 / (48 / 47) is less than nought
def test_any_image_fills_any_frame(width: int, height: int, frame_width: int, frame_height: int) -> None:
    frame = fitted(Image.new("RGB", (width, height), (10, 200, 90)), frame_width, frame_height)
    assert frame.size == (frame_width, frame_height)
    assert frame.getcolors() == [(frame_width * frame_height, (10, 200, 90))]  # no border, and nothing invented


@given(SIDES, SIDES, FRAME_SIDES, FRAME_SIDES)
@example(136, 18, 64, 80)
def test_what_is_cropped_is_the_same_on_both_sides(
    width: int, height: int, frame_width: int, frame_height: int
) -> None:
    image = noise(width, height)
    for way in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        turned = fitted(image.transpose(way), frame_width, frame_height).transpose(way)
        distance = np.abs(np.asarray(turned, int) - np.asarray(fitted(image, frame_width, frame_height), int))
        # each of the filter's two passes rounds, and the second weighs the first's difference by up to 1.3
        assert distance.max() <= 2


def test_another_shape_is_cropped_and_not_stretched() -> None:
    image = Image.new("RGB", (640, 160), "red")
    image.paste("blue", (240, 0, 400, 160))  # the square in its middle
    frame = fitted(image, 80, 80)
    assert (frame.getpixel((2, 40)), frame.getpixel((77, 40))) == ((0, 0, 255), (0, 0, 255))


def test_shrinking_blurs_what_is_too_fine_to_be_seen() -> None:
    """Here the authors' code would take every fourth column, and get black or white stripes by chance."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    frame = np.asarray(fitted(Image.fromarray(stripes), 64, 64), int)[:, 8:-8]
    assert np.abs(frame - 127.5).max() < 16


def test_the_documented_sizes_are_those_of_the_authors() -> None:
    rows = re.findall(r"^\| (\d+):(\d+) \| (\d+) x (\d+) \| (\d+) x (\d+) \|$", MODELS_DOC.read_text(), re.MULTILINE)
    assert len(rows) >= 5
    for across, down, *sizes in rows:
        shape = int(across), int(down)
        large, small = (int(sizes[0]), int(sizes[1])), (int(sizes[2]), int(sizes[3]))
        assert authors_size(*shape, max_area=1280 * 720) == large, shape
        assert authors_size(*shape, max_area=832 * 480) == small, shape
