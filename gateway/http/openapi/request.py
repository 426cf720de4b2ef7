"""The request for a generation, and the filters of a list of tasks, as OpenAPI has them.

Both are made from the running catalog: the limits, defaults and fixed values in the document are those that
`contracts.generation.request.validate` applies.
"""

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any, Final

from litestar.openapi.spec import (
    Example,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)

from contracts.fields import Enforcement, IntegerField, NumberField, TextField, VideoGenerationConstraints
from contracts.generation.batch import BATCH_MAX, REQUESTS_FIELD
from contracts.generation.keeping import keep_bound_s
from contracts.generation.labels import KEY_PATTERN, LABELS_MAX, VALUE_PATTERN
from contracts.generation.request import FIELDS
from contracts.settings import Catalog, ModelEntry
from contracts.tasks import KEEP_MIN_S, Priority
from contracts.urls import URL_MAX_CHARS
from contracts.webhooks import DEFAULT_EVENTS, WebhookEvent
from gateway.http.openapi.examples import EXAMPLE_PROMPT
from gateway.http.openapi.first_frame import image_schema
from gateway.http.views import MODES

REQUEST_BODY: Final = "GenerationRequest"
BATCH_BODY: Final = "BatchRequest"
MODEL_QUERY: Final = "model"


def model_query(catalog: Catalog) -> Parameter:
    """The query parameter `model`: every name that a model of *catalog* goes by."""
    names = [name for entry in catalog.models.values() for name in entry.names]
    return filter_of("model", names, "Only tasks of these models, each by its name or an alias, in any case.")


def filter_of(name: str, values: Sequence[str], description: str) -> Parameter:
    """The query parameter *name*, with any number of *values*."""
    return Parameter(
        name=name,
        param_in="query",
        schema=Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, enum=values), min_items=1),
        description=f"{description} Repeat it for several values, or separate them with commas.",
    )


def request_body(catalog: Catalog) -> RequestBody:
    """The body of `POST /generate`: one schema for each model, so that every limit stands where it applies."""
    entries = [entry for _, entry in sorted(catalog.models.items())]
    examples: dict[str, Example | Reference] = {}
    for entry in entries:
        examples[entry.name] = Example(summary=f"{entry.title}, only the required fields", value=least_request(entry))
        examples[f"{entry.name}_full"] = Example(
            summary=f"{entry.title}, every field", value=full_request(entry, catalog.keep_s)
        )
    return RequestBody(
        required=True,
        description=(
            "The fields depend on the model. A field that is absent takes its default or fixed value. "
            "Integers are written without a decimal point: 8 and not 8.0. A form has the same fields, written as in "
            "JSON, except that texts have no quotes and the image is a file."
        ),
        content={
            "application/json": OpenAPIMediaType(
                schema=Schema(one_of=[request_schema(entry, catalog.keep_s) for entry in entries]),
                examples=examples,
            ),
            "multipart/form-data": OpenAPIMediaType(
                schema=Schema(one_of=[form_schema(entry, catalog.keep_s) for entry in entries])
            ),
        },
    )


def batch_body(catalog: Catalog) -> RequestBody:
    """The body of `POST /generate/batch`."""
    items = [request_schema(entry, catalog.keep_s) for _, entry in sorted(catalog.models.items())]
    for item in items:  # a name of its own: generators make a class of each
        item.title = f"{item.title}_in_batch"
    requests = Schema(type=OpenAPIType.ARRAY, items=Schema(one_of=items), min_items=1, max_items=BATCH_MAX)
    schema = Schema(
        title="batch_request",
        type=OpenAPIType.OBJECT,
        properties={REQUESTS_FIELD: requests},
        required=[REQUESTS_FIELD],
        additional_properties=False,
    )
    return RequestBody(
        required=True,
        description="At most 12 MiB, as for one request, including all images. Upload an image that several requests "
        "share with `POST /images`.",
        content={"application/json": OpenAPIMediaType(schema=schema)},
    )


def request_name(entry: ModelEntry) -> str:
    """The title of the requests for *entry*, after which client generators name a class: it has the model's name, which
    stays, and not the model's title."""
    return f"{entry.name}_request"


