"""What a client or an operator asks of the gateway itself: settings, liveness, readiness."""

from datetime import UTC, datetime

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from msgspec import Struct

from gateway.services import Services
from gateway.views import SettingsView, settings_view


class Health(Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str


class ModelReadiness(Struct, frozen=True, kw_only=True):
    """Whether a request for the model would be accepted now, and what its lanes are doing."""

    ready: bool
    lanes: list[str]


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether requests can be accepted: the queue answers, and every model with lanes has one that is warm."""

    ready: bool
    nats: bool
    models: dict[str, ModelReadiness]


@get("/settings", summary="Models, limits and fixed parameters", tags=["settings"])
async def get_settings(services: NamedDependency[Services]) -> SettingsView:
    """What a form needs: every model with the limits, defaults and fixed values of its fields."""
    return settings_view(services.catalog)


@get("/healthz", summary="Liveness", tags=["operations"])
async def healthz() -> Health:
    """200 while the process can answer."""
    return Health(status="ok")


@get(
    "/readyz",
    summary="Readiness",
    tags=["operations"],
    responses={
        503: ResponseSpec(Readiness, description="Not yet, or not now: what is missing", generate_examples=False)
    },
)
async def readyz(services: NamedDependency[Services]) -> Response[Readiness]:
    """200 as soon as requests can be accepted, else 503 with what is missing.

    A model counts from the moment one of its lanes has reported: one that runs no lanes does not hold the others up.
    """
    now = datetime.now(UTC)
    models = {}
    expected = []
    for model in services.catalog.models:
        states, ready = services.lanes.states(model, now)
        models[model] = ModelReadiness(ready=ready, lanes=[state.value for state in states])
        if states:
            expected.append(ready)
    ready = services.link.is_connected and any(expected) and all(expected)
    body = Readiness(ready=ready, nats=services.link.is_connected, models=models)
    return Response(body, status_code=200 if ready else 503)
