"""The routes below `/v1` as OpenAPI has them: their request, from the running catalog, and the form of their errors."""

from dataclasses import dataclass
from typing import Any, Final

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import (
    Example,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Reference,
    RequestBody,
    Schema,
)

from contracts.api.videos import VideoApiErrorBody
from contracts.geometry import default_size
from contracts.settings import Catalog, ModelEntry
from gateway.http.openapi.examples import EXAMPLE_PROMPT, NamedExample, example_problem
from gateway.http.openapi.files import FileOperation
from gateway.http.openapi.first_frame import reference_schema
from gateway.http.openapi.operations import (
    RETRY_AFTER,
    DescribedOperation,
    codes_by_status,
    parameter,
)
from gateway.http.openapi.request import full_request, request_schema
from gateway.http.problem_kinds import PROBLEMS
from gateway.videos.errors import error_body
from gateway.videos.fields import FIELDS

VIDEO_REQUEST_BODY: Final = "VideoRequest"
_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"
_POLL_AFTER: Final = {
    "openai-poll-after-ms": "Until the video has ended: how many milliseconds to wait before polling again."
}
_NOT_AGAIN: Final = {"x-should-retry": "`false` if the client must not retry automatically."}
_SIDE_NAMES: Final = {"steps": "num_inference_steps", "cfg": "guidance_scale"}


def error_responses(*codes: str, is_scoped: bool = True) -> dict[int, ResponseSpec]:
    """As `problem_responses`, in the form of the routes below `/v1`. Raises KeyError for an unknown code."""
    return {
        status: ResponseSpec(
            data_container=VideoApiErrorBody,
            media_type=_JSON,
            generate_examples=False,
            description=" · ".join(f"`{code}`: {PROBLEMS[code].title}." for code in group),
            examples=[
                NamedExample(id=code, summary=PROBLEMS[code].title, value=error_body(example_problem(code)))
                for code in group
            ],
        )
        for status, group in codes_by_status(codes, is_scoped=is_scoped).items()
    }


def video_request_body(catalog: Catalog) -> RequestBody:
    """The body of `POST /v1/videos`, as JSON and as a form."""
    entries = [entry for _, entry in sorted(catalog.models.items())]
    examples: dict[str, Example | Reference] = {
        entry.name: Example(summary=entry.title, value=_example(entry)) for entry in entries
    }
    every = Schema(any_of=[_schema(entry, catalog.keep_s) for entry in entries])
    return RequestBody(
        required=True,
        description=(
            "The fields of OpenAI's video API, and those of vLLM-Omni. What a field may be depends on the model. "
            "`model` may be left out if only one model makes videos of what is sent: a text alone, or a text with an "
            "image."
        ),
        content={
            _FORM: OpenAPIMediaType(schema=_form()),
            _JSON: OpenAPIMediaType(schema=every, examples=examples),
        },
    )


def _schema(entry: ModelEntry, operators_keep_s: float | None) -> Schema:
    own = request_schema(entry, operators_keep_s)
    known = {_SIDE_NAMES.get(name, name): schema for name, schema in (own.properties or {}).items()}
    if known.pop("image", None) is not None:
        known["input_reference"] = reference_schema(entry.constraints.image)
    known["size"] = Schema(
        type=OpenAPIType.STRING,
        pattern="^[0-9]{1,5}x[0-9]{1,5}$",
        description="Width and height, as in `96x64`; each has the limits of `width` and `height`.",
    )
    known["seconds"] = Schema(
        one_of=[
            Schema(type=OpenAPIType.STRING, pattern=r"^[0-9]{1,6}(\.[0-9]{1,9})?$"),
            Schema(type=OpenAPIType.NUMBER, minimum=0),
        ],
        description="The length of the video, rounded to the nearest possible number of frames at `fps`. "
        "`num_frames` overrides it.",
    )
    known["user"] = Schema(type=OpenAPIType.STRING, description="Accepted and ignored.")
    required = ["prompt", *(["input_reference"] if entry.constraints.image.presence == "required" else [])]
    return Schema(
        title=f"{VIDEO_REQUEST_BODY}_{entry.name}",
        description=own.description,
        type=OpenAPIType.OBJECT,
        properties={name: known[name] for name in FIELDS if name in known},
        required=required,
        additional_properties=False,
    )


