"""The fields of a request and their limits, as the settings file gives them, and what is wrong with such limits. Pure.

`contracts/generation/` checks requests against them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from contracts.strict import Strict

MediaType = Literal["image/png", "image/jpeg", "image/webp"]  # those whose header `contracts.images` reads
SEED_SPAN: Final = 2**32
# What becomes of a request with another value for a fixed field: a 422, or the fixed value and a warning.
Enforcement = Literal["reject", "report"]
# The lowest values that a settings file may set.
LOWEST: Final[Mapping[str, int]] = {"seed": 0, "cfg": 0, "steps": 1, "width": 1, "height": 1, "num_frames": 1, "fps": 1}
Presence = Literal["required", "optional", "unsupported"]


class TextField(Strict, frozen=True):
    """A text of *min_chars* to *max_chars* characters."""

    min_chars: int
    max_chars: int


class NegativePromptField(TextField, frozen=True):
    """*guided_default* is used if a request leaves the text out and its cfg is above 1: at 1 the model does not read it
    (ADR 0028). An empty text that a request sends stays empty.
    """

    guided_default: str = ""

    def when_absent(self, cfg: float) -> str:
        """What a request with this *cfg* and no negative prompt gets."""
        return self.guided_default if cfg > 1 else ""


class NumberField(Strict, frozen=True):
    """A number: fixed, or with a default between two limits.

    With *step*, a value v is valid when (v - offset) is a multiple of step, so 4k+1 is step 4, offset 1. *reason* tells
    people why it is fixed.
    """

    fixed: float | None = None
    default: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: int | None = None
    offset: int = 0
    reason: str = ""

    @property
    def value_when_absent(self) -> float | None:
        return self.default if self.fixed is None else self.fixed


class IntegerField(Strict, frozen=True):
    """As `NumberField`, for whole numbers."""

    fixed: int | None = None
    default: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    step: int | None = None
    offset: int = 0
    reason: str = ""

    @property
    def value_when_absent(self) -> int | None:
        return self.default if self.fixed is None else self.fixed


class ImageField(Strict, frozen=True):
    """Whether a request may or must carry an image, and how large it may be."""

    presence: Presence
    max_bytes: int = 0
    max_pixels: int = 0
    media_types: tuple[MediaType, ...] = ("image/png", "image/jpeg", "image/webp")


class GenerationFields(Strict, frozen=True):
    """The limits of a model that hold in every profile (FR-004..006 stand here)."""

    prompt: TextField
    negative_prompt: NegativePromptField
    seed: IntegerField
    steps: IntegerField
    cfg: NumberField


class GeometryFields(Strict, frozen=True):
    """The limits that depend on the size of the checkpoint.

    *max_volume* is the most pixels that all frames may have together, width x height x num_frames: the memory of an
    inference grows with it (ADR 0025). If it is absent, only the three fields' own limits apply.
    """

    width: IntegerField
    height: IntegerField
    num_frames: IntegerField
    fps: IntegerField
    max_volume: int | None = None


class VideoGenerationConstraints(Strict, frozen=True):
    """Everything a request for one model is checked against (the spec's entity of this name).

    *max_volume*: the most that width x height x num_frames may be.
    """

    prompt: TextField
    negative_prompt: NegativePromptField
    image: ImageField
    width: IntegerField
    height: IntegerField
    num_frames: IntegerField
    max_volume: int
    fps: IntegerField
    seed: IntegerField
    steps: IntegerField
    cfg: NumberField


def max_volume(geometry: GeometryFields) -> int:
    """The limit that is set, or else the largest volume that the fields' own limits admit."""
    return geometry.max_volume if geometry.max_volume is not None else _volume(geometry, "maximum")


def _volume(geometry: GeometryFields, which: Literal["default", "maximum"]) -> int:
    sides = (geometry.width, geometry.height, geometry.num_frames)
    return math.prod((getattr(side, which) if side.fixed is None else side.fixed) or 0 for side in sides)


def volume_mistakes(place: str, geometry: GeometryFields) -> Iterator[str]:
    """What is wrong with the limit of all sides together: it must admit a request that names no size."""
    least = _volume(geometry, "default")
    if geometry.max_volume is not None and geometry.max_volume < least:
        yield f"{place}.max_volume: at least {least}, the default size's width x height x num_frames"


def field_mistakes(place: str, fields: GenerationFields | GeometryFields) -> Iterator[str]:
    """What is wrong with the limits of *fields*, which stand at *place* of the file."""
    for name in fields.__struct_fields__:
        field = getattr(fields, name)
        if name == "max_volume":
            continue  # not a field of a request
        if isinstance(field, TextField):
            if not 0 <= field.min_chars <= field.max_chars:
                yield f"{place}.{name}: 0 <= min_chars <= max_chars"
            if isinstance(field, NegativePromptField) and len(field.guided_default) > field.max_chars:
                yield f"{place}.{name}.guided_default: at most {field.max_chars} characters"
        else:
            yield from _number_mistakes(f"{place}.{name}", field, needs_default=name != "seed")
            lowest, allowed = field.minimum if field.fixed is None else field.fixed, LOWEST[name]
            if lowest is not None and lowest < allowed:
                yield f"{place}.{name}: at least {allowed}, got {lowest}"
            if name == "seed" and (field.maximum or 0) >= SEED_SPAN:
                yield f"{place}.seed.maximum: below {SEED_SPAN}"


def _number_mistakes(place: str, field: IntegerField | NumberField, *, needs_default: bool) -> Iterator[str]:
    if field.fixed is not None:
        if any(value is not None for value in (field.default, field.minimum, field.maximum, field.step)):
            yield f"{place}: a fixed field has no default, limits or step"
        return
    if field.minimum is None or field.maximum is None or field.minimum > field.maximum:
        yield f"{place}: fixed, or minimum <= maximum"
        return
    if field.step is not None and field.step < 1:
        yield f"{place}.step: at least 1"
        return
    if field.default is None:
        if needs_default:
            yield f"{place}.default: missing"
        return
    if not field.minimum <= field.default <= field.maximum:
        yield f"{place}.default: {field.default} is outside {field.minimum} to {field.maximum}"
    elif field.step is not None and (field.default - field.offset) % field.step:
        yield f"{place}.default: {field.default} is not {field.step} k + {field.offset}"
