"""What the signatures of handlers cannot say about operators' operations."""

from dataclasses import dataclass

from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIType, Reference, RequestBody, Schema

from contracts.keys import ANONYMOUS, DEFAULT_RATE_PER_S, SCOPES
from contracts.tasks import Priority
from gateway.http.key_request import BOUND_MAX, RATE_MAX_PER_S, RATE_MIN_PER_S
from gateway.http.openapi.operations import RETRY_AFTER, DescribedOperation, parameter


@dataclass
class ChangeOperation(DescribedOperation):
    """A change by an operator that needs no body."""

    def __post_init__(self) -> None:
        self.send(503, RETRY_AFTER)


def _bound(what: str) -> Schema:
    return Schema(
        type=[OpenAPIType.INTEGER, OpenAPIType.NULL],
        minimum=1,
        maximum=BOUND_MAX,
        description=f"The most tasks of the caller that may {what}; null means no bound.",
    )


@dataclass
class NewKeyOperation(DescribedOperation):
    """`POST /admin/keys`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        self.send(503, RETRY_AFTER)
        schema = Schema(
            type=OpenAPIType.OBJECT,
            properties={
                "caller": Schema(
                    type=OpenAPIType.STRING,
                    pattern=f"^(?!{ANONYMOUS}$)[A-Za-z0-9._@-]{{1,64}}$",
                    description="Who uses the key. Keys of the same caller see the same tasks.",
                ),
                "scopes": Schema(
                    type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING, enum=list(SCOPES)), min_items=1
                ),
                "rate_per_s": Schema(
                    type=[OpenAPIType.NUMBER, OpenAPIType.NULL],
                    minimum=RATE_MIN_PER_S,
                    maximum=RATE_MAX_PER_S,
                    default=DEFAULT_RATE_PER_S,
                    description="Requests a second, counted over ten seconds; null means no limit.",
                ),
                "highest_priority": Schema(
                    type=OpenAPIType.STRING, enum=[each.value for each in Priority], default=Priority.INTERACTIVE.value
                ),
                "max_waiting": _bound("wait"),
                "max_running": _bound("run"),
            },
            required=["caller", "scopes"],
            additional_properties=False,
        )
        value = {"caller": "alice", "scopes": ["submit", "read"]}
        examples: dict[str, Example | Reference] = {"a client": Example(summary="A client", value=value)}
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=schema, examples=examples)}
        )


@dataclass
class ModeOperation(DescribedOperation):
    """`GET /admin/lanes/{model}/mode`."""

    def __post_init__(self) -> None:
        self.conditional("The revision of the switch.")


@dataclass
class SwitchOperation(DescribedOperation):
    """`PUT /admin/lanes/{model}/mode`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        self.accept(parameter("If-Match", "Set the switch only if it still has this ETag.", '"7"'))
        self.send(200, {"ETag": "The revision of the switch."})
        mode = Schema(
            type=OpenAPIType.STRING,
            enum=["auto", "degraded"],
            description="`auto` lets routing decide; `degraded` keeps new requests off the model's lanes.",
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
        self.send(503, RETRY_AFTER)