def request_schema(entry: ModelEntry, operators_keep_s: float | None = None) -> Schema:
    """The requests for one model. What JSON Schema cannot say (a product, 8 but not 8.0) is in words.

    The operator keeps tasks for *operators_keep_s*; None where that is not known.
    """
    limits = entry.constraints
    number = partial(_number, enforcement=entry.enforcement)
    properties: dict[str, Reference | Schema] = {
        "model": Schema(
            type=OpenAPIType.STRING,
            enum=list(entry.names),
            description=f"{entry.title}. Case does not matter.",
        ),
        "prompt": _text(limits.prompt, "What the video shows."),
        "negative_prompt": _text(limits.negative_prompt, _negative_prompt(limits)),
        "image": image_schema(limits.image),
        "width": number(limits.width, "Width of the video in pixels."),
        "height": number(limits.height, "Height of the video in pixels."),
        "num_frames": number(limits.num_frames, "Number of frames of the video."),
        "fps": number(limits.fps, "Frames per second."),
        "seed": number(
            limits.seed,
            "The same seed gives the same video. If absent, the gateway chooses one, and the task shows it.",
        ),
        "steps": number(limits.steps, "Inference steps."),
        "cfg": number(limits.cfg, "Classifier-free guidance scale."),
        "priority": Schema(
            type=OpenAPIType.STRING,
            enum=list(Priority),
            description="The priority class: waiting requests of a higher class start first, and no class starves "
            "another. If absent: the class in the header Priority, else `standard`, or the highest class that the API "
            "key may name if that is lower.",
        ),
        "webhook": webhook_schema(),
        "labels": labels_schema(),
        "keep_s": keep_schema(operators_keep_s),
    }
    required = ["model"]
    if limits.prompt.min_chars:
        required.append("prompt")
    if limits.negative_prompt.min_chars:
        required.append("negative_prompt")
    if limits.image.presence == "required":
        required.append("image")
    if limits.image.presence == "unsupported":
        del properties["image"]
    return Schema(
        title=request_name(entry),
        description=(
            f"{entry.title}: {' or '.join(MODES[limits.image.presence])}. width x height x num_frames is at most "
            f"{limits.max_volume}; more is refused as `too_large`."
        ),
        type=OpenAPIType.OBJECT,
        properties=properties,
        required=required,
        additional_properties=False,
    )


def form_schema(entry: ModelEntry, operators_keep_s: float | None = None) -> Schema:
    """The same as a form: the image is a file."""
    schema = request_schema(entry, operators_keep_s)
    schema.title = f"{schema.title}_form"
    if schema.properties and "image" in schema.properties:
        described = schema.properties["image"]
        text = described.description if isinstance(described, Schema) else None
        schema.properties["image"] = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY, description=text)
    return schema


def webhook_schema() -> Schema:
    """The address that a request asks to notify of its task."""
    return Schema(
        type=OpenAPIType.OBJECT,
        properties={"url": url_schema(), "events": events_schema()},
        required=["url"],
        additional_properties=False,
        description="An address to notify of the task. `GET /webhooks/secret` gives the secret that signs the "
        "messages; for a registered address, its own secret signs them.",
    )


def labels_schema() -> Schema:
    """The labels by which a caller finds the task of a request again."""
    return Schema(
        type=OpenAPIType.OBJECT,
        property_names=Schema(type=OpenAPIType.STRING, pattern=f"^{KEY_PATTERN}$"),
        additional_properties=Schema(type=OpenAPIType.STRING, pattern=f"^{VALUE_PATTERN}$"),
        max_properties=LABELS_MAX,
        description="Your own labels for the task, shown in answers, events and webhooks. `GET /tasks` filters by "
        "them. Put no secret in them.",
    )


def keep_schema(operators_s: float | None) -> Schema:
    """How long a request asks to keep its task, where the operator keeps tasks for *operators_s*."""
    return Schema(
        type=[OpenAPIType.INTEGER, OpenAPIType.NULL],
        minimum=KEEP_MIN_S,
        maximum=keep_bound_s(operators_s),
        description="How many seconds the task is kept after its end. Then it is forgotten with its video, thumbnail "
        "and image, as by `DELETE /tasks/{id}/record`. Null or absent: the operator's `keep_s` in `GET /settings`, "
        "which is also the maximum.",
    )


def label_query(description: str) -> Parameter:
    """The query parameter `label`."""
    return Parameter(
        name="label",
        param_in="query",
        schema=Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(type=OpenAPIType.STRING, pattern=f"^{KEY_PATTERN}:{VALUE_PATTERN}$"),
            max_items=LABELS_MAX,
        ),
        description=description,
    )


def moment_query(name: str, description: str) -> Parameter:
    """The query parameter *name*, a moment (RFC 3339)."""
    schema = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME)
    return Parameter(name=name, param_in="query", schema=schema, description=f"{description} With a time zone.")


