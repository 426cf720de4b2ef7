"""The production profile's gateway, without a worker: what it requires, what it refuses, and what it queues."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from openapi_schema_validator import OAS31Validator

from contracts.api.settings import SettingsView
from contracts.settings import load_settings
from ops.commands.demo.runs import bodies
from ops.nats.provisioning import provision, wanted
from tests.integration.test_http_generate import png, problem, stored
from tests.kit.gateway import GatewayProcess, System
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, KEEP_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROFILE = "production"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """`warmlane gateway --profile production`. Accepted tasks wait for a degraded worker, which never comes."""
    gateway = GatewayProcess(tmp_path_factory.mktemp("production"))
    async with contextlib.AsyncExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        link = await connected(gateway.nats.url)
        leave.push_async_callback(link.close)
        await provision(link, wanted(load_settings().catalog(PROFILE), keep_s=KEEP_S))
        leave.callback(gateway.stop)
        await asyncio.to_thread(gateway.start, "--profile", PROFILE, "--keep", f"{KEEP_S:g}s")
        http = await leave.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S))
        yield System(gateway, link, http)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, [("/image", "image_required")], id="only-the-image"),
        pytest.param({"image": None}, [("/image", "wrong_type")], id="null"),
        pytest.param(
            {"zoom": 2, "steps": 7, "width": 100, "prompt": ""},
            [
                ("/prompt", "length"),
                ("/image", "image_required"),
                ("/width", "out_of_range"),
                ("/steps", "fixed_value"),
                ("/zoom", "unknown_field"),
            ],
            id="among-others-in-their-order",
        ),
    ],
)
async def test_anisora_without_an_image_is_422_before_anything_is_written(
    fields: dict[str, Any], expected: list[tuple[str, str]], system: System
) -> None:
    body = {"model": "anisora", "prompt": "the boat drifts away"} | fields
    before = await stored(system.link)
    response = await system.http.post("/generate", json=body, headers={"prefer": "respond-async"})
    assert response.status_code == 422
    errors = problem(response)["errors"]
    assert [(error["pointer"], error["code"]) for error in errors] == expected
    assert (await system.http.post("/generate", json=body)).content == response.content
    assert await stored(system.link) == before
    assert not [path for path in system.gateway.artifacts.rglob("*") if path.is_file()]


async def test_phr00t_takes_text_only(system: System) -> None:
    before = await stored(system.link)
    response = await system.http.post("/generate", json={"model": "phr00t", "prompt": "x", "image": png()})
    assert response.status_code == 422
    assert [error["code"] for error in problem(response)["errors"]] == ["image_unsupported"]
    assert await stored(system.link) == before


async def test_what_a_form_reads_is_what_is_applied(system: System) -> None:
    models = {model["name"]: model for model in (await system.http.get("/settings")).json()["models"]}
    assert models["anisora"]["modes"] == ["image-to-video"]
    assert models["phr00t"]["modes"] == ["text-to-video"]
    document = (await system.http.get("/openapi.json")).json()
    content = document["components"]["requestBodies"]["GenerationRequest"]["content"]["application/json"]
    schema = {**content["schema"], "components": document["components"]}
    described = [each["description"].partition(". ")[0].rpartition(": ")[2] for each in content["schema"]["oneOf"]]
    assert described == ["image-to-video", "text-to-video"]
    body = {"model": "anisora", "prompt": "x"}
    assert not OAS31Validator(schema).is_valid(body)
    assert OAS31Validator(schema).is_valid(body | {"image": png()})


async def test_the_requests_of_the_demo_are_accepted(system: System) -> None:
    """`warmlane demo` reads the settings, and sends an image where one is required."""
    settings = msgspec.json.decode((await system.http.get("/settings")).content, type=SettingsView)
    sent = list(bodies(settings.models, 2))
    assert [("image" in body) for body in sent] == [True, False]
    for body in sent:
        response = await system.http.post("/generate", json=body, headers={"prefer": "respond-async"})
        assert response.status_code == 202, response.text
        image = response.json()["parameters"]["image"]
        assert (image is not None) == ("image" in body)
        await system.http.delete(response.headers["location"])
