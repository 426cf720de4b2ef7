"""The API's description: `/openapi.json` and a docs page at `/docs` that needs no internet.

Handlers read and check the request body themselves, so it is described here, from the running catalog: the limits,
defaults and fixed values in the document are those that `contracts.generation.validate` applies. Litestar describes
what a handler's signature declares; the `operation_class` of a route adds the rest (headers, examples, raw bodies).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from typing import Any, Final

import msgspec
import openapi_ui_bundles
from litestar import MediaType, Request, Router, get
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPIFormat,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
    Tag,
)
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from contracts.generation import FIELDS, FieldError
from contracts.settings import (
    Catalog,
    Enforcement,
    ImageField,
    IntegerField,
    ModelEntry,
    NumberField,
    TextField,
    VideoGenerationConstraints,
)
from contracts.tasks import (
    FailureCode,
    GenerationParameters,
    GenerationTask,
    MemoryReading,
    Progress,
    ReplacedParameter,
    SwapReceipt,
    TaskError,
    TaskStatus,
    TimelineEntry,
    VideoFile,
)
from gateway.http.access import SECURITY_SCHEME, needs_nothing
from gateway.http.methods import head_of, options_of, with_heads_and_options
from gateway.http.problems import PROBLEM_MEDIA_TYPE, PROBLEMS, TYPE_PREFIX, Problem
from gateway.http.views import MODES, root_of, view
from gateway.placing.estimate import QueuePlace

_DOCS_PATH: Final = "/docs"
_DOCS_PAGES: Final = ["/", "/openapi.json", "/oauth2-redirect.html"]  # which Litestar has below it
_ASSETS_PATH: Final = "/docs/assets"
_REQUEST_BODY: Final = "GenerationRequest"
_MODEL_QUERY: Final = "model"
MAX_WAIT_S: Final = 60.0

# A held request is answered within the wait limit; the answer still has to reach its client.
CLIENT_MARGIN_S: Final = 5.0
_DESCRIPTION: Final = """
Warmlane turns a prompt, and for some models an image, into a short video.

1. `POST /generate` answers `202` with a task, or with a reason why not.
2. `GET /tasks/{{id}}?wait=60` answers when the task has ended; `GET /tasks/{{id}}/events` streams its changes.
3. `GET /tasks/{{id}}/video` is the MP4.

## Waiting

A model with a warm lane is answered at once. A model without one shares one worker with all others, which holds one
model at a time; 25 requests may wait for it. `POST /generate` is then answered when the worker takes the request, or
with `503` after at most {wait_limit_s:g} s: give your client a read time-out of {client_limit_s:g} s or more. With
`Prefer: respond-async` the answer is `202` at once, and a task that nobody took in time ends as `failed` with
`queue_overloaded`. As long as a task is pending, `queue` says where it stands and how long it will probably wait.

## Keys

Send `Authorization: Bearer KEY`. A key has scopes: `submit` (generate, cancel), `read` (tasks and videos), `admin`
(all of it, and `/admin`). A task is seen by keys of the same caller, and by `admin`. A key that asks too often is
answered `429` with `Retry-After`. A request that is wrong in several ways is refused for the first of 413, 401, 403,
415, 400, 422, 429, 412, 503.

## Caching and conditions

`HEAD` goes wherever `GET` goes. An `ETag` changes with the answer: also with the place of a task that waits, and where
it is compressed, which a long answer is for clients that accept gzip. `If-None-Match` leads to a `304`; with `wait` it
says which revision of a task was seen. With `If-Match`, `DELETE` and `PUT` change nothing but what was seen: the first
number of a tag, the revision, is compared, and another one is a `412`.

## Errors

Every error is a problem document (RFC 9457, `application/problem+json`). Programs switch on `code`; a `422` lists every
wrong field at once, in a fixed order.

