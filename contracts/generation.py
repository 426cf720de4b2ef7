"""Requests: from the bytes of a body to accepted parameters, or to every error at once in a fixed order.

Pure. The order of the errors is: the fields of `GenerationRequest` as declared, then unknown fields by name.
The product of width, height and frames is judged at the place of the last of them, if each by itself is right.
No error repeats a prompt or an image.
"""

import codecs
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Never

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts.geometry import Size, most_frames
from contracts.images import BadImage, parse_data_uri, read_header
from contracts.nesting import NestedTooDeeply, bounded
from contracts.settings import (
    SEED_SPAN,
    Catalog,
    ImageField,
    IntegerField,
    ModelEntry,
    NumberField,
    TextField,
    VideoGenerationConstraints,
)
from contracts.tasks import GenerationParameters, ImageReference, ReplacedParameter

# What people coming from other video APIs write, where spelling alone does not lead to the right field.
SYNONYMS: Final[Mapping[str, str]] = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg",
    "cfg_scale": "cfg",
    "frames": "num_frames",
    "length": "num_frames",
    "frame_rate": "fps",
    "image_url": "image",
    "init_image": "image",
    "negative": "negative_prompt",
    "text": "prompt",
    "model_id": "model",
}


class GenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /generate`. A field that is absent takes the model's fixed or default value."""

    model: str
    prompt: str
    negative_prompt: str | UnsetType = UNSET
    image: str | UnsetType = UNSET
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    num_frames: int | UnsetType = UNSET
    fps: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    steps: int | UnsetType = UNSET
    cfg: float | UnsetType = UNSET


FIELDS: Final = GenerationRequest.__struct_fields__
# Levels of arrays and objects in a body. A request is flat; where the interpreter would give up depends on its stack.
NESTING_MAX: Final = 16
# What a body may hold beside its image: twice what the packaged settings need, so that a prompt that is far too long is
# still answered with its limit, and more where longer texts are allowed.
BESIDE_IMAGE_BYTES: Final = 128 * 1024
_CHARACTER_BYTES_MAX: Final = 12  # one outside the basic plane, written as two escapes
_OTHER_FIELDS_BYTES: Final = 4 * 1024
_IMAGE_BEGINS: Final = re.compile(rb'"image"[ \t\r\n]*:[ \t\r\n]*"')
# A body of many unknown fields is answered by the first of them and their number.
UNKNOWN_FIELDS_MAX: Final = 32
# How much of a caller's text an error repeats.
SHOWN_CHARS_MAX: Final = 64
# Behind which field the size of the video as a whole is judged.
LAST_OF_SIZE: Final = "num_frames"
# The code of a well-typed number that is not the fixed one.
FIXED_VALUE: Final = "fixed_value"


class FieldError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One wrong field: a JSON pointer to it, a code for programs, what was expected and what came."""

    pointer: str
    code: str
    message: str
    expected: Any = None
    got: Any = UNSET  # absent when nothing came; null when null came


class MalformedBody(ValueError):
    """The body is not one JSON object with distinct keys, in valid UTF-8 (400)."""


class InvalidRequest(ValueError):
    """The request breaks constraints (422). `errors` lists every one of them, in a fixed order."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = errors


class AcceptedRequest(Struct, frozen=True, kw_only=True):
    """A request that passed every check; the seed is None where the caller left it to us.

    *fingerprint* is equal for equal requests: it decides whether an Idempotency-Key is used again for the same thing.
    *replaced* lists the fixed values that stand in the place of others, in the order of the fields.
    """

    model: str
    prompt: str
    negative_prompt: str
    image: ImageReference | None
    image_content: bytes | None
    width: int
    height: int
    num_frames: int
    fps: int
    seed: int | None
    steps: int
    cfg: float
    fingerprint: str
    replaced: tuple[ReplacedParameter, ...] = ()

    def parameters(self, seed: int) -> GenerationParameters:
        """The parameters of the task; *seed* is used where the request named none."""
        return GenerationParameters(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            image=self.image,
            width=self.width,
            height=self.height,
            num_frames=self.num_frames,
            fps=self.fps,
            seed=seed if self.seed is None else self.seed,
            steps=self.steps,
            cfg=self.cfg,
        )


def beside_image_max_bytes(catalog: Catalog) -> int:
    """How many bytes a body needs at most for everything but its image."""
    limits = [entry.constraints for entry in catalog.models.values()]
    characters = max((each.prompt.max_chars + each.negative_prompt.max_chars for each in limits), default=0)
    return max(BESIDE_IMAGE_BYTES, _OTHER_FIELDS_BYTES + _CHARACTER_BYTES_MAX * characters)


def beside_image_bytes(body: bytes) -> int:
    """How many bytes of *body* are not the text of its image, found without parsing it.

    The image's text costs a parser milliseconds a megabyte: it becomes one string, or the parser stops there. A
    megabyte of small objects costs a quarter of a second and fifty times its size.
    """
    begins = _IMAGE_BEGINS.search(body)
    if begins is None:
        return len(body)
    ends = body.find(b'"', begins.end())
    return begins.end() if ends < 0 else len(body) - (ends - begins.end())


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in *body*, behind a byte order mark if there is one. Raises MalformedBody on anything that is not
    exactly one, with distinct keys.

    The standard library's parser is used because it shows duplicate keys; its leniencies (NaN, lone surrogates)
    are closed here.
    """
    try:
        text = bounded(body.removeprefix(codecs.BOM_UTF8), deepest=NESTING_MAX).decode()
        parsed = _decode(text)
        if "\\u" in text:
            # a lone surrogate, which only an escape can bring, cannot be encoded; the result itself is not needed
            json.dumps(parsed, ensure_ascii=False).encode()
    except MalformedBody:
        raise
    except NestedTooDeeply as error:
        raise MalformedBody(str(error)) from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"not valid UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise MalformedBody("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError:
        raise MalformedBody("a number has too many digits") from None
    if not isinstance(parsed, dict):
        raise MalformedBody("a JSON object is expected")
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("a key stands twice in one object")
    return found


def _refuse_constant(name: str) -> Never:
    raise MalformedBody(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(  # noqa: TID251 - only within the bound
    object_pairs_hook=_distinct, parse_constant=_refuse_constant
).decode


def validate(body: Mapping[str, Any], catalog: Catalog) -> AcceptedRequest:
    """The request in *body*, complete and within the constraints of its model (FR-004..007, SC-002).

    Raises InvalidRequest with every error. An alias is resolved before any other check. Where the model's enforcement
    is `report`, a number other than the fixed one is no error: the fixed one is used, and `replaced` says so. What is
    no number of the field's type is an error there too.

    The fingerprint is that of the request as accepted, so a default that is spelled out makes no other request; but
    what was replaced counts as it was sent. So a valid body has one fingerprint whatever the enforcement, and bodies
    that ask for different values never share one.
    """
    errors: list[FieldError] = []
    entry = _model(body, catalog, errors)
    if entry is None:
        # no constraints to check against: the other fields' types and names can still be checked
        errors.extend(_type_errors(body))
        errors.extend(_unknown_fields(body))
        raise InvalidRequest(errors)
    values: dict[str, Any] = {}
    for name in FIELDS[1:]:
        values[name] = _FIELD_CHECKS[name](name, body.get(name, UNSET), entry.constraints, errors)
        if name == LAST_OF_SIZE:
            errors.extend(_size_errors(values, entry))
    errors.extend(_unknown_fields(body))
    replaced: list[ReplacedParameter] = []
    if entry.enforcement == "report":
        wrong = [error for error in errors if error.code == FIXED_VALUE]
        errors = [error for error in errors if error.code != FIXED_VALUE]
        for error in wrong:
            name = error.pointer.removeprefix("/")
            values[name] = getattr(entry.constraints, name).fixed
            replaced.append(ReplacedParameter(field=name, used=values[name], got=error.got))
    if errors:
        raise InvalidRequest(errors)
    if "negative_prompt" not in body:
        values["negative_prompt"] = entry.constraints.negative_prompt.when_absent(values["cfg"])
    image: tuple[ImageReference, bytes] | None = values.pop("image")
    reference, content = image or (None, None)
    sent = [[each.field, _same_for_equal(body[each.field])] for each in replaced]
    fingerprint = msgspec.json.encode([entry.name, values, reference, *([sent] if sent else [])])
    return AcceptedRequest(
        model=entry.name,
        image=reference,
        image_content=content,
        fingerprint=hashlib.sha256(fingerprint).hexdigest(),
        replaced=tuple(replaced),
        **values,
    )


def _same_for_equal(value: Any) -> str:
    """The same text for 2 and 2.0; exact, however large (what `_shown` repeats of a number is not)."""
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def parameter_errors(parameters: GenerationParameters, entry: ModelEntry) -> list[FieldError]:
    """What is wrong with *parameters* of a queued task, by the limits of its model; nothing with those that `validate`
    made.

    A worker asks before it runs a task, because whoever can write to the queue can write any number.
    """
    errors: list[FieldError] = []
    values: dict[str, Any] = {}
    limits = entry.constraints
    for name in FIELDS[1:]:
        if name not in ("image", "seed"):
            values[name] = _FIELD_CHECKS[name](name, getattr(parameters, name), limits, errors)
        if name == LAST_OF_SIZE:
            errors.extend(_size_errors(values, entry))
    if not 0 <= parameters.seed < SEED_SPAN:  # one that was derived may lie beyond the limits of one that is asked for
        errors.append(_error("seed", "out_of_range", {"minimum": 0, "maximum": SEED_SPAN - 1}, parameters.seed))
    image = parameters.image
    if image is None:
        if limits.image.presence == "required":
            errors.append(_missing("image", "data URI"))
    elif (
        limits.image.presence == "unsupported"
        or image.media_type not in limits.image.media_types
        or not 0 < image.bytes <= limits.image.max_bytes
        or min(image.width, image.height) < 1
        or image.width * image.height > limits.image.max_pixels
    ):
        errors.append(FieldError(pointer="/image", code="bad_image", message="image: not within the model's limits"))
    return errors


def _size_errors(values: Mapping[str, int | None], entry: ModelEntry) -> Iterator[FieldError]:
    """More pixels in all frames than the model's memory is counted for. Nothing where a field is wrong by itself."""
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


def _model(body: Mapping[str, Any], catalog: Catalog, errors: list[FieldError]) -> ModelEntry | None:
    known = sorted(catalog.models)
    name = body.get("model", UNSET)
    if name is UNSET:
        errors.append(_missing("model", known))
        return None
    if not isinstance(name, str):
        errors.append(_wrong_type("model", "string", name))
        return None
    entry = catalog.resolve(name)
    if entry is None:
        errors.append(
            FieldError(
                pointer="/model",
                code="unknown_model",
                message=f"model: no model has this name; there are {', '.join(known)}",
                expected=known,
                got=_shown(name),
            )
        )
    return entry


def _text(name: str, value: Any, field: TextField, errors: list[FieldError]) -> str:
    if value is UNSET:
        if field.min_chars:
            errors.append(_missing(name, f"string of {field.min_chars} to {field.max_chars} characters"))
        return ""
    if not isinstance(value, str):
        errors.append(_wrong_type(name, "string", value))
    elif not field.min_chars <= len(value.strip()) or len(value) > field.max_chars:
        expected = f"string of {field.min_chars} to {field.max_chars} characters"
        errors.append(_error(name, "length", expected, f"string of {len(value)} characters"))
    else:
        return value
    return ""


def _integer(name: str, value: Any, field: IntegerField, errors: list[FieldError]) -> int | None:
    if value is UNSET:
        return field.value_when_absent
    if type(value) is not int:  # bool is an int to isinstance; 8.0 is not 8 here
        expected = "integer" if field.fixed is None else field.fixed
        errors.append(_wrong_type(name, expected, value))
        return None
    return value if _in_limits(name, value, field, errors) else None


def _number(name: str, value: Any, field: NumberField, errors: list[FieldError]) -> float | None:
    if value is UNSET:
        return field.value_when_absent
    if type(value) not in (int, float):
        errors.append(_wrong_type(name, "number" if field.fixed is None else field.fixed, value))
        return None
    return float(value) if _in_limits(name, value, field, errors) else None


def _in_limits(name: str, value: float, field: IntegerField | NumberField, errors: list[FieldError]) -> bool:
    if field.fixed is not None:
        if value == field.fixed:
            return True
        errors.append(_error(name, FIXED_VALUE, field.fixed, value))
        return False
    # parse_settings guarantees limits where a field is not fixed
    if not (field.minimum or 0) <= value <= (field.maximum or 0):
        errors.append(_error(name, "out_of_range", {"minimum": field.minimum, "maximum": field.maximum}, value))
        return False
    if field.step is not None and (value - field.offset) % field.step:
        expected = {"multiple_of": field.step, "plus": field.offset} if field.offset else {"multiple_of": field.step}
        errors.append(_error(name, "not_a_multiple", expected, value))
        return False
    return True


def _image(name: str, value: Any, field: ImageField, errors: list[FieldError]) -> tuple[ImageReference, bytes] | None:
    if value is UNSET:
        if field.presence == "required":
            errors.append(
                FieldError(
                    pointer=f"/{name}",
                    code="image_required",
                    message="image: this model turns an image into a video; send one as a data URI",
                    expected="data URI",
                )
            )
        return None
    if not isinstance(value, str):
        errors.append(_wrong_type(name, "data URI", value))
        return None
    if field.presence == "unsupported":
        errors.append(
            FieldError(
                pointer=f"/{name}",
                code="image_unsupported",
                message="image: this model takes text only; leave the field out",
            )
        )
        return None
    try:
        declared, content = parse_data_uri(value, max_bytes=field.max_bytes)
        header = read_header(content)
        if declared != header.media_type:
            raise BadImage(f"declared as {_shown(declared)}, but its first bytes are those of {header.media_type}")
        if header.media_type not in field.media_types:
            raise BadImage(f"{header.media_type} is not accepted; send one of {', '.join(field.media_types)}")
        if header.width * header.height > field.max_pixels:
            raise BadImage(f"{header.width} x {header.height} is more than {field.max_pixels} pixels")
    except BadImage as error:
        errors.append(FieldError(pointer=f"/{name}", code="bad_image", message=f"image: {error}"))
        return None
    reference = ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type=header.media_type,
        bytes=len(content),
        width=header.width,
        height=header.height,
    )
    return reference, content


_Check = Callable[[str, Any, VideoGenerationConstraints, list[FieldError]], Any]
_FIELD_CHECKS: Final[Mapping[str, _Check]] = {
    "prompt": lambda name, value, limits, errors: _text(name, value, limits.prompt, errors),
    "negative_prompt": lambda name, value, limits, errors: _text(name, value, limits.negative_prompt, errors),
    "image": lambda name, value, limits, errors: _image(name, value, limits.image, errors),
    "width": lambda name, value, limits, errors: _integer(name, value, limits.width, errors),
    "height": lambda name, value, limits, errors: _integer(name, value, limits.height, errors),
    "num_frames": lambda name, value, limits, errors: _integer(name, value, limits.num_frames, errors),
    "fps": lambda name, value, limits, errors: _integer(name, value, limits.fps, errors),
    "seed": lambda name, value, limits, errors: _integer(name, value, limits.seed, errors),
    "steps": lambda name, value, limits, errors: _integer(name, value, limits.steps, errors),
    "cfg": lambda name, value, limits, errors: _number(name, value, limits.cfg, errors),
}
_EXPECTED_TYPES: Final[Mapping[str, tuple[str, tuple[type, ...]]]] = {
    "prompt": ("string", (str,)),
    "negative_prompt": ("string", (str,)),
    "image": ("data URI", (str,)),
    "width": ("integer", (int,)),
    "height": ("integer", (int,)),
    "num_frames": ("integer", (int,)),
    "fps": ("integer", (int,)),
    "seed": ("integer", (int,)),
    "steps": ("integer", (int,)),
    "cfg": ("number", (int, float)),
}


def _type_errors(body: Mapping[str, Any]) -> Iterator[FieldError]:
    if "prompt" not in body:
        yield _missing("prompt", "string")
    for name, (expected, types) in _EXPECTED_TYPES.items():
        if name in body and type(body[name]) not in types:
            yield _wrong_type(name, expected, body[name])


def _unknown_fields(body: Mapping[str, Any]) -> Iterator[FieldError]:
    unknown = sorted(set(body) - set(FIELDS))
    for name in unknown[:UNKNOWN_FIELDS_MAX]:
        suggestion = _suggestion(name)
        hint = f"did you mean {suggestion!r}?" if suggestion else f"the fields are {', '.join(FIELDS)}"
        yield FieldError(
            pointer="/" + _shown(name).replace("~", "~0").replace("/", "~1"),
            code="unknown_field",
            message=f"{_shown(name)}: no such field; {hint}",
            expected=suggestion or list(FIELDS),
        )
    if len(unknown) > UNKNOWN_FIELDS_MAX:
        more = len(unknown) - UNKNOWN_FIELDS_MAX
        yield FieldError(
            pointer="",
            code="unknown_field",
            message=f"{more} more unknown fields; the fields are {', '.join(FIELDS)}",
            expected=list(FIELDS),
        )


def _suggestion(name: str) -> str | None:
    if name in SYNONYMS:
        return SYNONYMS[name]
    if len(name) > SHOWN_CHARS_MAX:  # not a slip of the pen, and costly to compare
        return None
    close = difflib.get_close_matches(name, FIELDS, n=1)
    return close[0] if close else None


def _missing(name: str, expected: Any) -> FieldError:
    return FieldError(pointer=f"/{name}", code="missing", message=f"{name}: missing", expected=expected)


def _wrong_type(name: str, expected: Any, value: Any) -> FieldError:
    return _error(name, "wrong_type", expected, value)


def _error(name: str, code: str, expected: Any, value: Any) -> FieldError:
    got = _shown(value)
    message = f"{name}: expected {_phrase(expected)}, got {_json_text(got)}"
    return FieldError(pointer=f"/{name}", code=code, message=message, expected=expected, got=got)


def _phrase(expected: Any) -> str:
    match expected:
        case {"minimum": low, "maximum": high}:
            return f"{low} to {high}"
        case {"multiple_of": step, "plus": offset}:
            return f"{step} k + {offset}"
        case {"multiple_of": step}:
            return f"a multiple of {step}"
        case str():
            return expected
        case _:
            return _json_text(expected)


def _json_text(value: Any) -> str:
    return json.dumps(value)


def _shown(value: Any) -> Any:
    """*value* as an error may repeat it: short, and never the content of a container."""
    match value:
        case str():
            return value if len(value) <= SHOWN_CHARS_MAX else f"string of {len(value)} characters"
        case list():
            return "array"
        case dict():
            return "object"
        case int() if abs(value) > 2**63:
            return "integer of more than 63 bits"
        case float() if not math.isfinite(value):  # 1e999 is valid JSON
            return "number too large"
        case _:
            return value
