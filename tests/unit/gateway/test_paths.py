"""How a request's path is read before a route is found for it."""

import pytest
from litestar import Litestar, get
from litestar.testing import TestClient

from gateway.rules.paths import routed


@get("/")
async def top() -> str:
    return "/"


@get("/tasks")
async def tasks() -> str:
    return "/tasks"


@pytest.mark.parametrize("path", ["/", "/tasks", "/tasks/", "/tasks//"])
def test_a_path_is_read_as_the_router_reads_it(path: str) -> None:
    with TestClient(Litestar([top, tasks])) as client:
        assert client.get(path).text == routed(path)