| status | code | meaning |
|---|---|---|
"""


def openapi_config(catalog: Catalog) -> OpenAPIConfig:
    """The document for the models of *catalog*, and the page at `/docs`. `docs_routes` serves the rest of it."""
    return OpenAPIConfig(
        title="Warmlane",
        version=_version(),
        description=_description(catalog.windows.wait_limit_s),
        tags=[
            Tag(name="generation", description="Ask for a video."),
            Tag(name="tasks", description="Follow, cancel and collect what was asked for."),
            Tag(name="settings", description="What can be asked for."),
            Tag(name="operations", description="How the gateway is."),
            Tag(name="admin", description="What operators look at, and the switch of a model's lanes."),
        ],
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, method, path: handler.handler_name,  # `list_tasks`, `generate`, …
        components=Components(
            parameters={_MODEL_QUERY: model_query(catalog)},
            request_bodies={_REQUEST_BODY: request_body(catalog)},
            examples={code: _problem_example(code) for code in PROBLEMS},
            security_schemes={SECURITY_SCHEME: _security_scheme()},
        ),
        # Litestar answers unknown paths below this router itself, so it must not be the root
        openapi_router=Router(
            path=_DOCS_PATH,
            route_handlers=[
                *(options_of(path, ("GET", "HEAD")) for path in _DOCS_PAGES),
                head_of(_DOCS_PAGES, needs_nothing()),
            ],
            include_in_schema=False,
            opt=needs_nothing(),
        ),
        render_plugins=[
            _DocsPage(path="/"),
            _Document(path="/openapi.json"),
        ],
    )


class _DocsPage(SwaggerRenderPlugin):
    """Swagger UI, with addresses under the path that its reader sees."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return _swagger(root_of(request)).render(request, served_under(root_of(request), openapi_schema))


class _Document(JsonRenderPlugin):
    """The document beside it, where Litestar has one."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return super().render(request, served_under(root_of(request), openapi_schema))


@lru_cache(maxsize=8)
def _swagger(root: str) -> SwaggerRenderPlugin:
    assets = f"{root}{_ASSETS_PATH}"
    return SwaggerRenderPlugin(
        path="/",
        js_url=f"{assets}/swagger-ui-bundle.js",
        css_url=f"{assets}/swagger-ui.css",
        standalone_preset_js_url=f"{assets}/swagger-ui-standalone-preset.js",
        favicon=f"<link rel='icon' type='image/png' href='{assets}/favicon-32x32.png'>",
    )


def served_under(root: str, document: dict[str, Any]) -> dict[str, Any]:
    """*document* with the path that stands before all of its paths: relative, so right for every scheme and host."""
    return document | {"servers": [{"url": root or "/"}]}


def _security_scheme() -> SecurityScheme:
    return SecurityScheme(
        type="http",
        scheme="bearer",
        bearer_format="wl_ID_SECRET",
        description=(
            "An API key, made with `warmlane keys add`. What an operation lists is the scope that it needs; `admin` "
            "stands for all of them. On the loopback, no key is needed until the first one is made."
        ),
    )


def model_query(catalog: Catalog) -> Parameter:
    """The query parameter `model`: every name that a model of *catalog* goes by."""
    names = [name for entry in catalog.models.values() for name in entry.names]
    return _filter("model", names, "Only tasks of these models, each by its name or an alias, in any case.")


def _filter(name: str, values: Sequence[str], description: str) -> Parameter:
    return Parameter(
        name=name,
        param_in="query",
        schema=Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, enum=values), min_items=1),
        description=f"{description} Several are repeated, or parted by commas.",
    )


def _description(wait_limit_s: float) -> str:
    text = _DESCRIPTION.format(wait_limit_s=wait_limit_s, client_limit_s=wait_limit_s + CLIENT_MARGIN_S)
    return text + "".join(f"| {kind.status} | `{code}` | {kind.title} |\n" for code, kind in PROBLEMS.items())


def _version() -> str:
    try:
        return version("warmlane")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unreleased"


@get(
    "/openapi.json",
    media_type=MediaType.JSON,
    include_in_schema=False,
    sync_to_thread=False,
    opt=needs_nothing(),
)
def openapi_json(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The OpenAPI document."""
    return served_under(root_of(request), request.app.openapi_schema.to_schema())