def _form() -> Schema:
    text = Schema(type=OpenAPIType.STRING)
    fields: dict[str, Reference | Schema] = {
        name: text for name in FIELDS if name not in ("image_reference", "labels", "webhook")
    }
    fields["input_reference"] = Schema(
        type=OpenAPIType.STRING,
        format=OpenAPIFormat.BINARY,
        description="The first frame, as a file. Or send `input_reference[image_url]`, a data URI or an address, or "
        "`input_reference[file_id]`, the `id` that `POST /images` returned.",
    )
    return Schema(
        type=OpenAPIType.OBJECT,
        properties=fields,
        required=["prompt"],
        description="As in JSON, with each value as text. Nested fields are written `webhook[url]`, `labels[project]`.",
    )


def _example(entry: ModelEntry) -> dict[str, Any]:
    size = default_size(entry.constraints)
    found = {"model": entry.name, "prompt": EXAMPLE_PROMPT, "size": f"{size.width}x{size.height}"}
    if entry.constraints.image.presence != "required":
        return found
    return found | {"input_reference": {"image_url": full_request(entry)["image"]}}


@dataclass
class VideoCreateOperation(DescribedOperation):
    """`POST /v1/videos`."""

    def __post_init__(self) -> None:
        self.request_body = Reference(ref=f"#/components/requestBodies/{VIDEO_REQUEST_BODY}")
        self.accept(
            parameter("Idempotency-Key", "As for `POST /generate`.", "order-17", pattern="^[!-~]{1,255}$"),
            parameter("Priority", "As for `POST /generate`.", "background"),
        )
        self.send(200, _POLL_AFTER)
        self.send(503, RETRY_AFTER | _NOT_AGAIN)


@dataclass
class VideoSyncOperation(FileOperation):
    """`POST /v1/videos/sync`."""

    def __post_init__(self) -> None:
        self.request_body = Reference(ref=f"#/components/requestBodies/{VIDEO_REQUEST_BODY}")
        self.accept(
            parameter("Idempotency-Key", "As for `POST /generate`.", "order-17", pattern="^[!-~]{1,255}$"),
            parameter("Priority", "As for `POST /generate`.", "background"),
        )
        self.whole("video", "video/mp4")
        self.send(200, {"Location": "The path of the video."})
        self.send(500, _NOT_AGAIN)
        self.send(503, RETRY_AFTER | _NOT_AGAIN)


@dataclass
class VideoListOperation(DescribedOperation):
    """`GET /v1/videos`, and `DELETE /v1/videos/{id}`."""

    def __post_init__(self) -> None:
        self.constrain("order", Schema(type=OpenAPIType.STRING, enum=["asc", "desc"], default="desc"))
        self.send(503, RETRY_AFTER)


@dataclass
class VideoRetrieveOperation(DescribedOperation):
    """`GET /v1/videos/{id}`."""

    def __post_init__(self) -> None:
        self.accept(
            parameter(
                "Prefer", "`wait=S`: answer when the task has ended, or after S seconds at the latest.", "wait=60"
            )
        )
        self.send(200, _POLL_AFTER)
        self.send(503, RETRY_AFTER)


@dataclass
class VideoContentOperation(FileOperation):
    """`GET /v1/videos/{id}/content`: an MP4, or a WebP."""

    def __post_init__(self) -> None:
        self.constrain("variant", Schema(type=OpenAPIType.STRING, enum=["video", "thumbnail"], default="video"))
        self.file("video", "video/mp4", "image/webp")
        self.linked()
