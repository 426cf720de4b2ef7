import re
from pathlib import Path
from typing import Any

import msgspec
import openapi_spec_validator
import pytest
from litestar.testing import TestClient

from contracts.api.tasks import TaskView
from contracts.generation.request import FIELDS
from gateway.app import create_app
from gateway.http.problem_kinds import PROBLEMS
from gateway.services import Services
from tests.kit.openapi import (
    DOCUMENTS,
    REPORTING,
    TINY,
    bodies,
    checker,
    document_of,
    operations,
    request_schema,
)
from tests.kit.samples import catalog


@pytest.mark.parametrize("document", [*DOCUMENTS.values(), REPORTING], ids=[*DOCUMENTS, "reporting"])
def test_the_document_is_valid(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    checked = 0
    for body in bodies(document):
        for example in body.get("examples", {}).values():
            checker(body["schema"], document).validate(example["value"])
            checked += 1
    assert checked > 30


def test_every_problem_is_shown_on_a_route_or_as_a_component() -> None:
    components = TINY["components"]["examples"]
    assert set(components) == set(PROBLEMS)
    problem = checker(TINY["components"]["schemas"]["Problem"], TINY)
    for code, example in components.items():
        problem.validate(example["value"])
        assert (example["value"]["code"], example["value"]["status"]) == (code, PROBLEMS[code].status)
        assert f"`{code}`" in TINY["info"]["description"]


def test_errors_are_described_as_problems_and_as_nothing_else() -> None:
    """Litestar would add its own form of a 400 to every route with a parameter."""
    for method, path, operation in operations(TINY):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path.startswith("/v1/"):
                assert list(answer["content"]) == ["application/json"], (method, path, status)
                for code, example in answer["content"]["application/json"]["examples"].items():
                    assert (example["value"]["error"]["code"], PROBLEMS[code].status) == (code, int(status))
            elif int(status) >= 400 and path not in ("/readyz", "/healthz", "/livez"):
                assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
                for code, example in answer["content"]["application/problem+json"]["examples"].items():
                    assert (example["value"]["code"], example["value"]["status"]) == (code, int(status))


# The scope that each operation needs: one of a key, any key (""), or none at all (None).
NEEDS = {
    ("post", "/generate"): "submit",
    ("post", "/generate/batch"): "submit",
    ("get", "/tasks"): "read",
    ("get", "/tasks/events"): "read",
    ("get", "/tasks/{task_id}"): "read",
    ("delete", "/tasks/{task_id}"): "submit",
    ("delete", "/tasks/{task_id}/record"): "submit",
    ("get", "/tasks/{task_id}/events"): "read",
    ("post", "/tasks/{task_id}/resubmit"): "submit",
    ("get", "/tasks/{task_id}/video"): "read",
    ("head", "/tasks/{task_id}/video"): "read",
    ("get", "/tasks/{task_id}/thumbnail"): "read",
    ("post", "/images"): "submit",
    ("get", "/images/{image_id}"): "read",
    ("delete", "/images/{image_id}"): "submit",
    ("get", "/webhooks"): "read",
    ("post", "/webhooks"): "submit",
    ("get", "/webhooks/{endpoint_id}"): "read",
    ("delete", "/webhooks/{endpoint_id}"): "submit",
    ("post", "/webhooks/{endpoint_id}/rotate"): "submit",
    ("post", "/webhooks/{endpoint_id}/test"): "submit",
    ("get", "/webhooks/secret"): "submit",
    ("post", "/webhooks/secret/rotate"): "submit",
    ("get", "/webhooks/deliveries"): "read",
    ("post", "/webhooks/deliveries/{delivery_id}/redeliver"): "submit",
    ("post", "/v1/videos"): "submit",
    ("post", "/v1/videos/sync"): "submit",
    ("get", "/v1/videos"): "read",
    ("get", "/v1/videos/{video_id}"): "read",
    ("delete", "/v1/videos/{video_id}"): "submit",
    ("get", "/v1/videos/{video_id}/content"): "read",
    ("get", "/v1/models"): "",
    ("get", "/v1/models/{model}"): "",
    ("get", "/settings"): "",
    ("get", "/healthz"): None,
    ("get", "/livez"): None,
    ("get", "/readyz"): None,
    ("get", "/metrics"): "metrics",
}


def test_every_operation_says_which_key_it_needs() -> None:
    assert TINY["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for method, path, operation in operations(TINY):
        scope = "admin" if path.startswith("/admin/") else NEEDS[method, path]
        security = operation.get("security")
        answers = operation["responses"]
        if scope is None:
            assert security is None
            assert not {"401", "403", "429"} & set(answers)
            continue
        assert security == [{"apiKey": [scope] if scope else []}], (method, path)
        assert "WWW-Authenticate" in answers["401"]["headers"], (method, path)
        assert "Retry-After" in answers["429"]["headers"], (method, path)
        assert ("`forbidden`" in answers["403"]["description"]) is bool(scope), (method, path)


def test_generate_is_described() -> None:
    operation = TINY["paths"]["/generate"]["post"]
    assert operation["operationId"] == "generate"
    assert operation["requestBody"] == {"$ref": "#/components/requestBodies/GenerationRequest"}
    assert [parameter["name"] for parameter in operation["parameters"]] == ["Idempotency-Key", "Prefer", "Priority"]
    for words in ("30 s", "35 s", "Prefer: respond-async"):
        assert words in operation["description"]
    for words in ("`limit`", "`depth`", "`wait`"):
        assert words in operation["responses"]["503"]["description"]
    assert "Preference-Applied" in operation["responses"]["202"]["headers"]
    assert {"202", "400", "413", "415", "422", "503"} <= set(operation["responses"])
    assert "Location" in operation["responses"]["202"]["headers"]
    assert "Retry-After" in operation["responses"]["503"]["headers"]
    assert operation["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/TaskView")


def test_the_fixed_values_can_be_seen() -> None:
    """FR-004, FR-005, FR-006."""
    anisora, phr00t = (schema["properties"] for schema in request_schema(TINY)["oneOf"])
    assert (anisora["steps"]["const"], phr00t["steps"]["const"], phr00t["cfg"]["const"]) == (8, 4, 1.0)
    assert anisora["model"]["enum"] == ["anisora", "anisora-v3.2", "index-anisora"]
    assert "image" not in phr00t
    assert anisora["num_frames"]["enum"][:2] == [9, 17]
    assert anisora["num_frames"]["enum"][-1] == 81


def test_where_fixed_values_are_not_enforced_the_document_says_so() -> None:
    anisora, phr00t = (schema["properties"] for schema in request_schema(REPORTING)["oneOf"])
    for field, fixed in ((anisora["steps"], 8), (phr00t["steps"], 4), (phr00t["cfg"], 1.0)):
        assert "const" not in field
        assert field["default"] == fixed
        assert "`warnings`" in field["description"]
    examples = REPORTING["paths"]["/generate"]["post"]["responses"]["202"]["content"]["application/json"]["examples"]
    [warning] = examples["pending, with a warning"]["value"]["warnings"]
    assert (warning["pointer"], warning["expected"], warning["got"]) == ("/steps", 8, 20)


def names_of(document: dict[str, Any]) -> set[str]:
    """The names from which client generators make those of classes, functions and members."""
    found = set(document["components"]["schemas"]) | {each["operationId"] for *_, each in operations(document)}

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("title"), str):
                found.add(node["title"])
            found.update(node.get("properties", {}))
            for child in node.values():
                look(child)
        elif isinstance(node, list):
            for child in node:
                look(child)

    look({key: value for key, value in document.items() if key != "info"} | {"examples": None})
    return found


def test_names_in_generated_clients_do_not_depend_on_titles() -> None:
    running = catalog()
    models = {
        name: msgspec.structs.replace(entry, title=f"{entry.title} (2027 edition)")
        for name, entry in running.models.items()
    }
    renamed = document_of(msgspec.structs.replace(running, models=models))
    assert "2027 edition" in str(request_schema(renamed))  # a reader of the page sees it
    assert names_of(renamed) == names_of(TINY)
    titles = [schema["title"] for schema in request_schema(renamed)["oneOf"]]
    assert titles == ["anisora_request", "phr00t_request"]


def test_filters_of_the_listing_take_several_values() -> None:
    parameters = {
        each["name"]: each
        for each in (
            TINY["components"]["parameters"]["model"] if "$ref" in given else given
            for given in TINY["paths"]["/tasks"]["get"]["parameters"]
        )
    }
    assert parameters["status"]["schema"]["items"]["enum"] == ["pending", "processing", "done", "failed"]
    assert {"anisora", "index-anisora", "phr00t"} <= set(parameters["model"]["schema"]["items"]["enum"])
    assert [parameters[name]["schema"]["type"] for name in ("status", "model", "limit")] == [
        "array",
        "array",
        "integer",
    ]


def test_both_models_come_with_examples() -> None:
    examples = TINY["components"]["requestBodies"]["GenerationRequest"]["content"]["application/json"]["examples"]
    assert list(examples) == ["anisora", "anisora_full", "phr00t", "phr00t_full"]
    assert set(examples["anisora"]["value"]) == {"model", "prompt"}
    assert set(examples["anisora_full"]["value"]) == set(FIELDS)


def test_a_task_is_described_with_every_key() -> None:
    schema = TINY["components"]["schemas"]["TaskView"]
    assert set(schema["properties"]) == set(TaskView.__struct_fields__)
    assert set(schema["required"]) == set(schema["properties"])
    assert "self" in TINY["components"]["schemas"]["TaskLinks"]["properties"]


def test_the_wait_for_a_worker_is_described() -> None:
    for words in ("30 s", "35 s", "Prefer: respond-async", "`queue_overloaded`", "25 requests"):
        assert words in TINY["info"]["description"]
    place = TINY["components"]["schemas"]["QueuePlace"]
    assert set(place["properties"]) == {"position", "expected_wait_s"}
    examples = TINY["paths"]["/tasks/{task_id}"]["get"]["responses"]["200"]["content"]["application/json"]["examples"]
    assert examples["pending"]["value"]["queue"] == {"position": 3, "expected_wait_s": 4.2}
    swapped = examples["done, after a swap"]["value"]
    assert (swapped["route"], swapped["swap"]["how"], swapped["queue"]) == ("degraded", "unloaded", None)


# What any route that needs a key and a scope may answer.
KEYED = {"400", "401", "403", "429", "500"}
ADMIN = {
    ("get", "/admin/lanes"): {"200"},
    ("get", "/admin/lanes/{model}/mode"): {"200", "304", "404", "412"},
    ("put", "/admin/lanes/{model}/mode"): {"200", "404", "412", "413", "415", "422", "503"},
    ("get", "/admin/queue"): {"200", "503"},
    ("get", "/admin/fallbacks"): {"200"},
    ("get", "/admin/cold_starts"): {"200"},
    ("get", "/admin/swaps"): {"200"},
    ("get", "/admin/history"): {"200"},
    ("delete", "/admin/slots/{slot}/quarantine"): {"200", "404", "409", "503"},
    ("get", "/admin/keys"): {"200"},
    ("post", "/admin/keys"): {"201", "413", "415", "422", "503"},
    ("delete", "/admin/keys/{key_id}"): {"200", "404", "503"},
    ("get", "/admin/tasks/{task_id}/explain"): {"200", "404", "503"},
}


def test_what_operators_can_ask_is_described() -> None:
    described = {
        (method, path): set(operation["responses"])
        for method, path, operation in operations(TINY)
        if path.startswith("/admin/")
    }
    assert described == {operation: own | KEYED for operation, own in ADMIN.items()}
    for method, path in ADMIN:
        operation = TINY["paths"][path][method]
        assert operation["tags"] == ["admin"]
        assert operation["summary"]
        [success] = operation["responses"].keys() & {"200", "201"}
        assert "$ref" in operation["responses"][success]["content"]["application/json"]["schema"]


def test_the_switch_is_described() -> None:
    body = TINY["paths"]["/admin/lanes/{model}/mode"]["put"]["requestBody"]["content"]["application/json"]
    accepted = checker(body["schema"], TINY)
    assert [accepted.is_valid({"mode": mode}) for mode in ("auto", "degraded", "off", None)] == [
        True,
        True,
        False,
        False,
    ]
    assert not accepted.is_valid({})
    assert not accepted.is_valid({"mode": "auto", "for": "ever"})


def test_the_docs_page_loads_nothing_from_elsewhere() -> None:
    services = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)
    with TestClient(create_app(services), base_url="http://127.0.0.1") as client:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        loaded = re.findall(r"""<(?:script|link|img)[^>]*\s(?:src|href)=['"]([^'"]*)""", page.text)
        assert len(loaded) == 4
        for url in loaded:
            assert url.startswith("/docs/assets/")
            asset = client.get(url)
            assert asset.status_code == 200
            assert len(asset.content) > 500
        assert client.get("/docs/assets/..%2f..%2f__init__.py").status_code == 404