def docs_routes() -> list[ControllerRouterHandler]:
    """`/openapi.json`, and the files of Swagger UI, which come with a package and not from a CDN."""
    assets = create_static_files_router(
        path=_ASSETS_PATH,
        directories=[openapi_ui_bundles.swagger_ui.static_path],
        include_in_schema=False,
        opt=needs_nothing(),
    )
    return [*with_heads_and_options([openapi_json]), assets]


# The request


def request_body(catalog: Catalog) -> RequestBody:
    """The body of `POST /generate`: one schema for each model, so that every limit stands where it applies."""
    entries = [entry for _, entry in sorted(catalog.models.items())]
    examples: dict[str, Example | Reference] = {}
    for entry in entries:
        examples[entry.name] = Example(summary=f"{entry.title}, as little as possible", value=least_request(entry))
        examples[f"{entry.name}_full"] = Example(summary=f"{entry.title}, every field", value=full_request(entry))
    return RequestBody(
        required=True,
        description=(
            "The fields depend on the model. A field that is absent takes its default or fixed value. "
            "Integers are written without a decimal point: 8 and not 8.0."
        ),
        content={
            "application/json": OpenAPIMediaType(
                schema=Schema(one_of=[request_schema(entry) for entry in entries]),
                examples=examples,
            )
        },
    )


def request_name(entry: ModelEntry) -> str:
    """What generators of clients name the class of requests for *entry* after: its name, which stays, not its title."""
    return f"{_REQUEST_BODY}_{entry.name}"


