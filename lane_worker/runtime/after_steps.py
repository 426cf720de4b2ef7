"""What followed the last step of the newest task of each model in one worker: decoding and encoding its video."""

from contracts.geometry import Size
from contracts.tasks import GenerationParameters


class AfterSteps:
    """Remembers it by the pixel of all frames: a larger video takes longer in proportion. In memory."""

    def __init__(self) -> None:
        self._per_pixel_s: dict[str, float] = {}

    def expected_s(self, model: str, parameters: GenerationParameters) -> float | None:
        """How long it will probably take for a video of *parameters*, in seconds; None before the first of *model*."""
        per_pixel_s = self._per_pixel_s.get(model)
        return None if per_pixel_s is None else per_pixel_s * _pixels(parameters)

    def note(self, model: str, parameters: GenerationParameters, took_s: float) -> None:
        """It took *took_s* seconds for a video of *parameters*."""
        self._per_pixel_s[model] = max(0.0, took_s) / max(1, _pixels(parameters))


def _pixels(parameters: GenerationParameters) -> int:
    return Size(parameters.width, parameters.height, parameters.num_frames).volume
