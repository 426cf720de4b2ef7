"""The OpenAPI documents of a gateway with the packaged settings, made once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litestar.testing import TestClient
from openapi_schema_validator import OAS31Validator

from contracts.settings import Catalog
from gateway.app import create_app
from gateway.services import Services
from tests.kit.samples import catalog

PROFILES = ("tiny", "production")


def document_of(running: Catalog) -> dict[str, Any]:
    # the services are never started, because the document needs only the catalog
    services = Services(catalog=running, nats="", artifacts_dir=Path(), keep_s=7_200)
    with TestClient(create_app(services), base_url="http://127.0.0.1") as client:
        answer = client.get("/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        found = answer.json()
    assert isinstance(found, dict)
    return found


DOCUMENTS = {profile: document_of(catalog(profile)) for profile in PROFILES}
TINY = DOCUMENTS["tiny"]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def bodies(node: Any) -> Iterator[dict[str, Any]]:
    """Every described content of the document: its schema, with its examples."""
    if isinstance(node, dict):
        yield from node.get("content", {}).values()
        for child in node.values():
            yield from bodies(child)
    elif isinstance(node, list):
        for child in node:
            yield from bodies(child)


def checker(schema: dict[str, Any], document: dict[str, Any]) -> OAS31Validator:
    return OAS31Validator({**schema, "components": document["components"]})


def request_schema(document: dict[str, Any]) -> dict[str, Any]:
    content = document["components"]["requestBodies"]["GenerationRequest"]["content"]
    schema = content["application/json"]["schema"]
    assert isinstance(schema, dict)
    return schema


REPORTING = document_of(catalog(enforcement="report"))