def request_schema(entry: ModelEntry) -> Schema:
    """The requests for one model. What JSON Schema cannot say (a product, 8 but not 8.0) is in words."""
    limits = entry.constraints
    number = partial(_number, enforcement=entry.enforcement)
    properties: dict[str, Reference | Schema] = {
        "model": Schema(
            type=OpenAPIType.STRING,
            enum=list(entry.names),
            description=f"{entry.title}. Upper and lower case are the same.",
        ),
        "prompt": _text(limits.prompt, "What the video shows."),
        "negative_prompt": _text(limits.negative_prompt, _negative_prompt(limits)),
        "image": _image(limits.image),
        "width": number(limits.width, "Width of the video in pixels."),
        "height": number(limits.height, "Height of the video in pixels."),
        "num_frames": number(limits.num_frames, "Number of frames of the video."),
        "fps": number(limits.fps, "Frames per second."),
        "seed": number(limits.seed, "The same seed gives the same video. Absent: the task names the one chosen."),
        "steps": number(limits.steps, "Inference steps."),
        "cfg": number(limits.cfg, "Classifier-free guidance scale."),
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


def _negative_prompt(limits: VideoGenerationConstraints) -> str:
    # the pipelines take no second, unguided step at a scale of 1, and then do not read it
    cfg, default = limits.cfg, limits.negative_prompt.guided_default
    highest = cfg.maximum if cfg.fixed is None else cfg.fixed
    when = "Has no effect at cfg 1." if (highest or 0) > 1 else f"Has no effect on this model, whose cfg is {highest}."
    absent = f" Absent, and with a cfg above 1: {default}" if default and (highest or 0) > 1 else ""
    return f"What it should not show. {when}{absent}"


# Not white space to Python's str.strip, nor to the regular expressions of ECMA-262
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
        text = f"{description} Fixed: {field.fixed} is used in the place of any other value, and `warnings` says so."
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
        # JSON Schema has no "4 k + 1": the values themselves
        low, high = ceil(field.minimum or 0), field.maximum or 0
        first = low + (field.offset - low) % field.step
        schema.enum = list(range(first, int(high) + 1, field.step))
        schema.description = f"{description} {field.step} k + {field.offset}."
    return schema


def _image(field: ImageField) -> Schema:
    names = [media_type.removeprefix("image/") for media_type in field.media_types]
    shortest = min((len(name) for name in names), default=0)
    return Schema(
        type=OpenAPIType.STRING,
        pattern=f"^data:image/({'|'.join(names)});base64,[A-Za-z0-9+/]+={{0,2}}$",
        max_length=len("data:image/;base64,") + shortest + field.max_bytes // 3 * 4,
        description=(
            f"The first frame, {field.presence}: a {', '.join(names)} file as a base64 data URI, at most "
            f"{field.max_bytes} bytes and {field.max_pixels} pixels. The declared type must be that of the file. "
            "The image is scaled to cover width and height, and cropped at its centre."
        ),
    )


_EXAMPLE_PROMPT: Final = "A paper boat sails down a rainy street, hand-drawn"
# one white pixel
_EXAMPLE_IMAGE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def least_request(entry: ModelEntry) -> dict[str, Any]:
    """A valid request for *entry* with only the fields that it needs."""
    required = request_schema(entry).required or ()
    return {name: value for name, value in full_request(entry).items() if name in required}


def full_request(entry: ModelEntry) -> dict[str, Any]:
    """A valid request for *entry* with every field that it takes, in the order of the fields."""
    limits = entry.constraints
    values: dict[str, Any] = {
        "model": entry.name,
        "prompt": _example_text(limits.prompt, _EXAMPLE_PROMPT),
        "negative_prompt": _example_text(limits.negative_prompt, "blurry, text"),
        "seed": limits.seed.value_when_absent if limits.seed.value_when_absent is not None else limits.seed.minimum,
    }
    if limits.image.presence != "unsupported":
        values["image"] = _EXAMPLE_IMAGE
    for name in FIELDS:
        values.setdefault(name, getattr(getattr(limits, name, None), "value_when_absent", None))
    return {name: values[name] for name in FIELDS if values[name] is not None}


def _example_text(field: TextField, text: str) -> str:
    return text[: field.max_chars].ljust(field.min_chars, "!")


# The answers


def _at(seconds: float) -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC) + timedelta(seconds=seconds)


_PENDING: Final = GenerationTask(
    id="019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55",
    model="anisora",
    parameters=GenerationParameters(
        prompt=_EXAMPLE_PROMPT,
        negative_prompt="",
        image=None,
        width=96,
        height=64,
        num_frames=17,
        fps=16,
        seed=7,
        steps=8,
        cfg=1.0,
    ),
    request_sha256="",
    status=TaskStatus.PENDING,
    route="lane",
    epoch=1,
    created_at=_at(0),
    queued_at=_at(0),
    deadline_at=_at(30),
    timeline=(TimelineEntry(at=_at(0), event="accepted", detail="to lane.anisora"),),
)
_REPLACED: Final = msgspec.structs.replace(_PENDING, replaced=(ReplacedParameter(field="steps", used=8, got=20),))
_CLAIMED: Final = TimelineEntry(at=_at(0.005), event="claim", detail="attempt 1 by anisora-1")


def _after_claim(**changes: Any) -> GenerationTask:
    known = {name: getattr(_PENDING, name) for name in _PENDING.__struct_fields__}
    return GenerationTask(**known | {"attempt": 1, "worker": "anisora-1", "claimed_at": _at(0.005)} | changes)


