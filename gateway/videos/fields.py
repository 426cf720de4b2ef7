"""Translates the fields of a request to `/v1/videos` into those of `POST /generate`. Pure.

They are OpenAI's, vLLM-Omni's under the same names, and `priority`, `labels`, `webhook` and `keep_s` of our own.
`contracts.generation.request.validate` judges the result, as it does every other request; an error names the field as
the client sent it.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.generation.body import MalformedBody, parse_body
from contracts.generation.errors import FieldError, InvalidRequest, missing, refused, shown, unknown_fields, wrong_type
from contracts.generation.images import ImageFile
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog, ModelEntry
from gateway.videos.objects import seconds_of

# In the order in which errors are listed.
FIELDS: Final = (
    "model",
    "prompt",
    "negative_prompt",
    "input_reference",
    "image_reference",
    "size",
    "width",
    "height",
    "seconds",
    "num_frames",
    "fps",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "priority",
    "labels",
    "webhook",
    "keep_s",
    "user",
)
# The fields that have another name at `POST /generate`.
_SAME: Final[Mapping[str, str]] = {"num_inference_steps": "steps", "guidance_scale": "cfg"}
_AS_THEY_ARE: Final = (
    "model",
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_frames",
    "fps",
    "seed",
    "priority",
    "labels",
    "webhook",
    "keep_s",
)
# The image, by OpenAI's name and by vLLM-Omni's.
IMAGES: Final = ("input_reference", "image_reference")
# The name of a field in errors if the request used none of its names.
NAMED: Final[Mapping[str, str]] = {"image": IMAGES[0]}
_SIZE: Final = re.compile(r"([0-9]{1,5})[xX]([0-9]{1,5})")
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
_REFERENCE: Final = 'a file, {"image_url": …} or {"file_id": …}'


class UnknownModel(ValueError):
    """No model has the name that a request gives. The text names those that there are."""


class Translation(Struct):
    """A request in translation: *body* is that of `POST /generate`; *named* has the names that the client used for its
    fields; *errors* is what is wrong before `validate` judges it."""

    body: dict[str, Any]
    named: dict[str, str]
    errors: list[FieldError]


def accepted(sent: Mapping[str, Any], catalog: Catalog) -> AcceptedRequest:
    """The request that *sent* asks for, complete and within the constraints of its model.

    Raises InvalidRequest with every error, in the order of FIELDS and in the names of *sent*, and UnknownModel.
    """
    made = Translation({}, dict(NAMED), [])
    for name in _AS_THEY_ARE:
        if name in sent:
            made.body[name] = sent[name]
    for name, own in _SAME.items():
        if name in sent:
            made.body[own] = sent[name]
            made.named[own] = name
    _take_image(sent, made)
    _take_size(sent, made)
    entry = _model(sent, catalog, made)
    _take_seconds(sent, entry, made)
    if not isinstance(sent.get("user", ""), str):
        made.errors.append(wrong_type("user", "string", sent["user"]))
    made.errors.extend(unknown_fields(sent, FIELDS))
    if entry is None:
        if "prompt" not in sent:
            made.errors.append(missing("prompt", "string"))
        raise InvalidRequest(_ordered(made.errors))
    try:
        request = validate(made.body, catalog)
    except InvalidRequest as refusal:
        found = [as_named(error, made.named) for error in refusal.errors]
        # a field that could not be read is absent from the body: only the error about that is listed
        known = {error.pointer for error in made.errors}
        made.errors.extend(error for error in found if error.pointer not in known)
        raise InvalidRequest(_ordered(made.errors)) from None
    if made.errors:
        raise InvalidRequest(_ordered(made.errors))
    return request


def as_named(error: FieldError, named: Mapping[str, str] = NAMED) -> FieldError:
    """*error*, about a field of `POST /generate`, in the name that the client used for it."""
    own, _, rest = error.pointer.removeprefix("/").partition("/")
    name = named.get(own)
    if name is None:
        return error
    pointer, message = f"/{name}" + (f"/{rest}" if rest else ""), error.message
    if own == "image":
        renamed = {"/image/url": f"/{name}/image_url", "/image/ref": f"/{name}/file_id"}
        pointer = renamed.get(error.pointer, pointer)
        message = message.removeprefix(f"{error.pointer[1:]}: ")
        return replace(error, pointer=pointer, message=f"{pointer[1:]}: {message}")
    if own in ("steps", "cfg"):  # the very same field
        message = message.removeprefix(f"{own}: ")
    return replace(error, pointer=pointer, message=f"{name}: {message}")


def model_when_absent(catalog: Catalog, *, has_image: bool) -> ModelEntry | None:
    """The one model that makes videos from text, or from an image if *has_image*; None if there are several, or
    none."""
    unfit = "unsupported" if has_image else "required"
    found = [entry for entry in catalog.models.values() if entry.constraints.image.presence != unfit]
    return found[0] if len(found) == 1 else None


def frames_of(seconds: float, *, fps: int, step: int, offset: int) -> int:
    """How many frames last *seconds* from the first to the last: the value of *step* k + *offset* that is nearest, and
    of two that are equally near the larger."""
    wanted = seconds * fps + 1
    return offset + step * math.floor((wanted - offset) / step + 0.5)


def _model(sent: Mapping[str, Any], catalog: Catalog, made: Translation) -> ModelEntry | None:
    names = sorted(catalog.models)
    if "model" not in sent:
        entry = model_when_absent(catalog, has_image=any(name in sent for name in IMAGES))
        if entry is None:
            made.errors.append(missing("model", names))
        else:
            made.body["model"] = entry.name
        return entry
    name = sent["model"]
    if not isinstance(name, str):
        made.errors.append(wrong_type("model", "string", name))
        return None
    entry = catalog.resolve(name)
    if entry is None:
        raise UnknownModel(f"model: no model has the name {json.dumps(shown(name))}; the models are {', '.join(names)}")
    return entry


def _take_image(sent: Mapping[str, Any], made: Translation) -> None:
    given = [name for name in IMAGES if name in sent]
    if not given:
        return
    name = given[0]
    if len(given) > 1:
        made.errors.append(_twice(given[1], name, "gives an image already"))
    made.named["image"] = name
    value = sent[name]
    if isinstance(value, str) and value.lstrip().startswith("{"):  # as in vLLM-Omni's forms
        try:
            value = parse_body(value.encode())
        except MalformedBody:
            made.errors.append(refused(name, "wrong_type", _REFERENCE, value))
            return
    match value:
        case ImageFile() | str():
            made.body["image"] = value
        case {"image_url": str(url)} if len(value) == 1:
            made.body["image"] = url if url[:5].lower() == "data:" else {"url": url}
        case {"file_id": str(ref)} if len(value) == 1:
            made.body["image"] = {"ref": ref}
        case _:
            made.errors.append(wrong_type(name, _REFERENCE, value))


def _take_size(sent: Mapping[str, Any], made: Translation) -> None:
    if "size" not in sent:
        return
    value = sent["size"]
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        made.errors.append(refused("size", "wrong_type", "WIDTHxHEIGHT, as in 832x480", value))
        return
    for side, text in zip(("width", "height"), found.groups(), strict=True):
        if side in sent and sent[side] != int(text):
            made.errors.append(_twice(side, "size", "gives another value"))
        made.body[side] = int(text)
        made.named[side] = "size"


def _take_seconds(sent: Mapping[str, Any], entry: ModelEntry | None, made: Translation) -> None:
    if "seconds" not in sent:
        return
    value = sent["seconds"]
    text = str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if not _SECONDS.fullmatch(text):
        made.errors.append(refused("seconds", "wrong_type", "a number of seconds, as in 4", value))
        return
    if entry is None or "num_frames" in sent:  # as at vLLM-Omni, whose clients send both
        return
    limits = entry.constraints
    fps = made.body.get("fps")
    if type(fps) is not int or fps < 1:  # `validate` judges it
        fps = limits.fps.value_when_absent or 1
    field = limits.num_frames
    fewest, most = (field.fixed, field.fixed) if field.fixed is not None else (field.minimum, field.maximum)
    frames = frames_of(float(text), fps=fps, step=field.step or 1, offset=field.offset)
    if fewest is not None and most is not None and not fewest <= frames <= most:
        low, high = seconds_of(fewest, fps), seconds_of(most, fps)
        made.errors.append(
            FieldError(
                pointer="/seconds",
                code="out_of_range",
                message=f"seconds: expected {low} to {high} ({fewest} to {most} frames at {fps} a second), got {text}",
                expected={"minimum": float(low), "maximum": float(high)},
                got=shown(value),
            )
        )
        return
    made.body["num_frames"] = frames
    made.named["num_frames"] = "seconds"


def _twice(name: str, other: str, said: str) -> FieldError:
    message = f"{name}: {other} {said}; send only one of them"
    return FieldError(pointer=f"/{name}", code="said_twice", message=message)


def _ordered(errors: list[FieldError]) -> list[FieldError]:
    order = {name: at for at, name in enumerate(FIELDS)}
    return sorted(errors, key=lambda error: order.get(error.pointer.removeprefix("/").partition("/")[0], len(order)))
