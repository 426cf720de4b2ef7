"""`/admin`: what operators look at, and the switch of a model's lanes. HTTP only."""

from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal

from litestar import Request, Response, get, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath

from contracts.api.admin import (
    ColdStartsView,
    ExplainView,
    FallbacksView,
    HistoryView,
    LanesView,
    ModeView,
    QueuesView,
    QueueView,
    SwapsView,
    WaitingView,
)
from contracts.generation.body import MalformedBody, parse_body
from contracts.generation.errors import FieldError
from contracts.lanes import MODES, LaneMode
from contracts.settings import ModelEntry
from contracts.topology import work_stream
from gateway.boards.key_board import Caller
from gateway.http.access import Turn, needs
from gateway.http.admin_views import (
    cold_starts_view,
    estimate_view,
    explain_view,
    fallbacks_view,
    history_view,
    leader_view,
    mode_view,
    model_lanes,
    order_view,
    queue_view,
    running_view,
    swaps_view,
    waiting_view,
)
from gateway.http.answers import JsonAnswer
from gateway.http.audit import audited
from gateway.http.body import read_body, require_json
from gateway.http.conditions import Conditions, conditions_of, require_to_change
from gateway.http.lookup import find, reachable
from gateway.http.openapi.admin_operations import ModeOperation, SwitchOperation
from gateway.http.openapi.operations import KeyedOperation, problem_responses
from gateway.http.problems import ProblemError
from gateway.http.queries import require_known_query
from gateway.services import Services

_Request = Request[Caller, Turn, State]
_Services = NamedDependency[Services]
_TAGS: Final = ["admin"]
MODE_MAX_BYTES: Final = 4 * 1024


