"""Requests: from a JSON object to accepted parameters, or to every error at once in a fixed order.

Pure. The order of the errors is: the fields of `GenerationRequest` as declared, then unknown fields by name. The
product of width, height and frames is judged after the last of them, if each of them is valid by itself.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts.fields import SEED_SPAN
from contracts.generation.checks import FIELD_CHECKS, FIXED_VALUE, LAST_OF_SIZE, size_errors
from contracts.generation.errors import (
    SHOWN_CHARS_MAX,
    FieldError,
    InvalidRequest,
    missing,
    refused,
    shown,
    unknown_fields,
    wrong_type,
)
from contracts.generation.images import IMAGE_FORMS, ImageFile, ImageSource, bad_image, judged
from contracts.generation.keeping import KEEP_FIELD, keep_of
from contracts.images import BadImage
from contracts.settings import Catalog, ModelEntry
from contracts.tasks import GenerationParameters, ImageReference, Priority, ReplacedParameter
from contracts.webhooks import TaskWebhook

# Names from other video APIs that are too unlike ours for a similar spelling to find the right field.
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
    "callback_url": "webhook",
    "webhook_url": "webhook",
    "tags": "labels",
    "metadata": "labels",
    "ttl": "keep_s",
    "expires_after": "keep_s",
    "text": "prompt",
    "model_id": "model",
}


class GenerationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /generate`. A field that is absent takes the model's fixed or default value."""

    model: str
    prompt: str
    negative_prompt: str | UnsetType = UNSET
    image: str | dict[str, Any] | UnsetType = UNSET
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    num_frames: int | UnsetType = UNSET
    fps: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    steps: int | UnsetType = UNSET
    cfg: float | UnsetType = UNSET
    priority: str | UnsetType = UNSET
    webhook: dict[str, Any] | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    keep_s: int | UnsetType | None = UNSET


FIELDS: Final = GenerationRequest.__struct_fields__


