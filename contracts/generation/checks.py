"""What each field of a request may hold, by the constraints of its model. Pure: a check adds to the list of errors."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import UNSET

from contracts.fields import IntegerField, NumberField, TextField, VideoGenerationConstraints
from contracts.generation.errors import FieldError, missing, refused, shown, wrong_type
from contracts.generation.images import image_of
from contracts.generation.labels import labels_of
from contracts.geometry import Size, most_frames
from contracts.settings import ModelEntry
from contracts.tasks import Priority
from contracts.urls import BadUrl, parse_url
from contracts.webhooks import DEFAULT_EVENTS, TaskWebhook, WebhookEvent

# The size of the video as a whole is judged after this field.
LAST_OF_SIZE: Final = "num_frames"
# The code of a well-typed number that is not the fixed one.
FIXED_VALUE: Final = "fixed_value"


def _text(name: str, value: Any, field: TextField, errors: list[FieldError]) -> str:
    if value is UNSET:
        if field.min_chars:
            errors.append(missing(name, f"string of {field.min_chars} to {field.max_chars} characters"))
        return ""
    if not isinstance(value, str):
        errors.append(wrong_type(name, "string", value))
    elif not field.min_chars <= len(value.strip()) or len(value) > field.max_chars:
        expected = f"string of {field.min_chars} to {field.max_chars} characters"
        errors.append(refused(name, "length", expected, f"string of {len(value)} characters"))
    else:
        return value
    return ""


def _integer(name: str, value: Any, field: IntegerField, errors: list[FieldError]) -> int | None:
    if value is UNSET:
        return field.value_when_absent
    if type(value) is not int:  # bool is an int to isinstance; 8.0 is not 8 here
        expected = "integer" if field.fixed is None else field.fixed
        errors.append(wrong_type(name, expected, value))
        return None
    return value if _in_limits(name, value, field, errors) else None


def _number(name: str, value: Any, field: NumberField, errors: list[FieldError]) -> float | None:
    if value is UNSET:
        return field.value_when_absent
    if type(value) not in (int, float):
        errors.append(wrong_type(name, "number" if field.fixed is None else field.fixed, value))
        return None
    return float(value) if _in_limits(name, value, field, errors) else None


def _in_limits(name: str, value: float, field: IntegerField | NumberField, errors: list[FieldError]) -> bool:
    if field.fixed is not None:
        if value == field.fixed:
            return True
        errors.append(refused(name, FIXED_VALUE, field.fixed, value))
        return False
    # parse_settings guarantees limits where a field is not fixed
    if not (field.minimum or 0) <= value <= (field.maximum or 0):
        errors.append(refused(name, "out_of_range", {"minimum": field.minimum, "maximum": field.maximum}, value))
        return False
    if field.step is not None and (value - field.offset) % field.step:
        expected = {"multiple_of": field.step, "plus": field.offset} if field.offset else {"multiple_of": field.step}
        errors.append(refused(name, "not_a_multiple", expected, value))
        return False
    return True


def _priority(name: str, value: Any, errors: list[FieldError]) -> Priority | None:
    if value is UNSET:
        return None
    if not isinstance(value, str):
        errors.append(wrong_type(name, "string", value))
        return None
    if value not in list(Priority):
        errors.append(refused(name, "unknown_priority", list(Priority), value))
        return None
    return Priority(value)


def _webhook(name: str, value: Any, errors: list[FieldError]) -> TaskWebhook | None:
    if value is UNSET:
        return None
    if not isinstance(value, dict):
        errors.append(wrong_type(name, '{"url": …, "events": […]}', value))
        return None
    for unknown in sorted(value.keys() - {"url", "events"})[:1]:
        message = f"{name}: no such field {shown(unknown)!r}; the fields are url and events"
        errors.append(FieldError(pointer=f"/{name}", code="unknown_field", message=message, expected=["url", "events"]))
    url = webhook_url(f"{name}/url", value.get("url", UNSET), errors)
    events = webhook_events(f"{name}/events", value.get("events", UNSET), errors)
    return None if url is None or events is None else TaskWebhook(url=url, events=events)


def webhook_url(name: str, value: Any, errors: list[FieldError]) -> str | None:
    """The address of a receiver at the field *name*, as it came; None if it is not one."""
    if value is UNSET:
        errors.append(missing(name, "URL"))
    elif not isinstance(value, str):
        errors.append(wrong_type(name, "URL", value))
    else:
        try:
            parse_url(value)
        except BadUrl as error:
            message = f"{name}: {error}"
            errors.append(FieldError(pointer=f"/{name}", code="bad_url", message=message, expected="https URL"))
        else:
            return value
    return None


def webhook_events(name: str, value: Any, errors: list[FieldError]) -> tuple[str, ...] | None:
    """The events at the field *name*, each once and in the order of the list; None where one is unknown."""
    if value is UNSET:
        return tuple(event.value for event in DEFAULT_EVENTS)
    known = [event.value for event in WebhookEvent]
    if not isinstance(value, list):
        errors.append(wrong_type(name, known, value))
        return None
    wrong = [each for each in value if each not in known]
    if wrong or not value:
        expected = known if wrong else f"one or more of {json.dumps(known)}"
        errors.append(refused(name, "unknown_event", expected, wrong[0] if wrong else value))
        return None
    return tuple(event for event in known if event in value)


_Check = Callable[[str, Any, VideoGenerationConstraints, list[FieldError]], Any]
FIELD_CHECKS: Final[Mapping[str, _Check]] = {
    "prompt": lambda name, value, limits, errors: _text(name, value, limits.prompt, errors),
    "negative_prompt": lambda name, value, limits, errors: _text(name, value, limits.negative_prompt, errors),
    "image": lambda name, value, limits, errors: image_of(name, value, limits.image, errors),
    "width": lambda name, value, limits, errors: _integer(name, value, limits.width, errors),
    "height": lambda name, value, limits, errors: _integer(name, value, limits.height, errors),
    "num_frames": lambda name, value, limits, errors: _integer(name, value, limits.num_frames, errors),
    "fps": lambda name, value, limits, errors: _integer(name, value, limits.fps, errors),
    "seed": lambda name, value, limits, errors: _integer(name, value, limits.seed, errors),
    "steps": lambda name, value, limits, errors: _integer(name, value, limits.steps, errors),
    "cfg": lambda name, value, limits, errors: _number(name, value, limits.cfg, errors),
    "priority": lambda name, value, limits, errors: _priority(name, value, errors),
    "webhook": lambda name, value, limits, errors: _webhook(name, value, errors),
    "labels": lambda name, value, limits, errors: labels_of(name, value, errors),
}


def size_errors(values: Mapping[str, int | None], entry: ModelEntry) -> Iterator[FieldError]:
    """The error of a video whose frames together have more pixels than the model's memory is counted for. Nothing if a
    field is wrong by itself."""
    limits = entry.constraints
    sides: list[int | None] = []
    for name in ("width", "height", "num_frames"):
        instead = getattr(limits, name).fixed if entry.enforcement == "report" else None
        sides.append(instead if values[name] is None else values[name])
    width, height, num_frames = sides
    if width is None or height is None or num_frames is None:
        return
    size = Size(width, height, num_frames)
    if size.volume <= limits.max_volume:
        return
    fewer = most_frames(limits, area=size.area)
    frames = "" if fewer is None else f"at most {fewer} frames of {width} x {height}, or "
    yield FieldError(
        pointer=f"/{LAST_OF_SIZE}",
        code="too_large",
        message=(
            f"width x height x num_frames: expected at most {limits.max_volume}, got {size} = {size.volume}; "
            f"send {frames}a smaller width or height"
        ),
        expected={"maximum": limits.max_volume},
        got=size.volume,
    )
