"""What a client or an operator asks of the gateway itself: settings, liveness, readiness."""

import time
from datetime import UTC, datetime
from typing import Final

from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec

from contracts.api.health import Health, ModelReadiness, Readiness
from contracts.api.settings import SettingsView
from contracts.topology import DEGRADED, LANE_PREFIX, TASKS, bucket_stream
from gateway.boards.key_board import Caller
from gateway.http.access import needs, needs_nothing
from gateway.http.openapi.document import own_version
from gateway.http.openapi.operations import KeyedOperation, problem_responses
from gateway.http.views import settings_view
from gateway.placing.sweeper import SWEEPER
from gateway.services import Services
from ops.nats.refusals import ADVICE
from ops.telemetry.export import metrics_text


@get(
    "/settings",
    summary="Models, limits and fixed parameters",
    tags=["settings"],
    operation_class=KeyedOperation,
    responses=problem_responses(is_scoped=False),
    **needs(None),
)
async def get_settings(services: NamedDependency[Services], caller: NamedDependency[Caller]) -> SettingsView:
    """What a client needs for a form: every model with the limits, defaults and fixed values of its fields, and why
    those are fixed; the classes that the key may name; and the scopes and bounds of the key."""
    return settings_view(
        services.catalog,
        caller,
        keep_s=services.keep_s,
        jaeger_url=services.jaeger_url,
        version=own_version(),
    )


@get("/healthz", summary="Health", tags=["operations"], opt=needs_nothing())
async def check_health() -> Health:
    """200 once the gateway serves; 503 while it waits for something that it needs to start."""
    return Health(status="ok")


@get("/livez", summary="Liveness", tags=["operations"], opt=needs_nothing())
async def check_liveness() -> Health:
    """200 while the process can answer, even before it serves."""
    return Health(status="ok")


@get(
    "/readyz",
    summary="Readiness",
    tags=["operations"],
    opt=needs_nothing(),
    responses={
        503: ResponseSpec(Readiness, description="Not yet, or not now: what is missing", generate_examples=False)
    },
)
async def check_readiness(services: NamedDependency[Services]) -> Response[Readiness]:
    """200 when requests for every model can be accepted, else 503 with what is missing."""
    now = datetime.now(UTC)
    degraded_worker = services.leader.is_alive(now)
    models = {}
    for model in services.catalog.models:
        states, warm = services.lanes.states(model, now)
        lanes = [state.value for state in states]
        models[model] = ModelReadiness(ready=warm or degraded_worker, warm=warm, lanes=lanes)
    nats = services.link.connection.is_connected
    troubles = services.background.troubles
    refusing = services.refusals.now(time.monotonic())
    texts = [*troubles.values(), *(f"{stream} takes no writes: {ADVICE[why]}" for stream, why in refusing.items())]
    if services.storage.trouble is not None:
        texts.append(services.storage.trouble)
    # whether every store that a request needs on its way to its end takes writes
    stores = services.storage.trouble is None and not any(_carries_tasks(stream) for stream in refusing)
    # without a sweeper, a task whose worker was lost never ends, and neither does one that no worker takes
    sweeps = SWEEPER not in troubles
    ready = nats and sweeps and stores and all(model.ready for model in models.values())
    body = Readiness(ready=ready, nats=nats, degraded_worker=degraded_worker, models=models, troubles=texts)
    return Response(body, status_code=200 if ready else 503)


def _carries_tasks(stream: str) -> bool:
    return stream in (DEGRADED, bucket_stream(TASKS)) or stream.startswith(LANE_PREFIX)


PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@get(
    "/metrics",
    summary="Metrics",
    tags=["operations"],
    operation_class=KeyedOperation,
    responses=problem_responses(),
    media_type=MediaType.TEXT,
    **needs("metrics"),
)
async def get_metrics() -> Response[str]:
    """Everything that this gateway measures, in Prometheus' text format; docs/operate/observability.md explains each
    figure. The gateway that `warmlane up` runs reports every process of that deployment, by `job` and `instance`."""
    text = await metrics_text()
    return Response(text.decode(), headers={"Content-Type": PROMETHEUS})
