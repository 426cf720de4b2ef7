"""Reads what a client submits to `/v1/videos`, a form or JSON, and checks it in the order of refusals."""

from collections.abc import Mapping
from typing import Any, Final

from contracts.generation.errors import InvalidRequest
from contracts.generation.request import AcceptedRequest
from contracts.settings import Catalog
from gateway.boards.snapshots import Snapshot
from gateway.http.acceptance import accept
from gateway.http.body import JSON
from gateway.http.form import FORM
from gateway.http.lookup import CallerRequest
from gateway.http.not_accepted import NOT_ACCEPTED, not_accepted, overloaded
from gateway.http.problems import ProblemError, wrong_fields
from gateway.http.submission import Submission, read_checked
from gateway.placing.hold import UntilGone
from gateway.placing.overload import Overloaded
from gateway.services import Services
from gateway.videos.errors import NOT_AGAIN
from gateway.videos.fields import UnknownModel, accepted, as_named
from gateway.videos.forms import VideoFormFields
from ops.telemetry.tracing import current_span

MEDIA_TYPES: Final = (JSON, FORM)


async def read_video(request: CallerRequest, services: Services) -> Submission:
    """What *request* submits. Nothing is written. Raises HTTPException (413), ProblemError."""
    return await read_checked(request, services, _accepted, target=VideoFormFields())


async def submit_video(
    request: CallerRequest, services: Services, submission: Submission, *, until_gone: UntilGone | None
) -> Snapshot:
    """The task of *submission*, as `Admission.accept` returns it. Raises ProblemError."""
    try:
        snapshot = await accept(
            request,
            services,
            submission.accepted,
            key=submission.key,
            priority=submission.priority,
            until_gone=until_gone,
        )
    except Overloaded as error:
        raise overloaded(error, request, services) from error
    except InvalidRequest as error:  # about an image that the request names
        raise wrong_fields(InvalidRequest([as_named(each) for each in error.errors])) from error
    except NOT_ACCEPTED as error:
        problem = not_accepted(error, has_key=submission.key is not None)
        if problem.problem.outcome == "unknown" and submission.key is None:
            # a client that sends it again by itself might get two videos made
            problem.headers.update(NOT_AGAIN)
        raise problem from error
    current_span().set_attributes({"task.id": snapshot.task.id, "model": snapshot.task.model})
    return snapshot


def _accepted(fields: Mapping[str, Any], catalog: Catalog) -> AcceptedRequest:
    try:
        return accepted(fields, catalog)
    except UnknownModel as error:
        raise ProblemError("model_not_found", str(error)) from error