class AcceptedRequest(Struct, frozen=True, kw_only=True):
    """A request that passed every check; the seed is None if the caller named none.

    *fingerprint* is equal for equal requests: it decides whether an Idempotency-Key is used again for the same request.
    *replaced* lists the fixed values that replaced others, in the order of the fields. *priority* is None if the
    request names no class. It decides when the task runs and not what it makes, so it is not in the fingerprint.
    *webhook*, *labels* and *keep_s* are in it: a request with other ones is another request.

    If *image_source* is not None, the image did not come with the request, and `with_image` completes it. The
    fingerprint has that source and not the image, so that a request can be repeated when its image is gone.
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
    priority: Priority | None = None
    webhook: TaskWebhook | None = None
    image_source: ImageSource | None = None
    labels: dict[str, str] = {}
    keep_s: int | None = None

    def parameters(self, seed: int) -> GenerationParameters:
        """The parameters of the task; *seed* is used where the request named none.

        Raises ValueError for a request that still lacks its image.
        """
        if self.image_source is not None:
            raise ValueError("the request still lacks its image")
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


def validate(body: Mapping[str, Any], catalog: Catalog) -> AcceptedRequest:
    """The request in *body*, complete and within the constraints of its model (FR-004..007, SC-002).

    Raises InvalidRequest with every error. An alias is resolved before any other check. If the model's enforcement is
    `report`, a number other than the fixed one is no error: the fixed one is used, and `replaced` lists it. A value of
    another type is an error there too.

    The fingerprint covers the request as accepted, so a default that is spelled out does not change it; but a replaced
    value counts as it was sent. So a valid body has one fingerprint whatever the enforcement, and bodies that ask for
    different values never share one.
    """
    errors: list[FieldError] = []
    entry = _model(body, catalog, errors)
    if entry is None:
        # no constraints to check against: the other fields' types and names can still be checked
        errors.extend(_type_errors(body))
        errors.extend(unknown_fields(body, FIELDS, meant=_suggestion))
        raise InvalidRequest(errors)
    values: dict[str, Any] = {}
    for name in FIELDS[1:]:
        value = body.get(name, UNSET)
        if name == KEEP_FIELD:  # its bound is the operator's, and not the model's
            values[name] = keep_of(name, value, catalog.keep_s, errors)
            continue
        values[name] = FIELD_CHECKS[name](name, value, entry.constraints, errors)
        if name == LAST_OF_SIZE:
            errors.extend(size_errors(values, entry))
    errors.extend(unknown_fields(body, FIELDS, meant=_suggestion))
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
    image: tuple[ImageReference, bytes] | ImageSource | None = values.pop("image")
    priority: Priority | None = values.pop("priority")
    webhook: TaskWebhook | None = values.pop("webhook")
    labels: dict[str, str] = values.pop("labels")
    keep_s: int | None = values.pop(KEEP_FIELD)
    reference, content = image if isinstance(image, tuple) else (None, None)
    source = None if isinstance(image, tuple) else image
    sent = [[each.field, _same_for_equal(body[each.field])] for each in replaced]
    named = ["labels", labels] if labels else None, [KEEP_FIELD, keep_s] if keep_s else None
    beside = [each for each in (sent, webhook, *named) if each]
    fingerprint = msgspec.json.encode([entry.name, values, reference if source is None else source, *beside])
    return AcceptedRequest(
        model=entry.name,
        image=reference,
        image_content=content,
        fingerprint=hashlib.sha256(fingerprint).hexdigest(),
        replaced=tuple(replaced),
        priority=priority,
        webhook=webhook,
        image_source=source,
        labels=labels,
        keep_s=keep_s,
        **values,
    )


def with_image(request: AcceptedRequest, file: ImageFile, catalog: Catalog) -> AcceptedRequest:
    """*request* completed with *file*, which was found where the request says that its image is. Raises
    InvalidRequest."""
    try:
        image = judged(file, catalog.models[request.model].constraints.image)
    except BadImage as error:
        raise InvalidRequest([bad_image(error, request.image_source)]) from error
    return msgspec.structs.replace(request, image=image, image_content=file.content, image_source=None)


def _same_for_equal(value: Any) -> str:
    """The same text for 2 and 2.0; exact, however large (unlike what `shown` repeats of a number)."""
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def parameter_errors(parameters: GenerationParameters, entry: ModelEntry) -> list[FieldError]:
    """What is wrong with *parameters* of a queued task, by the limits of its model; nothing if `validate` made them.

    A worker checks before it runs a task, because a client that may write to the queue can write any number.
    """
    errors: list[FieldError] = []
    values: dict[str, Any] = {}
    limits = entry.constraints
    for name in FIELDS[1:]:
        if name not in ("image", "seed", "priority", "webhook", "labels", KEEP_FIELD):
            values[name] = FIELD_CHECKS[name](name, getattr(parameters, name), limits, errors)
        if name == LAST_OF_SIZE:
            errors.extend(size_errors(values, entry))
    if not 0 <= parameters.seed < SEED_SPAN:  # a derived seed may lie beyond the limits of a requested one
        errors.append(refused("seed", "out_of_range", {"minimum": 0, "maximum": SEED_SPAN - 1}, parameters.seed))
    image = parameters.image
    if image is None:
        if limits.image.presence == "required":
            errors.append(missing("image", IMAGE_FORMS))
    elif (
        limits.image.presence == "unsupported"
        or image.media_type not in limits.image.media_types
        or not 0 < image.bytes <= limits.image.max_bytes
        or min(image.width, image.height) < 1
        or image.width * image.height > limits.image.max_pixels
    ):
        errors.append(FieldError(pointer="/image", code="bad_image", message="image: not within the model's limits"))
    return errors


def _model(body: Mapping[str, Any], catalog: Catalog, errors: list[FieldError]) -> ModelEntry | None:
    known = sorted(catalog.models)
    name = body.get("model", UNSET)
    if name is UNSET:
        errors.append(missing("model", known))
        return None
    if not isinstance(name, str):
        errors.append(wrong_type("model", "string", name))
        return None
    entry = catalog.resolve(name)
    if entry is None:
        errors.append(
            FieldError(
                pointer="/model",
                code="unknown_model",
                message=f"model: no model has this name; there are {', '.join(known)}",
                expected=known,
                got=shown(name),
            )
        )
    return entry


_EXPECTED_TYPES: Final[Mapping[str, tuple[str, tuple[type, ...]]]] = {
    "prompt": ("string", (str,)),
    "negative_prompt": ("string", (str,)),
    "image": (IMAGE_FORMS, (str, dict, ImageFile)),
    "width": ("integer", (int,)),
    "height": ("integer", (int,)),
    "num_frames": ("integer", (int,)),
    "fps": ("integer", (int,)),
    "seed": ("integer", (int,)),
    "steps": ("integer", (int,)),
    "cfg": ("number", (int, float)),
    "priority": ("string", (str,)),
    "webhook": ("object", (dict,)),
    "labels": ("object", (dict,)),
    KEEP_FIELD: ("whole seconds", (int, type(None))),
}


def _type_errors(body: Mapping[str, Any]) -> Iterator[FieldError]:
    if "prompt" not in body:
        yield missing("prompt", "string")
    for name, (expected, types) in _EXPECTED_TYPES.items():
        if name in body and type(body[name]) not in types:
            yield wrong_type(name, expected, body[name])


def _suggestion(name: str) -> str | None:
    if name in SYNONYMS:
        return SYNONYMS[name]
    if len(name) > SHOWN_CHARS_MAX:  # not a slip of the pen, and costly to compare
        return None
    close = difflib.get_close_matches(name, FIELDS, n=1)
    return close[0] if close else None