def url_schema() -> Schema:
    """The address of a receiver."""
    return Schema(
        type=OpenAPIType.STRING,
        max_length=URL_MAX_CHARS,
        pattern=r"^https?://[^\s#@]+$",
        description="The address. It must use https and be on the public internet, unless the operator allows more.",
    )


def events_schema() -> Schema:
    """The events of which a receiver may be notified."""
    return Schema(
        type=OpenAPIType.ARRAY,
        items=Schema(type=OpenAPIType.STRING, enum=[event.value for event in WebhookEvent]),
        min_items=1,
        default=[event.value for event in DEFAULT_EVENTS],
        description="The events to send. `task.progress` is sent only if named, at most every 2 s.",
    )


def _negative_prompt(limits: VideoGenerationConstraints) -> str:
    # at a scale of 1 the pipelines take no second, unguided step, and do not read the negative prompt
    cfg, default = limits.cfg, limits.negative_prompt.guided_default
    highest = cfg.maximum if cfg.fixed is None else cfg.fixed
    when = "Has no effect at cfg 1." if (highest or 0) > 1 else f"Has no effect on this model, whose cfg is {highest}."
    absent = f" Default where cfg is above 1: {default}" if default and (highest or 0) > 1 else ""
    return f"What the video should not show. {when}{absent}"


# A character that is white space neither to Python's str.strip nor to the regular expressions of ECMA-262
_VISIBLE: Final = r"[^\s\u001c-\u001f\u0085]"


def _text(field: TextField, description: str) -> Schema:
    # white space around the text does not count towards min_chars
    pattern = None
    if field.min_chars == 1:
        pattern = _VISIBLE
    elif field.min_chars > 1:
        pattern = rf"{_VISIBLE}[\s\S]{{{field.min_chars - 2},}}{_VISIBLE}"
    return Schema(
        type=OpenAPIType.STRING,
        min_length=field.min_chars or None,
        max_length=field.max_chars,
        pattern=pattern,
        description=description,
    )


def _number(field: IntegerField | NumberField, description: str, *, enforcement: Enforcement) -> Schema:
    kind = OpenAPIType.INTEGER if isinstance(field, IntegerField) else OpenAPIType.NUMBER
    if field.fixed is not None and enforcement == "report":
        text = f"{description} Fixed: {field.fixed} replaces any other value, and `warnings` says so."
        return Schema(type=kind, default=field.fixed, description=text)
    if field.fixed is not None:
        text = f"{description} Fixed: any value but {field.fixed} is refused."
        return Schema(type=kind, const=field.fixed, default=field.fixed, description=text)
    schema = Schema(
        type=kind,
        minimum=field.minimum,
        maximum=field.maximum,
        default=field.default,
        description=description,
    )
    if field.step is not None and field.offset % field.step == 0:
        schema.multiple_of = field.step
    elif field.step is not None:
        # JSON Schema has no "4 k + 1", so the values themselves are listed
        low, high = ceil(field.minimum or 0), field.maximum or 0
        first = low + (field.offset - low) % field.step
        schema.enum = list(range(first, int(high) + 1, field.step))
        schema.description = f"{description} {field.step} k + {field.offset}."
    return schema


# one white pixel
_EXAMPLE_IMAGE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def least_request(entry: ModelEntry) -> dict[str, Any]:
    """A valid request for *entry* with only the fields that it needs."""
    required = request_schema(entry).required or ()
    return {name: value for name, value in full_request(entry).items() if name in required}


def full_request(entry: ModelEntry, operators_keep_s: float | None = None) -> dict[str, Any]:
    """A valid request for *entry* with every field that it takes, in the order of the fields, where the operator keeps
    tasks for *operators_keep_s*."""
    limits = entry.constraints
    values: dict[str, Any] = {
        "model": entry.name,
        "prompt": _example_text(limits.prompt, EXAMPLE_PROMPT),
        "negative_prompt": _example_text(limits.negative_prompt, "blurry, text"),
        "priority": Priority.STANDARD.value,
        "webhook": {"url": "https://example.com/warmlane", "events": ["task.done", "task.failed"]},
        "labels": {"project": "spring"},
        "keep_s": min(3_600, keep_bound_s(operators_keep_s)),
        "seed": limits.seed.value_when_absent if limits.seed.value_when_absent is not None else limits.seed.minimum,
    }
    if limits.image.presence != "unsupported":
        values["image"] = _EXAMPLE_IMAGE
    for name in FIELDS:
        values.setdefault(name, getattr(getattr(limits, name, None), "value_when_absent", None))
    return {name: values[name] for name in FIELDS if values[name] is not None}


def _example_text(field: TextField, text: str) -> str:
    return text[: field.max_chars].ljust(field.min_chars, "!")