def test_the_operations_say_what_signatures_do_not_show() -> None:
    paths = TINY["paths"]

    task = paths["/tasks/{task_id}"]["get"]
    assert {"Prefer", "If-None-Match", "If-Match", "wait"} <= {parameter["name"] for parameter in task["parameters"]}
    assert set(task["responses"]) == {"200", "304", "404", "412", "503"} | KEYED
    for status in ("200", "304"):
        assert "ETag" in task["responses"][status]["headers"]
    cancel = paths["/tasks/{task_id}"]["delete"]
    assert "If-Match" in {parameter["name"] for parameter in cancel["parameters"]}
    assert "412" in cancel["responses"]
    assert "ETag" in cancel["responses"]["200"]["headers"]
    assert "Retry-After" in task["responses"]["503"]["headers"]
    for shown in (task, paths["/tasks/{task_id}"]["delete"]):
        body = shown["responses"]["200"]["content"]["application/json"]
        assert body["schema"] == {"$ref": "#/components/schemas/TaskView"}
        for example in body["examples"].values():
            checker(body["schema"], TINY).validate(example["value"])

    events = paths["/tasks/{task_id}/events"]["get"]["responses"]
    assert list(events["200"]["content"]) == ["text/event-stream"]
    video = paths["/tasks/{task_id}/video"]["get"]["responses"]
    for status in ("200", "206"):
        assert video[status]["content"]["video/mp4"]["schema"] == {"type": "string", "format": "binary"}
        assert {"ETag", "Accept-Ranges", "Content-Length"} <= set(video[status]["headers"])
    assert {"304", "412", "416"} <= set(video)
    assert "ETag" in video["304"]["headers"]
    asked = {parameter["name"] for parameter in paths["/tasks/{task_id}/video"]["get"]["parameters"]}
    assert {"Range", "If-Range", "If-Match", "If-None-Match"} <= asked
    assert "Content-Range" in video["206"]["headers"]
    assert "Content-Range" in video["416"]["headers"]
    assert "content" not in paths["/tasks/{task_id}/video"]["head"]["responses"]["200"]
