"""What may go wrong in a call. Every error is a `WarmlaneError`.

WarmlaneError
├─ Misconfigured            the address, a certificate or an environment variable cannot be used
├─ GatewayUnreachable       no gateway answers; the request may have arrived
├─ ForeignAnswer            the answer is not a gateway's, or is that of a gateway that is too old
├─ RequestRefused           the gateway says why: status, code, detail, retry_after_s, request_id
│  ├─ WrongRequest          400, 413, 415, 422: the request has to change; `problem.errors` lists every wrong field
│  ├─ AccessDenied          401, 403: the key is missing, unknown, or lacks a scope
│  ├─ NotThere              404, 410: no such task, or its video has expired
│  └─ GatewayBusy           429, 503: the same request may be accepted later; `retry_after_s` says when
├─ NoVideo                  the task failed, or is not done; `task` is the task
├─ WaitTimedOut             the task has not ended in time; `task` is its last state, and it goes on
└─ DownloadDamaged          what arrived is not the video of the task
"""

from typing import TYPE_CHECKING

from warmlane_client.problem import ProblemDocument

if TYPE_CHECKING:
    from warmlane_client.models import Task


class WarmlaneError(Exception):
    """Any failure of a call."""


class Misconfigured(WarmlaneError):
    """The client cannot be made. *variable* names the environment variable that is wrong, if one is."""

    def __init__(self, message: str, *, variable: str = "") -> None:
        super().__init__(message)
        self.variable = variable


class NotAnAddress(Misconfigured):
    """The address of the gateway is not a usable URL."""


class GatewayUnreachable(WarmlaneError):
    """No gateway answers at *url*; *why* says what happened. The request may have arrived."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"no gateway answers at {url}: {why}")
        self.url = url
        self.why = why

    @property
    def is_certificate(self) -> bool:
        """Whether the certificate of the other side is not trusted."""
        return "CERTIFICATE_VERIFY_FAILED" in self.why


class ForeignAnswer(WarmlaneError):
    """The answer with *status* is not that of a Warmlane gateway, but of a proxy, for example."""

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class RequestRefused(WarmlaneError):
    """The gateway answered with a problem document (RFC 9457).

    *problem* is the document; *request_id* is the `X-Request-Id` of the answer, under which the gateway logs the
    request.
    """

    def __init__(self, problem: ProblemDocument, *, request_id: str = "") -> None:
        wrong = "; ".join(error.message for error in problem.errors or ())
        super().__init__(f"{problem.title} ({problem.status} {problem.code}): {wrong or problem.detail}".rstrip(": "))
        self.problem = problem
        self.request_id = request_id

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.problem.status

    @property
    def code(self) -> str:
        """The code that programs switch on, as in `queue_overloaded`."""
        return self.problem.code

    @property
    def detail(self) -> str:
        """What is wrong, for a person."""
        return self.problem.detail

    @property
    def retry_after_s(self) -> float | None:
        """When another try makes sense, in seconds; None where the gateway does not know."""
        return self.problem.retry_after_s


class WrongRequest(RequestRefused):
    """The request has to change (400, 413, 415, 422)."""


class AccessDenied(RequestRefused):
    """The key is missing, unknown, or lacks a scope (401, 403)."""


class NotThere(RequestRefused):
    """No such task, or its video has expired (404, 410)."""


class GatewayBusy(RequestRefused):
    """The same request may be accepted later (429, 503)."""


class NoVideo(WarmlaneError):
    """*task* has no video: it failed, or is not done."""

    def __init__(self, task: "Task") -> None:
        why = f"{task.error.code}: {task.error.message}" if task.error else f"it is {task.status}"
        super().__init__(f"task {task.id} has no video: {why}")
        self.task = task


class WaitTimedOut(WarmlaneError):
    """*task*, as it was seen last, has not ended in time. It goes on."""

    def __init__(self, task: "Task", timeout_s: float) -> None:
        super().__init__(f"task {task.id} is {task.status} after {timeout_s:g} s, and goes on")
        self.task = task


class DownloadDamaged(WarmlaneError):
    """The video that arrived has another hash than its task names."""


_BY_STATUS: dict[int, type[RequestRefused]] = {
    **dict.fromkeys((400, 413, 415, 422), WrongRequest),
    **dict.fromkeys((401, 403), AccessDenied),
    **dict.fromkeys((404, 410), NotThere),
    **dict.fromkeys((429, 503), GatewayBusy),
}


def problem_error(problem: ProblemDocument, *, request_id: str = "") -> RequestRefused:
    """The error for *problem*, of the class that its status calls for."""
    return _BY_STATUS.get(problem.status, RequestRefused)(problem, request_id=request_id)
