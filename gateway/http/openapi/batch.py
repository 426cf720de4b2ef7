"""`POST /generate/batch`, as OpenAPI has it."""

from dataclasses import dataclass

from litestar.openapi.spec import Reference

from gateway.http.openapi.operations import RETRY_AFTER, DescribedOperation, parameter
from gateway.http.openapi.request import BATCH_BODY


@dataclass
class BatchOperation(DescribedOperation):
    """Its body, which the handler checks itself, and its headers."""

    def __post_init__(self) -> None:
        self.accept(
            parameter(
                "Idempotency-Key",
                "Names the batch: sending it again returns the same tasks and makes no new ones. 1 to 255 printable "
                "ASCII characters.",
                "storyboard-17",
                pattern="^[!-~]{1,255}$",
            ),
            parameter(
                "Priority",
                "As for `POST /generate`; applies to the requests of the batch that name no class.",
                "background",
            ),
        )
        self.send(503, RETRY_AFTER)
        self.request_body = Reference(ref=f"#/components/requestBodies/{BATCH_BODY}")
