"""How long one worker takes after the last step, to decode and encode the video, by each model's newest task."""

from contracts.geometry import Size
from contracts.tasks import GenerationParameters


class AfterSteps:
    """Remembers that time per pixel of all frames, in memory: a larger video takes longer in proportion."""

    def __init__(self) -> None:
        self._per_pixel_s: dict[str, float] = {}

    def expected_s(self, model: str, parameters: GenerationParameters) -> float | None:
        """How long it will probably take for a video of *parameters*, in seconds; None before the first task of
        *model*."""
        per_pixel_s = self._per_pixel_s.get(model)
        return None if per_pixel_s is None else per_pixel_s * _pixels(parameters)

    def note(self, model: str, parameters: GenerationParameters, took_s: float) -> None:
        """Decoding and encoding a video of *parameters* took *took_s* seconds."""
        self._per_pixel_s[model] = max(0.0, took_s) / max(1, _pixels(parameters))


def _pixels(parameters: GenerationParameters) -> int:
    return Size(parameters.width, parameters.height, parameters.num_frames).volume