_DONE: Final = _after_claim(
    status=TaskStatus.DONE,
    finished_at=_at(0.6),
    progress=Progress(step=8, steps=8),
    video=VideoFile(path="", bytes=18231, sha256="9f86d081" * 8, width=96, height=64, frames=17, fps=16),
    memory=MemoryReading(rss_bytes=431_000_000, cleanup_s=0.04),
    timeline=(*_PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(0.6), event="finish")),
)
_FAILED: Final = _after_claim(
    status=TaskStatus.FAILED,
    attempt=2,
    finished_at=_at(41),
    error=TaskError(code=FailureCode.WORKER_LOST, message="2 workers were lost while they ran it"),
    timeline=(*_PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(41), event="fail", detail="worker_lost")),
)
_CANCELLED: Final = _after_claim(
    status=TaskStatus.FAILED,
    finished_at=_at(0.3),
    progress=Progress(step=3, steps=8),
    error=TaskError(code=FailureCode.CANCELLED, message="cancelled on request"),
    timeline=(*_PENDING.timeline, _CLAIMED, TimelineEntry(at=_at(0.3), event="fail", detail="cancelled")),
)
_SWAPPED: Final = msgspec.structs.replace(
    _DONE,
    route="degraded",
    worker="degraded-0",
    finished_at=_at(1.4),
    swap=SwapReceipt(
        slot="cpu-2",
        released_model="phr00t",
        loaded_model="anisora",
        how="unloaded",
        probe="rss",
        base_bytes=402_000_000,
        before_bytes=1_077_000_000,
        after_bytes=411_000_000,
        tolerance_bytes=48_000_000,
        free_bytes=12_000_000_000,
        needed_bytes=837_000_000,
        samples=2,
        release_s=0.11,
        verify_s=0.1,
        load_s=0.42,
        read_s=0.4,
        copy_s=0.0,
        first_step_s=0.11,
    ),
    timeline=(
        TimelineEntry(at=_at(0), event="accepted", detail="to degraded.anisora"),
        TimelineEntry(at=_at(0.005), event="claim", detail="attempt 1 by degraded-0"),
        TimelineEntry(at=_at(1.4), event="finish"),
    ),
)
_EXAMPLE_PLACE: Final = QueuePlace(position=3, expected_wait_s=4.2)
_EXAMPLE_ETAG: Final = f'"{"9f86d081" * 8}"'

_EXAMPLE_ERRORS: Final = [
    FieldError(
        pointer="/num_frames",
        code="not_a_multiple",
        message="num_frames: expected 8 k + 1, got 16",
        expected={"multiple_of": 8, "plus": 1},
        got=16,
    ),
    FieldError(pointer="/steps", code="fixed_value", message="steps: expected 8, got 7", expected=8, got=7),
]
_EXAMPLE_EXTRAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "validation_failed": {"errors": _EXAMPLE_ERRORS},
    "video_not_ready": {"instance": "/tasks/019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55"},
    "queue_overloaded": {"limit": "depth", "retry_after_s": 12.5},
    "storage_unavailable": {"retry_after_s": 5.0},
    "transport_unavailable": {"outcome": "unknown", "retry_after_s": 5.0},
    "rate_limited": {"retry_after_s": 0.4},
}


def example_problem(code: str) -> Problem:
    """The problem document *code* with a detail as a client may meet it."""
    kind = PROBLEMS[code]
    return Problem(
        type=TYPE_PREFIX + code,
        title=kind.title,
        status=kind.status,
        detail=kind.detail,
        code=code,
        **_EXAMPLE_EXTRAS.get(code, {}),
    )


class _NamedExample(Example):
    """Litestar takes the name of an example from its id, and then shows the id, which OpenAPI does not allow."""

    @property
    def _exclude_fields(self) -> set[str]:
        return {"id"}


def _problem_example(code: str) -> Example:
    return _NamedExample(id=code, summary=PROBLEMS[code].title, value=example_problem(code))


# Any route can be called with a header that cannot be read, and any can fail. Without an entry for 400, Litestar would
# describe an error document of its own there, which is never sent.
_ANYWHERE: Final = ("invalid_query", "unauthorized", "foreign_host", "rate_limited", "internal_error")


