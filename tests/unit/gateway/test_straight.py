"""Routes without Litestar's way from a route to its function."""

from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, Response, get
from litestar.di import NamedDependency, Provide
from litestar.handlers import HTTPRouteHandler
from litestar.testing import TestClient

from gateway.app import STRAIGHT, create_app
from gateway.http.answers import JsonAnswer
from gateway.http.lookup import CallerRequest
from gateway.http.outgoing import GZIP_MIN_BYTES, outgoing
from gateway.http.problems import ProblemError, problem_handlers
from gateway.http.straight import straight
from gateway.services import Services
from tests.kit.samples import catalog

SERVICES = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)


def unwanted() -> Services:
    raise AssertionError("Litestar makes what a route needs")


@get("/straight")
async def given(request: CallerRequest, services: NamedDependency[Services]) -> Response[Any]:
    assert services is SERVICES
    return JsonAnswer({"path": request.url.path}, headers={"X-Own": "yes"}, status_code=203)


@get("/refused")
async def refused(request: CallerRequest, services: NamedDependency[Services]) -> Response[Any]:
    raise ProblemError("invalid_query", "x" * GZIP_MIN_BYTES)


@get("/other")
async def other(request: CallerRequest) -> dict[str, str]:
    return {"path": request.url.path}


def application() -> Litestar:
    return Litestar(
        [given, refused, other],
        dependencies={"services": Provide(unwanted, sync_to_thread=False)},
        middleware=[outgoing, straight((given, refused), SERVICES)],
        exception_handlers=problem_handlers(),
        request_class=CallerRequest,
        openapi_config=None,
        logging_config=None,
    )


def test_a_function_is_called_with_request_and_services_alone() -> None:
    with TestClient(application()) as client:
        answer = client.get("/straight")
    assert (answer.status_code, answer.json(), answer.headers["x-own"]) == (203, {"path": "/straight"}, "yes")


def test_a_problem_goes_out_as_every_answer_does() -> None:
    with TestClient(application()) as client:
        answer = client.get("/refused", headers={"accept-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
    assert answer.headers["content-encoding"] == "gzip"


def test_other_routes_are_left_to_litestar() -> None:
    with TestClient(application()) as client:
        assert client.get("/other").json() == {"path": "/other"}


@pytest.mark.parametrize("route", STRAIGHT, ids=lambda route: sorted(route.paths)[0])
def test_what_the_gateway_calls_so_asks_for_nothing_else(route: HTTPRouteHandler) -> None:
    assert route.parsed_fn_signature.parameters.keys() == {"request", "services"}


def test_wrong_fields_are_compressed_for_who_wants_it() -> None:
    body = {f"{number:03}{'x' * 60}": number for number in range(64)}
    with TestClient(create_app(SERVICES), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.post("/generate", json=body, headers={"accept-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert answer.headers["content-encoding"] == "gzip"
