"""`/v1/models`: the names that `/v1/videos` takes, as clients of OpenAI's API ask for them. HTTP only."""

from collections.abc import Sequence
from typing import Final

from litestar import get
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from contracts.api.videos import ServedModel, ServedModels
from gateway.http.access import needs
from gateway.http.openapi.operations import KeyedOperation
from gateway.http.openapi.videos import error_responses
from gateway.http.problems import ProblemError
from gateway.services import Services
from gateway.videos.objects import model_of


@get(
    "/v1/models",
    summary="List models",
    tags=["videos"],
    operation_class=KeyedOperation,
    responses=error_responses(is_scoped=False),
    **needs(None),
)
async def list_models(services: NamedDependency[Services]) -> ServedModels:
    """Every model, by name. `GET /settings` has their limits and aliases."""
    return ServedModels(data=tuple(model_of(entry) for _, entry in sorted(services.catalog.models.items())))


@get(
    "/v1/models/{model:str}",
    summary="Look at a model",
    tags=["videos"],
    operation_class=KeyedOperation,
    responses=error_responses("model_not_found", is_scoped=False),
    **needs(None),
)
async def get_model(services: NamedDependency[Services], model: FromPath[str]) -> ServedModel:
    """The model of this name or alias. Its `id` is its name."""
    entry = services.catalog.resolve(model)
    if entry is None:
        known = ", ".join(sorted(services.catalog.models))
        raise ProblemError("model_not_found", f"no model has this name; the models are {known}")
    return model_of(entry)


ROUTES: Final[Sequence[HTTPRouteHandler]] = (list_models, get_model)
