"""The smallest and the largest video that the limits of a model admit. Pure."""

from collections.abc import Iterator

from msgspec import Struct

from contracts.settings import IntegerField, VideoGenerationConstraints


class Size(Struct, frozen=True):
    """What a video takes: pixels of a frame, and frames."""

    width: int
    height: int
    num_frames: int

    @property
    def volume(self) -> int:
        """Pixels of all frames."""
        return self.width * self.height * self.num_frames

    def __str__(self) -> str:
        return f"{self.width} x {self.height} and {self.num_frames} frames"


def smallest(limits: VideoGenerationConstraints) -> Size:
    """The least of each."""
    return Size(*(next(_values(field)) for field in (limits.width, limits.height, limits.num_frames)))


def largest(limits: VideoGenerationConstraints, max_volume: int | None = None) -> Size:
    """The size that needs most memory: the largest frame that there may be, and then the most frames of it.

    The frame comes first. The VAE works on a frame or four at a time, so its peak follows the pixels of one; and of
    equal volumes that with fewer frames has more tokens, since the first frame counts as much as the next four.
    """
    frames = list(_values(limits.num_frames))
    most = max_volume or max(_values(limits.width)) * max(_values(limits.height)) * frames[-1]
    areas = (
        (width * height, width, height)
        for width in _values(limits.width)
        for height in _values(limits.height)
        if width * height * frames[0] <= most
    )
    area, width, height = max(areas, default=(0, 0, 0))
    if not area:
        return smallest(limits)
    return Size(width, height, max(count for count in frames if area * count <= most))


def _values(field: IntegerField) -> Iterator[int]:
    """What *field* admits, the least first."""
    if field.fixed is not None:
        return iter((field.fixed,))
    step = field.step or 1
    least = field.minimum or 1
    return iter(range(least + (field.offset - least) % step, (field.maximum or least) + 1, step))
