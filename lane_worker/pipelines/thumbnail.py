"""A frame of a video as a small picture, for lists."""

import io
from typing import Final

from PIL import Image

from lane_worker.pipelines.video import Frames

SIDE_MAX: Final = 320
QUALITY: Final = 70


def thumbnail_of(frames: Frames) -> bytes:
    """The middle frame of *frames* as WebP, its longer side at most SIDE_MAX pixels.

    The same frames give the same bytes. The first frame of a video that began with an image is that image, and says
    little of what became of it.
    """
    picture = Image.fromarray(frames[len(frames) // 2])
    picture.thumbnail((SIDE_MAX, SIDE_MAX))
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=QUALITY, method=4)
    return packed.getvalue()