def problem_responses(*codes: str, is_scoped: bool = True) -> dict[int, ResponseSpec]:
    """A route's problem documents: one answer for each status, with an example for each code.

    What any route that needs a key can answer is always among them, `forbidden` only where it *is_scoped*.
    Raises KeyError for a code that is not in `PROBLEMS`.
    """
    by_status: dict[int, list[str]] = {}
    anywhere = (*_ANYWHERE, "forbidden") if is_scoped else _ANYWHERE
    for code in dict.fromkeys((*codes, *anywhere)):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return {
        status: ResponseSpec(
            data_container=Problem,
            media_type=PROBLEM_MEDIA_TYPE,
            generate_examples=False,
            description=" · ".join(f"`{code}`: {PROBLEMS[code].title}." for code in group),
            examples=[_problem_example(code) for code in group],
        )
        for status, group in sorted(by_status.items())
    }


# What Litestar's signatures cannot say: bodies, headers, other media types


def _header(description: str) -> OpenAPIHeader:
    return OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), description=description)


def _parameter(name: str, description: str, example: str, *, pattern: str | None = None) -> Parameter:
    # the example stands in the text: the docs page would send one that it is given
    return Parameter(
        name=name,
        param_in="header",
        schema=Schema(type=OpenAPIType.STRING, pattern=pattern),
        description=f"{description} For example: `{example}`",
    )


@dataclass
class _DescribedOperation(Operation):
    """An operation, of a route that needs a key, whose subclass adds what its handler's signature does not show."""

    def to_schema(self) -> dict[str, Any]:
        self._send(401, {"WWW-Authenticate": "`Bearer`, and what is wrong with the key."})
        self._send(429, _RETRY_AFTER)
        return super().to_schema()

    def _accept(self, *headers: Parameter) -> None:
        self.parameters = [*(self.parameters or []), *headers]

    def _constrain(self, name: str, schema: Schema) -> None:
        """Litestar loses the limits of a parameter that may be absent."""
        for parameter in self.parameters or []:
            if isinstance(parameter, Parameter) and parameter.name == name:
                parameter.schema = schema

    def _send(self, status: int, headers: Mapping[str, str]) -> None:
        response = (self.responses or {}).get(str(status))
        if isinstance(response, OpenAPIResponse):
            described: dict[str, OpenAPIHeader | Reference] = {name: _header(text) for name, text in headers.items()}
            response.headers = {**(response.headers or {}), **described}

    def _conditional(self, tag: str, *, example: str = '"7"', more: str = "") -> None:
        """What can be read only if it has changed: its `ETag` is *tag*."""
        self._accept(
            _parameter("If-None-Match", f"Answer 304 while it has one of these ETags, or `*`.{more}", example),
            _parameter("If-Match", "Answer 412 unless it has one of these ETags.", example),
        )
        self._send(200, {"ETag": tag})
        self._answer(304, "As in the answer that had one of the ETags of If-None-Match.")
        self._send(304, {"ETag": tag})

    def _show(self, status: int, description: str, examples: Mapping[str, GenerationTask]) -> None:
        # as structs: in a plain dict Litestar would drop the nulls
        shown: dict[str, Example | Reference] = {
            name: Example(summary=name, value=view(task, _EXAMPLE_PLACE if task.status is TaskStatus.PENDING else None))
            for name, task in examples.items()
        }
        response = (self.responses or {}).get(str(status))
        if isinstance(response, OpenAPIResponse):
            response.description = description
            for media_type in (response.content or {}).values():
                media_type.examples = shown

    def _answer(
        self, status: int, description: str, media_type: str | None = None, *, schema: Schema | None = None
    ) -> None:
        content = None if media_type is None else {media_type: OpenAPIMediaType(schema=schema)}
        response = OpenAPIResponse(description=description, content=content)
        self.responses = dict(sorted({**(self.responses or {}), str(status): response}.items()))


