"""What the signature of the route that forgets a task cannot say."""

from dataclasses import dataclass

from gateway.http.openapi.operations import RETRY_AFTER, DescribedOperation, parameter


@dataclass
class ForgetOperation(DescribedOperation):
    """`DELETE /tasks/{id}/record`."""

    def __post_init__(self) -> None:
        self.accept(
            parameter(
                "If-Match", "Forget the task only if it is still at the revision that this ETag begins with.", '"7"'
            )
        )
        self.send(503, RETRY_AFTER)
