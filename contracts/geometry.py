"""How large a video may be: width x height x frames together, with which the memory of an inference grows. Pure."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from contracts.fields import IntegerField, VideoGenerationConstraints

# How many frames, and how many pixels of a side, share one position in Wan's transformers. Its VAE makes one latent
# frame of the first frame and of every four that follow, and one latent of 8 x 8 pixels; a position is 2 x 2 latents.
FRAMES_PER_POSITION: Final = 4
PIXELS_PER_POSITION: Final = 16


class Size(Struct, frozen=True, order=True):
    """The size of a video in pixels, pixels and frames."""

    width: int
    height: int
    num_frames: int

    @property
    def area(self) -> int:
        """Pixels of one frame."""
        return self.width * self.height

    @property
    def volume(self) -> int:
        """Pixels of all frames."""
        return self.area * self.num_frames

    @property
    def positions(self) -> int:
        """How many tokens the transformer works on at a time."""
        sides = (self.width // PIXELS_PER_POSITION) * (self.height // PIXELS_PER_POSITION)
        return sides * ((self.num_frames - 1) // FRAMES_PER_POSITION + 1)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} x {self.num_frames}"


def default_size(limits: VideoGenerationConstraints) -> Size:
    """The size of a request that names none."""
    sides = (limits.width, limits.height, limits.num_frames)
    return Size(*(field.value_when_absent or 0 for field in sides))


def most_frames(limits: VideoGenerationConstraints, *, area: int) -> int | None:
    """The most frames of *area* pixels that a request may ask for; None where not even the fewest are allowed."""
    return max((count for count in values(limits.num_frames) if count * area <= limits.max_volume), default=None)


def largest_sizes(limits: VideoGenerationConstraints) -> tuple[Size, ...]:
    """Of all sizes that *limits* admit, those that need the most memory. The first also takes the most time.

    1. The size with the most positions: they decide the transformer's share.
    2. The size with the largest frame, and the most frames of that: it decides the share of a VAE without tiling.
    """
    admitted = list(_frontier(limits))
    most = max(admitted, key=lambda size: (size.positions, size.volume, size))  # 1
    largest = max(admitted, key=lambda size: (size.area, size.num_frames, size))  # 2
    return (most,) if most == largest else (most, largest)


def values(field: IntegerField) -> list[int]:
    """Every value that *field* admits, in order."""
    if field.fixed is not None:
        return [field.fixed]
    low, high, step = field.minimum or 0, field.maximum or 0, field.step or 1
    return list(range(low + (field.offset - low) % step, high + 1, step))


def _frontier(limits: VideoGenerationConstraints) -> Iterator[Size]:
    """For each width and height, the size with the most frames that *limits* admit."""
    for width in values(limits.width):
        for height in values(limits.height):
            count = most_frames(limits, area=width * height)
            if count is not None:
                yield Size(width, height, count)