# Raw bytes. JSON Schema of OpenAPI 3.1 would need no more than the media type; generators of clients look for this.
_BYTES: Final = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
_OF_A_VIDEO: Final = "The SHA-256 of the video."
_RETRY_AFTER: Final = {"Retry-After": "Seconds until another try makes sense."}
_AGE: Final = {
    "Age": "Only while the gateway is cut off from the queue: how old, at most, what it answers from memory is, in "
    "seconds."
}


@dataclass
class KeyedOperation(_DescribedOperation):
    """An operation that needs a key; its handler's signature shows the rest."""


@dataclass
class GenerateOperation(_DescribedOperation):
    """`POST /generate`: its body, its headers and those of its answers."""

    def __post_init__(self) -> None:
        self.request_body = Reference(ref=f"#/components/requestBodies/{_REQUEST_BODY}")
        self._accept(
            _parameter(
                "Idempotency-Key",
                "Names the request: sending it again gives the same task and not a second one. "
                "1 to 255 printable ASCII characters.",
                "order-17",
                pattern="^[!-~]{1,255}$",
            ),
            _parameter(
                "Prefer",
                "`respond-async` answers `202` at once, and a task that is not taken in time then ends as `failed` "
                "with the code `queue_overloaded`. Without it the answer waits for the degraded worker, up to 30 s, "
                "where the model has no warm lane: use a time-out of 35 s or more. `wait=S` answers when the task has "
                f"ended, and after S seconds in any case, {MAX_WAIT_S:g} at most; both together are possible.",
                "respond-async, wait=30",
            ),
        )
        accepted = {"pending": _PENDING, "pending, with a warning": _REPLACED}
        ended = {"done": _DONE, "failed": _FAILED}
        for status, description, examples in (
            (202, "Accepted: the task, which ends exactly once.", accepted),
            (200, "The task has ended within the wait that Prefer asked for.", ended),
        ):
            self._show(status, description, examples)
            self._send(
                status,
                {
                    "Location": "The path of the task.",
                    "ETag": "As of the task's own path.",
                    "Preference-Applied": "What was followed of Prefer: `respond-async`, `wait=S`, or both.",
                },
            )
        self._send(
            503,
            {
                "Retry-After": "Seconds until another try makes sense; with `queue_overloaded` from measured service "
                "times."
            },
        )
        refused = (self.responses or {}).get("503")
        if isinstance(refused, OpenAPIResponse):
            refused.description += (
                " With `queue_overloaded`, `limit` says which limit of the degraded queue was hit: `depth`, it was "
                "full (told at once), or `wait`, no worker took the request within 30 s. Neither will run."
            )


@dataclass
class ModeOperation(_DescribedOperation):
    """`GET /admin/lanes/{model}/mode`."""

    def __post_init__(self) -> None:
        self._conditional("The revision of the switch.")


