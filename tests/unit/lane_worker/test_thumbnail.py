"""The picture that represents a video in lists."""

import io

import numpy as np
import pytest
from PIL import Image

from lane_worker.pipelines.thumbnail import SIDE_MAX, thumbnail_of


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(96, 64, (96, 64)), (1280, 720, (320, 180)), (480, 832, (185, 320)), (2, 2, (2, 2))],
)
def test_it_is_small_and_keeps_its_shape(width: int, height: int, expected: tuple[int, int]) -> None:
    content = thumbnail_of(np.zeros((5, height, width, 3), np.uint8))
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as picture:
        assert picture.size == expected
        assert max(picture.size) <= SIDE_MAX


def test_it_shows_the_middle_frame() -> None:
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    frames[2] = (250, 10, 10)
    with Image.open(io.BytesIO(thumbnail_of(frames)), formats=["WEBP"]) as picture:
        red, green, blue = picture.convert("RGB").getpixel((48, 32))  # type: ignore[misc]  # of three bands
    assert red > 200
    assert max(green, blue) < 60
    assert thumbnail_of(frames) == thumbnail_of(frames)
