"""What the signatures of the routes of webhooks cannot say."""

from dataclasses import dataclass

from litestar.openapi.spec import Example, OpenAPIMediaType, OpenAPIType, Reference, RequestBody, Schema

from gateway.http.openapi.operations import KeyedOperation
from gateway.http.openapi.request import events_schema, url_schema


@dataclass
class EndpointOperation(KeyedOperation):
    """`POST /webhooks`: its body, which the handler checks itself."""

    def __post_init__(self) -> None:
        schema = Schema(
            type=OpenAPIType.OBJECT,
            properties={"url": url_schema(), "events": events_schema()},
            required=["url"],
            additional_properties=False,
        )
        examples: dict[str, Example | Reference] = {
            "ends": Example(
                summary="Notify when a task has ended",
                value={"url": "https://example.com/warmlane", "events": ["task.done", "task.failed"]},
            ),
        }
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=schema, examples=examples)}
        )