@get(
    "/admin/lanes",
    summary="Lanes, slots, and where requests go",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def get_lanes(services: _Services) -> LanesView:
    """Every lane with its state; every model with its switch, and where a request for it would go now; and the model
    that is resident on each slot."""
    now = datetime.now(UTC)
    return LanesView(
        now=now,
        judged_at=services.lanes.judged_at(now),
        models=tuple(model_lanes(entry, services.lanes, now) for entry in services.catalog.models.values()),
        slots=tuple(services.slots.slots(now)),
        ignored_control=tuple(services.lanes.switches.ignored(services.catalog.models)),
    )


@get(
    "/admin/lanes/{model:str}/mode",
    summary="The switch of a model's lanes",
    tags=_TAGS,
    operation_class=ModeOperation,
    responses=problem_responses("model_not_found", "precondition_failed"),
    **needs("admin"),
)
async def get_lane_mode(services: _Services, model: FromPath[str]) -> Response[ModeView]:
    """`auto`, or `degraded` when an operator keeps new requests off the lanes."""
    return _mode_answer(services, _entry(services, model).name)


@put(
    "/admin/lanes/{model:str}/mode",
    summary="Switch a model to degraded, or back",
    tags=_TAGS,
    operation_class=SwitchOperation,
    responses=problem_responses(
        "malformed_body",
        "model_not_found",
        "precondition_failed",
        "body_too_large",
        "unsupported_media_type",
        "validation_failed",
        "transport_unavailable",
    ),
    **needs("admin", counts_late=True),
)
async def set_lane_mode(request: _Request, services: _Services, model: FromPath[str]) -> Response[ModeView]:
    """Sets the switch. Every gateway obeys it within a second; tasks that are already queued stay where they are.

    This sets the key `lanes.MODEL` of the bucket `control`. With `If-Match`, nothing changes if somebody else has set
    the switch meanwhile.
    """
    body = await read_body(request, max_bytes=MODE_MAX_BYTES)
    name = _entry(services, model).name
    require_json(request)
    require_known_query(request.scope)
    mode = _mode(body)
    request.auth.take()
    conditions = conditions_of(request)
    require = None if conditions == Conditions() else partial(require_to_change, conditions)
    await reachable(services.lanes.switches.set(name, mode, require=require))
    audited(request, "lane_mode", on=name, detail=mode)
    return _mode_answer(services, name)


def _mode_answer(services: Services, model: str) -> Response[ModeView]:
    etag = f'"{services.lanes.switches.revision(model)}"'
    return JsonAnswer(mode_view(model, services.lanes.switches.mode(model)), headers={"etag": etag})


@get(
    "/admin/queue",
    summary="Queues, and the worker that leads",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("transport_unavailable"),
    **needs("admin"),
)
async def get_queues(services: _Services) -> QueuesView:
    """Every work queue: its depth as nats-server counts it, the tasks that wait and run, and the expected waits by
    measured service times."""
    now = datetime.now(UTC)
    models = tuple(services.catalog.models)
    queues = [await _queue(services, "lane", (model,), now) for model in models]
    queues.append(await _queue(services, "degraded", models, now))
    leadership = services.leader.leader(now)
    return QueuesView(
        leader=leader_view(leadership),
        order=order_view(leadership, services.tasks.work_queues.of("degraded", "").waiting, now),
        queues=tuple(queues),
    )


@get(
    "/admin/fallbacks",
    summary="Fallback episodes",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def get_fallbacks(services: _Services) -> FallbacksView:
    """When requests for a model went to the degraded worker, why, and how many."""
    now = datetime.now(UTC)
    every = [episode for model in services.catalog.models for episode in services.fallbacks.as_of(model, now)]
    return fallbacks_view(every)


@get(
    "/admin/cold_starts",
    summary="Cold starts of lanes",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def get_cold_starts(services: _Services) -> ColdStartsView:
    """How long lanes took from the start of their process to `warm`, and the share that took ten minutes at most."""
    every = services.cold_starts.newest_first()
    return cold_starts_view([start for start in every if start.model in services.catalog.models])


@get(
    "/admin/swaps",
    summary="Swaps and their parts",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def get_swaps(services: _Services) -> SwapsView:
    """The newest loads on the degraded worker, each with the proof that its slot was empty, and the times of its
    parts."""
    return swaps_view(services.tasks.recent, services.catalog.models)


@get(
    "/admin/history",
    summary="The last hour, by the minute",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses(),
    **needs("admin"),
)
async def get_history(services: _Services) -> HistoryView:
    """How long tasks waited and how they ended, for all gateways and workers, from the task records. `overloaded` also
    counts requests that this gateway refused without a record."""
    return history_view(services.tasks.recent, services.catalog.models, datetime.now(UTC))


@get(
    "/admin/tasks/{task_id:str}/explain",
    summary="Why a task went where it went",
    tags=_TAGS,
    operation_class=KeyedOperation,
    responses=problem_responses("task_not_found", "transport_unavailable"),
    **needs("admin"),
)
async def explain_task(services: _Services, caller: NamedDependency[Caller], task_id: FromPath[str]) -> ExplainView:
    """The stored inputs of the routing decision, the rule that fired, the decision worked out again from the same
    inputs, and where a new request would go now."""
    task = (await find(services, caller, task_id)).task
    return explain_view(task, services.lanes.outcome(task.model, datetime.now(UTC)))


async def _queue(
    services: Services, route: Literal["lane", "degraded"], models: tuple[str, ...], now: datetime
) -> QueueView:
    stream = work_stream(route, models[0])
    depth = await reachable(services.link.streams.depth(stream))
    queues, estimates = services.tasks.work_queues, services.estimates
    return queue_view(
        stream,
        route,
        depth,
        wait_limit_s=services.catalog.windows.wait_limit_s,
        waiting=_waiting(services, route, models[0], now),
        running=tuple(running_view(task, estimates.left_s(task, now)) for task in queues.of(route, models[0]).running),
        estimates=tuple(
            estimate_view(model, queues.service_s(route, model), estimates.new_wait_s(route, model, now))
            for model in models
        ),
        now=now,
    )


def _waiting(
    services: Services, route: Literal["lane", "degraded"], model: str, now: datetime
) -> tuple[WaitingView, ...]:
    stream = work_stream(route, model)
    found = [
        waiting_view(standing.task, standing.place, now)
        for standing in services.places.first(now)
        if work_stream(standing.task.route, standing.task.model) == stream
    ]
    return tuple(sorted(found, key=lambda each: each.position))


def _entry(services: Services, model: str) -> ModelEntry:
    entry = services.catalog.resolve(model)
    if entry is None:
        known = ", ".join(sorted(services.catalog.models))
        raise ProblemError("model_not_found", f"no model has this name; the models are {known}")
    return entry


def _mode(body: bytes) -> LaneMode:
    try:
        fields = parse_body(body)
    except MalformedBody as error:
        raise ProblemError("malformed_body", str(error)) from error
    mode = next((mode for mode in MODES if fields.get("mode") == mode), None)
    errors = []
    if "mode" not in fields:
        errors.append(
            FieldError(
                pointer="/mode", code="missing", message="mode: missing; expected auto or degraded", expected=MODES
            )
        )
    elif mode is None:
        message = "mode: expected auto or degraded"
        errors.append(FieldError(pointer="/mode", code="not_a_choice", message=message, expected=MODES))
    if fields.keys() - {"mode"}:
        errors.append(FieldError(pointer="", code="unknown_field", message="the only field is mode", expected=["mode"]))
    if errors or mode is None:
        raise ProblemError("validation_failed", 'send {"mode": "auto"} or {"mode": "degraded"}', errors=errors)
    return mode
