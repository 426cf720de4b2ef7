"""`POST /tasks/{id}/resubmit`: submits the request of an ended task again, as a new task. HTTP only.

`warmlane resubmit` does the same, with the image from a file of its user. Here the image comes from the artifact store.
"""

import asyncio
import base64
from typing import Any, Final, Literal

import msgspec
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import UNSET, UnsetType

from contracts.api.tasks import TaskView
from contracts.fields import SEED_SPAN
from contracts.generation.body import MalformedBody, parse_body
from contracts.generation.errors import FieldError, InvalidRequest, refused
from contracts.generation.keeping import KEEP_FIELD, keep_bound_s
from contracts.generation.request import AcceptedRequest, validate
from contracts.settings import Catalog
from contracts.tasks import GenerationTask, Priority, TaskStatus
from gateway.http.acceptance import accept
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.body import read_body, require_json
from gateway.http.lookup import CallerRequest, etag_of, find, shown
from gateway.http.not_accepted import NOT_ACCEPTED, not_accepted, overloaded
from gateway.http.openapi.operations import ResubmitOperation, problem_responses
from gateway.http.priority import class_of
from gateway.http.problems import ProblemError, answer_of
from gateway.http.queries import require_known_query
from gateway.http.submission import SUBMISSION_PROBLEMS, idempotency_key_of
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.artifacts import StorageFailed

BODY_MAX_BYTES: Final = 4 * 1024
NEW: Final = "new"
Seed = int | Literal["new"] | UnsetType


@post(
    "/tasks/{task_id:str}/resubmit",
    status_code=202,
    summary="Submit the request of a task again",
    tags=["tasks"],
    operation_class=ResubmitOperation,
    responses=problem_responses(
        "task_not_found",
        "task_not_ended",
        "image_expired",
        *SUBMISSION_PROBLEMS,
    ),
    **needs("submit", counts_late=True),
)
async def resubmit_task(
    request: CallerRequest, services: NamedDependency[Services], task_id: FromPath[str]
) -> Response[TaskView]:
    """Makes a new task with all parameters of a task that has ended, including its image. The old task stays as it is.

    `{}` keeps the seed, so that the same video results; `{"seed": "new"}` draws another seed, and a number sets it. The
    new task belongs to the caller of the key. It has the labels and `keep_s` of the old task, but not its webhook. The
    answer comes at once, as for `POST /generate` with `Prefer: respond-async`. For a failed task, `{}` without an
    `Idempotency-Key` makes only one new task, however often it is sent.
    """
    body = await read_body(request, max_bytes=BODY_MAX_BYTES)
    require_json(request)
    require_known_query(request.scope)
    key = idempotency_key_of(request)
    seed = _seed(body)
    request.auth.take()
    task = (await find(services, request.user, task_id)).task
    if not task.status.is_terminal:
        raise ProblemError("task_not_ended", f"the task is {task.status}; wait for it, or cancel it first")
    if key is None and seed is UNSET and task.status is TaskStatus.FAILED:
        key = f"resubmit-{task.id}"  # as `warmlane resubmit` does
    accepted = await asyncio.to_thread(_accepted, task, await _image(services, task), seed, services.catalog)
    named = None if task.priority is Priority.STANDARD else task.priority
    try:
        snapshot = await accept(
            request,
            services,
            accepted,
            key=key,
            priority=class_of(named, [], request.user.key),
            until_gone=None,
        )
    except Overloaded as error:
        return answer_of(overloaded(error, request, services))  # type: ignore[return-value]
    except NOT_ACCEPTED as error:
        raise not_accepted(error, has_key=key is not None) from error
    made = shown(request, services, snapshot.task)
    headers = {"location": made.links.self_, "etag": etag_of(snapshot, made)}
    return JsonAnswer(made, headers=headers, status_code=202)


def _seed(body: bytes) -> Seed:
    try:
        fields = parse_body(body)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    errors = []
    seed = fields.get("seed", UNSET)
    is_number = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < SEED_SPAN
    if not (seed is UNSET or seed == NEW or is_number):
        errors.append(refused("seed", "not_a_choice", f'"{NEW}", or 0 to {SEED_SPAN - 1}', seed))
    if fields.keys() - {"seed"}:
        errors.append(FieldError(pointer="", code="unknown_field", message="the only field is seed", expected=["seed"]))
    if errors:
        raise ProblemError("validation_failed", 'send {}, {"seed": "new"} or {"seed": 7}', errors=errors)
    found: Seed = seed
    return found


async def _image(services: Services, task: GenerationTask) -> bytes | None:
    """The image that *task* started from; None where it had none."""
    if task.image_path is None:
        return None
    try:
        content = await services.artifacts.get(task.image_path)
    except StorageFailed as error:
        raise ProblemError("storage_unavailable", "the image cannot be read now; try again", retry_after_s=5) from error
    if content is None:
        raise ProblemError("image_expired", "the image is gone from the store; send the request itself again")
    return content


def _accepted(task: GenerationTask, image: bytes | None, seed: Seed, catalog: Catalog) -> AcceptedRequest:
    """The request of *task*, checked as if it came from a client: the settings may have changed since."""
    body: dict[str, Any] = {"model": task.model, **msgspec.to_builtins(task.parameters)}
    if task.labels:
        body["labels"] = task.labels
    if task.keep_s is not None and task.keep_s <= keep_bound_s(catalog.keep_s):  # else the operator's is shorter now
        body[KEEP_FIELD] = task.keep_s
    del body["image"]
    had = task.parameters.image
    if had is not None and image is not None:
        body["image"] = f"data:{had.media_type};base64,{base64.b64encode(image).decode()}"
    if seed == NEW:
        del body["seed"]
    elif seed is not UNSET:
        body["seed"] = seed
    try:
        return validate(body, catalog)
    except InvalidRequest as error:
        detail = "the settings have changed since: this request would not be accepted today; see errors"
        raise ProblemError("validation_failed", detail, errors=error.errors) from error
