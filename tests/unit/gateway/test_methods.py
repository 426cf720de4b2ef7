"""HEAD wherever there is GET, and OPTIONS that name every method."""

from litestar.routes import HTTPRoute
from litestar.testing import TestClient

from tests.unit.gateway.test_access import BY_READER, READ, application


def test_every_get_has_its_head_and_options_name_them() -> None:
    app = application(READ)
    with TestClient(app) as client:
        found = 0
        for route in app.routes:
            if not isinstance(route, HTTPRoute) or "path:" in route.path:
                continue  # files of the docs page, and where there is nothing beside them
            assert ("GET" in route.methods) <= ("HEAD" in route.methods), route.path
            response = client.options(route.path.replace("{task_id:str}", "x").replace("{model:str}", "y"))
            assert response.status_code == 204
            assert response.headers["allow"].split(", ") == sorted(set(route.methods)), route.path
            found += 1
        assert found > 15


def test_head_is_get_without_its_body() -> None:
    """Where no server is needed; the others are in the integration tests."""
    with TestClient(application(READ)) as client:
        for path in ("/healthz", "/settings", "/openapi.json", "/docs", "/tasks/x", "/settings?x=1", "/nowhere"):
            whole, head = (client.request(method, path, headers=BY_READER) for method in ("GET", "HEAD"))
            assert (head.status_code, head.headers) == (whole.status_code, whole.headers), path
        assert client.head("/settings").status_code == 401
        assert client.head("/healthz").status_code == 200


def test_a_head_needs_what_its_get_needs() -> None:
    for route in application(READ).routes:
        if isinstance(route, HTTPRoute) and {"GET", "HEAD"} <= set(route.route_handler_map):
            of_get, of_head = (route.route_handler_map[method][0] for method in ("GET", "HEAD"))
            assert of_head.opt.get("needs") == of_get.opt.get("needs"), route.path