@dataclass
class SwitchOperation(_DescribedOperation):
    """`PUT /admin/lanes/{model}/mode`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        self._accept(_parameter("If-Match", "Set it only if it is still as the answer with this ETag said.", '"7"'))
        self._send(200, {"ETag": "The revision of the switch."})
        mode = Schema(
            type=OpenAPIType.STRING,
            enum=["auto", "degraded"],
            description="`auto` lets routing decide; `degraded` sends nothing new to the model's lanes.",
        )
        schema = Schema(
            type=OpenAPIType.OBJECT, properties={"mode": mode}, required=["mode"], additional_properties=False
        )
        examples: dict[str, Example | Reference] = {
            "degraded": Example(summary="Keep new requests off the lanes", value={"mode": "degraded"}),
            "auto": Example(summary="Let routing decide again", value={"mode": "auto"}),
        }
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=schema, examples=examples)}
        )
        self._send(503, _RETRY_AFTER)


@dataclass
class TaskOperation(_DescribedOperation):
    """`GET /tasks/{id}`: waiting for a change."""

    def __post_init__(self) -> None:
        self._constrain("wait", Schema(type=OpenAPIType.NUMBER, minimum=0, maximum=MAX_WAIT_S))
        self._accept(
            _parameter("Prefer", "`wait=S` is the same as the query parameter `wait`.", "wait=60"),
        )
        self._conditional(
            "The revision of the task; while it waits, with its place and its expected wait.",
            more=" With `wait`, the answer comes at the first change after the revision of the tag.",
        )
        self._show(
            200, "The task.", {"done": _DONE, "done, after a swap": _SWAPPED, "pending": _PENDING, "failed": _FAILED}
        )
        self._send(
            200,
            {"Preference-Applied": "The wait that Prefer asked for.", **_AGE},
        )
        self._send(503, _RETRY_AFTER)


@dataclass
class TasksOperation(_DescribedOperation):
    """`GET /tasks`: a page."""

    def __post_init__(self) -> None:
        # which names there are, the running catalog knows
        known: dict[str, Parameter | Reference] = {
            "model": Reference(ref=f"#/components/parameters/{_MODEL_QUERY}"),
            "status": _filter("status", list(TaskStatus), "Only tasks in these states."),
        }
        self.parameters = [
            known.get(each.name, each) if isinstance(each, Parameter) else each for each in self.parameters or []
        ]
        self._send(200, _AGE)
        self._send(503, _RETRY_AFTER)


@dataclass
class CancelOperation(_DescribedOperation):
    """`DELETE /tasks/{id}`."""

    def __post_init__(self) -> None:
        self._accept(
            _parameter("If-Match", "Cancel it only if it is still at the revision that this ETag begins with.", '"7"')
        )
        ended = {"cancelled": _CANCELLED, "ended before": _DONE}
        self._show(200, "The task, which has ended: now, or as it had before.", ended)
        self._send(200, {"ETag": "The revision of the task."})
        self._send(503, _RETRY_AFTER)


@dataclass
class EventsOperation(_DescribedOperation):
    """`GET /tasks/{id}/events`: a stream of server-sent events."""

    def __post_init__(self) -> None:
        self._accept(_parameter("Last-Event-ID", "The last event seen, which browsers send when they reconnect.", "7"))
        self._answer(200, "An event `task` for each change, and one for now, until the task ends.", "text/event-stream")
        self._answer(204, "The task has ended and Last-Event-ID names its last event.")
        self._send(429, _RETRY_AFTER)
        self._send(503, _RETRY_AFTER)


@dataclass
class VideoOperation(_DescribedOperation):
    """`GET /tasks/{id}/video`: an MP4, whole or in part."""

    def __post_init__(self) -> None:
        self._accept(
            _parameter("Range", "One range of bytes; several, or another unit, give the whole file.", "bytes=0-1023"),
            _parameter("If-Range", "Honour Range only while the video has this ETag.", _EXAMPLE_ETAG),
        )
        sent = {"Accept-Ranges": "`bytes`", "Content-Length": "How many bytes follow."}
        self._answer(200, "The whole video.", "video/mp4", schema=_BYTES)
        self._answer(206, "The bytes that Range asked for.", "video/mp4", schema=_BYTES)
        self._send(200, sent)
        self._send(206, {"ETag": _OF_A_VIDEO, **sent, "Content-Range": "Which bytes, of how many."})
        self._conditional(_OF_A_VIDEO, example=_EXAMPLE_ETAG)
        self._send(416, {"Content-Range": "How many bytes the video has."})


@dataclass
class VideoHeadOperation(_DescribedOperation):
    """`HEAD /tasks/{id}/video`: the headers alone."""

    def __post_init__(self) -> None:
        self._answer(200, "The video exists.")
        self._send(200, {"Content-Length": "Its size in bytes."})
        self._conditional(_OF_A_VIDEO, example=_EXAMPLE_ETAG)
