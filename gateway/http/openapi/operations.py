"""What handlers' signatures cannot say about an operation: bodies, headers, other media types, problem documents."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from litestar.openapi import ResponseSpec
from litestar.openapi.spec import (
    Example,
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
from gateway.http.openapi.examples import (
    CANCELLED,
    DONE,
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
        self.send(401, {"WWW-Authenticate": "`Bearer`, with the reason for the refusal."})
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
            "label": label_query("Only tasks with this label, `key:value`. Repeat it to require several labels."),
            "created_after": moment_query("created_after", "Only tasks that were made at this moment or later."),
            "created_before": moment_query("created_before", "Only tasks that were made before this moment."),
        }
        self.parameters = [
            known.get(each.name, each) if isinstance(each, Parameter) else each for each in self.parameters or []
        ]

    def conditional(self, tag: str, *, example: str = '"7"', more: str = "") -> None:
        """Describes conditional reads; *tag* describes the `ETag` of the answer."""
        self.accept(
            parameter(
                "If-None-Match", f"Answer 304 if the current ETag is one of these; `*` matches any.{more}", example
            ),
            parameter("If-Match", "Answer 412 unless the current ETag is one of these.", example),
        )
        self.send(200, {"ETag": tag})
        self.answer(304, "Not modified: the answer still has one of the ETags in If-None-Match.")
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

    def answer(self, status: int, description: str, *media_types: str, schema: Schema | None = None) -> None:
        """There is an answer with *status*, of one of *media_types*, or without a body."""
        content = {media_type: OpenAPIMediaType(schema=schema) for media_type in media_types}
        response = OpenAPIResponse(description=description, content=content or None)
        self.responses = dict(sorted({**(self.responses or {}), str(status): response}.items()))


RETRY_AFTER: Final = {"Retry-After": "Seconds to wait before trying again."}
_AGE: Final = {
    "Age": "Sent only while the gateway is cut off from the queue and answers from memory: the greatest age of the "
    "answer, in seconds."
}


@dataclass
class KeyedOperation(DescribedOperation):
    """An operation that needs a key; its handler's signature shows the rest."""


@dataclass
class ResubmitOperation(DescribedOperation):
    """`POST /tasks/{id}/resubmit`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        self.accept(
            parameter("Idempotency-Key", "As for `POST /generate`.", "order-17-again", pattern="^[!-~]{1,255}$")
        )
        self._show(202, "Accepted: the new task.", {"pending": PENDING})
        self.send(202, {"Location": "The path of the new task.", "ETag": "The same as at the task's own path."})
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
                "Names the request: sending it again returns the same task, and makes no second one. "
                "1 to 255 printable ASCII characters.",
                "order-17",
                pattern="^[!-~]{1,255}$",
            ),
            parameter(
                "Prefer",
                "With `respond-async` the answer is `202` at once; a task that no worker takes in time ends as "
                "`failed` with the code `queue_overloaded`. Otherwise, if the model has no warm lane, the answer waits "
                "up to 30 s for the degraded worker: use a time-out of 35 s or more. With `wait=S` the answer comes "
                f"when the task has ended, or after S seconds ({MAX_WAIT_S:g} at most). The two can be combined.",
                "respond-async, wait=30",
            ),
            parameter(
                "Priority",
                "The class of a request whose body names none: `interactive`, `standard` or `background`, alone or "
                "beside the parameters of RFC 9218, which are ignored, like any unknown parameter.",
                "background",
            ),
        )
        accepted = {"pending": PENDING, "pending, with a warning": REPLACED}
        ended = {"done": DONE, "failed": FAILED}
        for status, description, examples in (
            (202, "Accepted: the task, which ends exactly once.", accepted),
            (200, "The task ended within the wait that Prefer asked for.", ended),
        ):
            self._show(status, description, examples)
            self.send(
                status,
                {
                    "Location": "The path of the task.",
                    "ETag": "The same as at the task's own path.",
                    "Preference-Applied": "The preferences that the gateway followed: `respond-async`, `wait=S`, or "
                    "both.",
                },
            )
        self.send(
            503,
            {
                "Retry-After": "Seconds to wait before trying again. With `queue_overloaded` they follow from "
                "measured service times."
            },
        )
        refused = (self.responses or {}).get("503")
        if isinstance(refused, OpenAPIResponse):
            refused.description += (
                " With `queue_overloaded`, `limit` names the limit that was hit. `depth`: the queue was full (answered "
                "at once). `wait`: no worker took the request within 30 s. Only where the settings switch them on: "
                "`displaced`, a request of a higher class took its place; `expected`, no worker is expected to be free "
                "within 30 s (answered at once). The request will not run in any of these cases."
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
            "The revision of the task; while it waits, also its place and expected wait; while it runs, also the time "
            "left.",
            more=" With `wait`, the answer comes at the first change after the revision of the tag.",
        )
        self._show(
            200, "The task.", {"done": DONE, "done, after a swap": SWAPPED, "pending": PENDING, "failed": FAILED}
        )
        self.send(
            200,
            {"Preference-Applied": "The wait that the gateway applied.", **_AGE},
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
                "The newest id that the client has received: the changes since then come first. An empty value counts "
                "as none.",
                "1742",
                pattern="^[0-9]{0,18}$",
            )
        )
        self.answer(
            200,
            "Events `open`, `reset`, `task`, `left`, `gone` and `places`, until the client or the gateway closes the "
            "stream, or `wait` is over.",
            "text/event-stream",
        )
        self.send(429, RETRY_AFTER)


@dataclass
class CancelOperation(DescribedOperation):
    """`DELETE /tasks/{id}`."""

    def __post_init__(self) -> None:
        self.accept(
            parameter(
                "If-Match", "Cancel the task only if it is still at the revision that this ETag begins with.", '"7"'
            )
        )
        ended = {"cancelled": CANCELLED, "ended before": DONE}
        self._show(200, "The task, ended by this call or before it.", ended)
        self.send(200, {"ETag": "The revision of the task."})
        self.send(503, RETRY_AFTER)


@dataclass
class EventsOperation(DescribedOperation):
    """`GET /tasks/{id}/events`: a stream of server-sent events."""

    def __post_init__(self) -> None:
        self.accept(
            parameter("Last-Event-ID", "The id of the last event received; browsers send it when they reconnect.", "7")
        )
        self.answer(200, "An event `task` at once and at every change, until the task has ended.", "text/event-stream")
        self.answer(204, "The task has ended and Last-Event-ID names its last event.")
        self.send(429, RETRY_AFTER)
        self.send(503, RETRY_AFTER)
