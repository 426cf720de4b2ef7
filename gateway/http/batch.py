"""`POST /generate/batch`: up to 20 requests in one, all accepted or none. HTTP only."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

from litestar import Response, post
from litestar.di import NamedDependency

from contracts.api.tasks import TaskBatch
from contracts.generation.batch import BATCH_MAX, validate_batch, wrong_at
from contracts.generation.body import MalformedBody, beside_image_bytes, parse_body
from contracts.generation.errors import FieldError, InvalidRequest
from contracts.generation.request import AcceptedRequest
from contracts.settings import Catalog
from gateway.http.acceptance import sender_of
from gateway.http.access import needs
from gateway.http.answers import JsonAnswer
from gateway.http.body import read_body, require_json, too_much_beside
from gateway.http.bounds import require_within_bounds
from gateway.http.lookup import CallerRequest, shown
from gateway.http.not_accepted import NOT_ACCEPTED, not_accepted, overloaded
from gateway.http.openapi.batch import BatchOperation
from gateway.http.openapi.operations import problem_responses
from gateway.http.priority import class_of
from gateway.http.problems import ProblemError, answer_of, wrong_fields
from gateway.http.queries import require_known_query
from gateway.http.submission import SUBMISSION_PROBLEMS, idempotency_key_of, objection_to
from gateway.placing.batches import BatchItem
from gateway.placing.overload import Overloaded
from gateway.services import Services
from ops.telemetry.tracing import below_root, current_span

# A batch may hold this many times as much beside its images as one request: prompts are seldom as long as allowed.
BESIDE_IMAGES: Final = 8


@post(
    "/generate/batch",
    status_code=202,
    summary="Submit several generations at once, all or none",
    tags=["generation"],
    operation_class=BatchOperation,
    responses=problem_responses("invalid_query", *SUBMISSION_PROBLEMS),
    **needs("submit", counts_late=True),
)
async def generate_batch(request: CallerRequest, services: NamedDependency[Services]) -> Response[TaskBatch]:
    """Checks 1 to 20 requests, each like the body of `POST /generate`, and queues all of them or none.

    The answer comes at once, as for `POST /generate` with `Prefer: respond-async`, with the tasks in the order of the
    requests. A task that no worker takes in time ends as `failed` with the code `queue_overloaded`. A `422` lists every
    wrong field of every request; its pointer begins with the place of the request, as in `/requests/3/steps`.

    If the queues have no room for all of them, the answer is `503 queue_overloaded` and none is queued; a batch
    displaces no waiting task. A batch counts as one request towards the rate limit of its key, and as all of its tasks
    towards the bound on waiting tasks. With an `Idempotency-Key`, the same key and body lead to the same tasks.
    """
    body = await read_body(request)
    beside_images = beside_image_bytes(body, images=BATCH_MAX)
    if beside_images > BESIDE_IMAGES * services.beside_image_max_bytes:
        raise too_much_beside(beside_images, BESIDE_IMAGES * services.beside_image_max_bytes)
    request.auth.take()
    require_json(request)
    require_known_query(request.scope)
    key = idempotency_key_of(request)
    accepted = await asyncio.to_thread(_accepted, body, services.catalog)
    require_all_reachable(services, accepted)
    named = request.headers.getall("priority", [])
    items = [BatchItem(each, class_of(each.priority, named, request.user.key)) for each in accepted]
    try:
        with below_root():
            snapshots = await services.batches.accept(
                items,
                caller=request.user.name,
                key=key,
                traceparent=sender_of(request),
                require=partial(require_within_bounds, request.user, services.tasks.index),
            )
    except Overloaded as error:
        return answer_of(overloaded(error, request, services))  # type: ignore[return-value]
    except NOT_ACCEPTED as error:
        raise not_accepted(error, has_key=key is not None) from error
    current_span().set_attribute("warmlane.batch", len(snapshots))
    tasks = tuple(shown(request, services, snapshot.task) for snapshot in snapshots)
    return JsonAnswer(TaskBatch(tasks=tasks), headers={}, status_code=202)


def require_all_reachable(services: Services, accepted: Sequence[AcceptedRequest]) -> None:
    """Raises the problem `validation_failed` with every address to which no webhook may go."""
    errors: list[FieldError] = []
    for place, each in enumerate(accepted):
        error = None if each.webhook is None else objection_to(services, each.webhook.url)
        if error is not None:
            errors += wrong_at(place, InvalidRequest([error])).errors
    if errors:
        raise wrong_fields(InvalidRequest(errors))


def _accepted(body: bytes, catalog: Catalog) -> tuple[AcceptedRequest, ...]:
    try:
        return validate_batch(parse_body(body), catalog)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    except InvalidRequest as error:
        raise wrong_fields(error) from error
