"""What handlers' signatures cannot say about an operation: bodies, headers, other media types, problem documents."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import (
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
)

from contracts.api.problems import Problem
from contracts.fields import SEED_SPAN
from contracts.tasks import GenerationTask, TaskStatus
from gateway.http.media_types import PLAIN_BYTES
from gateway.http.openapi.examples import (
    CANCELLED,
    DONE,
    EXAMPLE_ETAG,
    FAILED,
    PENDING,
    REPLACED,
    SWAPPED,
    place_in_example,
    problem_example,
)
from gateway.http.openapi.request import MODEL_QUERY, REQUEST_BODY, filter_of, label_query, moment_query
from gateway.http.preferences import FEED_WAIT_MAX_S, MAX_WAIT_S
from gateway.http.problem_kinds import PROBLEMS
from gateway.http.problems import PROBLEM_MEDIA_TYPE
from gateway.http.views import view

# Any route can get a header that it cannot read, and any can fail. Without an entry for 400, Litestar would describe an
# error document of its own there, which is never sent.
_ANYWHERE: Final = ("invalid_query", "unauthorized", "foreign_host", "rate_limited", "internal_error")


def problem_responses(*codes: str, is_scoped: bool = True) -> dict[int, ResponseSpec]:
    """A route's problem documents: one answer for each status, with an example for each code.

    The problems of any route that needs a key are always among them; `forbidden` only where the route *is_scoped*.
    Raises KeyError for a code that is not in `PROBLEMS`.
    """
    return {
        status: ResponseSpec(
            data_container=Problem,
            media_type=PROBLEM_MEDIA_TYPE,
            generate_examples=False,
            description=" · ".join(f"`{code}`: {PROBLEMS[code].title}." for code in group),
            examples=[problem_example(code) for code in group],
        )
        for status, group in codes_by_status(codes, is_scoped=is_scoped).items()
    }


def codes_by_status(codes: Iterable[str], *, is_scoped: bool) -> dict[int, list[str]]:
    """*codes*, and those of any route that needs a key, by status in ascending order."""
    by_status: dict[int, list[str]] = {}
    anywhere = (*_ANYWHERE, "forbidden") if is_scoped else _ANYWHERE
    for code in dict.fromkeys((*codes, *anywhere)):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return dict(sorted(by_status.items()))


def _header(description: str) -> OpenAPIHeader:
    return OpenAPIHeader(schema=Schema(type=OpenAPIType.STRING), description=description)


def parameter(name: str, description: str, example: str, *, pattern: str | None = None) -> Parameter:
    """A header that may be sent."""
    # the example is in the text: the docs page would send one that the schema has
    return Parameter(
        name=name,
        param_in="header",
        schema=Schema(type=OpenAPIType.STRING, pattern=pattern),
        description=f"{description} For example: `{example}`",
    )


@dataclass
class DescribedOperation(Operation):
    """An operation, of a route that needs a key, whose subclass adds what its handler's signature does not show."""

    def to_schema(self) -> dict[str, Any]:
        self.send(401, {"WWW-Authenticate": "`Bearer`, and what is wrong with the key."})
        self.send(429, RETRY_AFTER)
        return super().to_schema()

    def accept(self, *headers: Parameter) -> None:
        """*headers* may be sent with a request."""
        self.parameters = [*(self.parameters or []), *headers]

    def constrain(self, name: str, schema: Schema) -> None:
        """Gives the parameter *name* its *schema*: Litestar loses the limits of a parameter that may be absent."""
        for parameter in self.parameters or []:
            if isinstance(parameter, Parameter) and parameter.name == name:
                parameter.schema = schema

    def send(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer with *status*, where there is one, has *headers*, each with its description."""
        response = (self.responses or {}).get(str(status))
        if isinstance(response, OpenAPIResponse):
            described: dict[str, OpenAPIHeader | Reference] = {name: _header(text) for name, text in headers.items()}
            response.headers = {**(response.headers or {}), **described}

    def _filter(self) -> None:
        """Describes the parameters that filter tasks. The running catalog has the names of the models."""
        known: dict[str, Parameter | Reference] = {
            "model": Reference(ref=f"#/components/parameters/{MODEL_QUERY}"),
            "status": filter_of("status", list(TaskStatus), "Only tasks in these states."),
            "label": label_query(
                "Only tasks with this label, `key:value`. Of several, repeated, those with all of them."
            ),
            "created_after": moment_query("created_after", "Only tasks that were made at this moment or later."),
            "created_before": moment_query("created_before", "Only tasks that were made before this moment."),
        }
        self.parameters = [
            known.get(each.name, each) if isinstance(each, Parameter) else each for each in self.parameters or []
        ]

    def conditional(self, tag: str, *, example: str = '"7"', more: str = "") -> None:
        """Describes conditional reads; *tag* describes the `ETag` of the answer."""
        self.accept(
            parameter("If-None-Match", f"Answer 304 while it has one of these ETags, or `*`.{more}", example),
            parameter("If-Match", "Answer 412 unless it has one of these ETags.", example),
        )
        self.send(200, {"ETag": tag})
        self._answer(304, "As in the answer that had one of the ETags of If-None-Match.")
        self.send(304, {"ETag": tag})

    def _show(self, status: int, description: str, examples: Mapping[str, GenerationTask]) -> None:
        # as structs: in a plain dict Litestar would drop the nulls
        shown: dict[str, Example | Reference] = {
            name: Example(summary=name, value=view(task, place_in_example(task), task.created_at))
            for name, task in examples.items()
        }
        response = (self.responses or {}).get(str(status))
        if isinstance(response, OpenAPIResponse):
            response.description = description
            for media_type in (response.content or {}).values():
                media_type.examples = shown

    def _answer(self, status: int, description: str, *media_types: str, schema: Schema | None = None) -> None:
        content = {media_type: OpenAPIMediaType(schema=schema) for media_type in media_types}
        response = OpenAPIResponse(description=description, content=content or None)
        self.responses = dict(sorted({**(self.responses or {}), str(status): response}.items()))


# Raw bytes. In OpenAPI 3.1 the media type alone would do, but client generators look for this.
_BYTES: Final = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
_OF_A_FILE: Final = "The SHA-256 of the file."
RETRY_AFTER: Final = {"Retry-After": "Seconds until another try makes sense."}
_AGE: Final = {
    "Age": "Only while the gateway is cut off from the queue, and answers from memory: the greatest age of the answer, "
    "in seconds."
}


@dataclass
class KeyedOperation(DescribedOperation):
    """An operation that needs a key; its handler's signature shows the rest."""


@dataclass
class ResubmitOperation(DescribedOperation):
    """`POST /tasks/{id}/resubmit`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        self.accept(parameter("Idempotency-Key", "As of `POST /generate`.", "order-17-again", pattern="^[!-~]{1,255}$"))
        self._show(202, "Accepted: the new task.", {"pending": PENDING})
        self.send(202, {"Location": "The path of the new task.", "ETag": "As of the task's own path."})
        self.send(503, RETRY_AFTER)
        seed = Schema(
            one_of=[
                Schema(type=OpenAPIType.INTEGER, minimum=0, maximum=SEED_SPAN - 1),
                Schema(type=OpenAPIType.STRING, enum=["new"]),
            ],
            description="Absent: the seed that the task had.",
        )
        schema = Schema(type=OpenAPIType.OBJECT, properties={"seed": seed}, additional_properties=False)
        examples: dict[str, Example | Reference] = {
            "the same": Example(summary="With the same seed", value={}),
            "another": Example(summary="With a new seed", value={"seed": "new"}),
        }
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=schema, examples=examples)}
        )


@dataclass
class GenerateOperation(DescribedOperation):
    """`POST /generate`: its body, its headers and those of its answers."""

    def __post_init__(self) -> None:
        self.request_body = Reference(ref=f"#/components/requestBodies/{REQUEST_BODY}")
        self.accept(
            parameter(
                "Idempotency-Key",
                "Names the request: sending it again gives the same task and not a second one. "
                "1 to 255 printable ASCII characters.",
                "order-17",
                pattern="^[!-~]{1,255}$",
            ),
            parameter(
                "Prefer",
                "`respond-async` answers `202` at once, and a task that is not taken in time then ends as `failed` "
                "with the code `queue_overloaded`. Without it the answer waits for the degraded worker, up to 30 s, "
                "where the model has no warm lane: use a time-out of 35 s or more. `wait=S` answers when the task has "
                f"ended, and after S seconds in any case, {MAX_WAIT_S:g} at most; both together are possible.",
                "respond-async, wait=30",
            ),
            parameter(
                "Priority",
                "The class of a request whose body names none: `interactive`, `standard` or `background`, alone or "
                "beside the parameters of RFC 9218, which are ignored, as is what is not known.",
                "background",
            ),
        )
        accepted = {"pending": PENDING, "pending, with a warning": REPLACED}
        ended = {"done": DONE, "failed": FAILED}
        for status, description, examples in (
            (202, "Accepted: the task, which ends exactly once.", accepted),
            (200, "The task has ended within the wait that Prefer asked for.", ended),
        ):
            self._show(status, description, examples)
            self.send(
                status,
                {
                    "Location": "The path of the task.",
                    "ETag": "As of the task's own path.",
                    "Preference-Applied": "What was followed of Prefer: `respond-async`, `wait=S`, or both.",
                },
            )
        self.send(
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
                "full (answered at once); `wait`, no worker took the request within 30 s; where the settings switch it "
                "on, `displaced`, a request of a higher class took its place; and likewise `expected`, no worker will "
                "be free within 30 s (answered at once). None of them will run."
            )


@dataclass
class TaskOperation(DescribedOperation):
    """`GET /tasks/{id}`: waiting for a change."""

    def __post_init__(self) -> None:
        self.constrain("wait", Schema(type=OpenAPIType.NUMBER, minimum=0, maximum=MAX_WAIT_S))
        self.accept(
            parameter("Prefer", "`wait=S` is the same as the query parameter `wait`; `wait` alone is 60 s.", "wait=60"),
        )
        self.conditional(
            "The revision of the task; with place and expected wait while it waits, with the time left while it runs.",
            more=" With `wait`, the answer comes at the first change after the revision of the tag.",
        )
        self._show(
            200, "The task.", {"done": DONE, "done, after a swap": SWAPPED, "pending": PENDING, "failed": FAILED}
        )
        self.send(
            200,
            {"Preference-Applied": "The wait that Prefer asked for.", **_AGE},
        )
        self.send(503, RETRY_AFTER)


@dataclass
class TasksOperation(DescribedOperation):
    """`GET /tasks`: a page."""

    def __post_init__(self) -> None:
        self._filter()
        self.send(200, _AGE)
        self.send(503, RETRY_AFTER)


@dataclass
class FeedOperation(DescribedOperation):
    """`GET /tasks/events`: a stream of server-sent events about many tasks."""

    def __post_init__(self) -> None:
        self._filter()
        self.constrain("wait", Schema(type=OpenAPIType.NUMBER, minimum=0, maximum=FEED_WAIT_MAX_S))
        self.accept(
            parameter(
                "Last-Event-ID",
                "The newest id of the stream before: what changed since comes first. An empty one counts as none.",
                "1742",
                pattern="^[0-9]{0,18}$",
            )
        )
        self._answer(
            200,
            "Events `open`, `reset`, `task`, `left`, `gone` and `places`, until somebody hangs up.",
            "text/event-stream",
        )
        self.send(429, RETRY_AFTER)


@dataclass
class CancelOperation(DescribedOperation):
    """`DELETE /tasks/{id}`."""

    def __post_init__(self) -> None:
        self.accept(
            parameter("If-Match", "Cancel it only if it is still at the revision that this ETag begins with.", '"7"')
        )
        ended = {"cancelled": CANCELLED, "ended before": DONE}
        self._show(200, "The task, which has ended: now, or as it had before.", ended)
        self.send(200, {"ETag": "The revision of the task."})
        self.send(503, RETRY_AFTER)


@dataclass
class EventsOperation(DescribedOperation):
    """`GET /tasks/{id}/events`: a stream of server-sent events."""

    def __post_init__(self) -> None:
        self.accept(parameter("Last-Event-ID", "The last event seen, which browsers send when they reconnect.", "7"))
        self._answer(200, "An event `task` for each change, and one for now, until the task ends.", "text/event-stream")
        self._answer(204, "The task has ended and Last-Event-ID names its last event.")
        self.send(429, RETRY_AFTER)
        self.send(503, RETRY_AFTER)


@dataclass
class FileOperation(DescribedOperation):
    """A file of the artifact store, whole or in part."""

    def linked(self) -> None:
        """The answer may be a link to the file."""
        self._answer(302, "Where to download it, if this deployment gives links. It needs no key, and lasts a while.")
        self.send(302, {"Location": "A URL of the object store.", "ETag": _OF_A_FILE})

    def whole(self, what: str, *media_types: str) -> None:
        """The answer is the whole file *what*."""
        self._answer(200, f"The whole {what}.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self.send(200, {"Content-Length": "How many bytes follow."})

    def file(self, what: str, *media_types: str) -> None:
        """The answer is the file *what*, of one of *media_types*, or a range of it."""
        self.accept(
            parameter("Range", "One range of bytes; several, or another unit, give the whole file.", "bytes=0-1023"),
            parameter("If-Range", "Honour Range only while the file has this ETag.", EXAMPLE_ETAG),
        )
        sent = {"Accept-Ranges": "`bytes`", "Content-Length": "How many bytes follow."}
        # PLAIN_BYTES is for clients that accept nothing else, and client generators know it as bytes
        self._answer(200, f"The whole {what}.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self._answer(206, "The bytes that Range asked for.", *media_types, PLAIN_BYTES, schema=_BYTES)
        self.send(200, sent)
        self.send(206, {"ETag": _OF_A_FILE, **sent, "Content-Range": "Which bytes, of how many."})
        self.conditional(_OF_A_FILE, example=EXAMPLE_ETAG)
        self.send(416, {"Content-Range": f"How many bytes the {what} has."})


@dataclass
class VideoOperation(FileOperation):
    """`GET /tasks/{id}/video`: an MP4."""

    def __post_init__(self) -> None:
        self.file("video", "video/mp4")
        self.linked()


@dataclass
class ThumbnailOperation(FileOperation):
    """`GET /tasks/{id}/thumbnail`: a WebP."""

    def __post_init__(self) -> None:
        self.file("thumbnail", "image/webp")


@dataclass
class FileHeadOperation(DescribedOperation):
    """`HEAD /tasks/{id}/video`: the headers alone."""

    def __post_init__(self) -> None:
        self._answer(200, "The video exists.")
        self.send(200, {"Content-Length": "Its size in bytes."})
        self.conditional(_OF_A_FILE, example=EXAMPLE_ETAG)
