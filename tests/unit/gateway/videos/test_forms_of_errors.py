"""Below `/v1` every refusal has one form, whichever part makes it; elsewhere it is a problem document."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from gateway.app import create_app
from gateway.services import Services
from tests.kit.samples import catalog


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Litestar]]:
    """Of a gateway that asks for no key, and was not started: nothing here needs a queue."""
    services = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)
    with TestClient(create_app(services), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        pytest.param("GET", "/v1/nothing", {}, 404, "not_found", id="no-route"),
        pytest.param("PUT", "/v1/videos", {}, 405, "method_not_allowed", id="no-method"),
        pytest.param("GET", "/v1/videos?limt=5", {}, 400, "invalid_query", id="query"),
        pytest.param("GET", "/v1/models", {"host": "example.com"}, 403, "foreign_host", id="guard"),
        pytest.param("POST", "/v1/videos", {"origin": "https://example.com"}, 403, "cross_origin_refused", id="origin"),
        pytest.param("GET", "/v1/models", {"if-match": '"7"'}, 412, "precondition_failed", id="outgoing"),
        pytest.param("GET", "/v1/models/sora-2", {}, 404, "model_not_found", id="handler"),
        pytest.param("POST", "/v1/videos", {"content-length": str(2**30)}, 413, "body_too_large", id="length"),
    ],
)
def test_every_refusal_below_v1(
    client: TestClient[Litestar], method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.request(method, path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code", "errors"]
    assert error["code"] == code
    assert error["message"]


def test_elsewhere_it_is_a_problem_document(client: TestClient[Litestar]) -> None:
    answer = client.get("/nothing")
    assert (answer.headers["content-type"], answer.json()["code"]) == ("application/problem+json", "not_found")


def test_where_no_key_is_asked_for_any_key_will_do(client: TestClient[Litestar]) -> None:
    """The client of OpenAI does not start without one."""
    answer = client.get("/v1/models", headers={"authorization": "Bearer unused"})
    assert [model["id"] for model in answer.json()["data"]] == ["anisora", "phr00t"]
