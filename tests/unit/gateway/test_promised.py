"""The promise to clients (docs/use/versions.md): what they rely on stays, and nothing new is demanded of them."""

import copy
import re
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.kit.openapi import TINY
from tests.promised.__main__ import FILE, read
from tests.promised.surface import broken, surface_of

HOW: Final = f"keep it, or read docs/use/versions.md; what is new goes into {FILE.name} by `python -m tests.promised`"


def test_what_is_promised_is_kept() -> None:
    assert broken(read(), surface_of(TINY)) == [], HOW


def test_operations_have_names_that_people_read() -> None:
    """Generated clients call their functions after them."""
    names = [line.removeprefix("operation ") for line in read() if line.startswith("operation ")]
    assert len(names) > 30
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names), names


Change = Callable[[dict[str, Any]], object]


def generate(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"]["/generate"]["post"]
    return found


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


def requests(document: dict[str, Any]) -> list[dict[str, Any]]:
    body = document["components"]["requestBodies"]["GenerationRequest"]
    found: list[dict[str, Any]] = body["content"]["application/json"]["schema"]["oneOf"]
    return found


BREAKS: Final[dict[str, tuple[Change, str]]] = {
    "an operation is gone": (lambda made: made["paths"].pop("/settings"), "operation get_settings: "),
    "an operation is named anew": (lambda made: generate(made).update(operationId="submit"), "operation generate: "),
    "a key is gone": (lambda made: schema(made, "TaskView")["properties"].pop("route"), "key TaskView route: "),
    "a key may be absent": (
        lambda made: schema(made, "TaskView")["required"].remove("route"),
        "key TaskView route: string, always there, now string, may be absent",
    ),
    "a key of a part is gone": (lambda made: schema(made, "Progress")["properties"].pop("step"), "key Progress step: "),
    "a key may be null": (
        lambda made: schema(made, "TaskView")["properties"].update(id={"type": ["string", "null"]}),
        "key TaskView id: string, always there, now null or string, always there",
    ),
    "a value is gone": (lambda made: schema(made, "FailureCode")["enum"].remove("cancelled"), "value FailureCode "),
    "a parameter is gone": (lambda made: generate(made)["parameters"].clear(), "parameter generate header "),
    "a parameter has to be sent": (
        lambda made: generate(made)["parameters"].append(
            {"name": "Reason", "in": "header", "required": True, "schema": {"type": "string"}}
        ),
        "parameter generate header Reason: string, required, which clients do not send",
    ),
    "a field is gone": (lambda made: requests(made)[0]["properties"].pop("fps"), "body generate anisora_request fps: "),
    "a field has to be sent": (
        lambda made: requests(made)[0]["required"].append("seed"),
        "body generate anisora_request seed: integer, now integer, required",
    ),
    "a field takes less": (
        lambda made: requests(made)[0]["properties"].update(image={"type": "string"}),
        "body generate anisora_request image: object or string, now string",
    ),
    "an answer has another form": (
        lambda made: generate(made)["responses"]["202"].update(content={"text/plain": {}}),
        "answer generate 202: application/json, now text/plain",
    ),
    "a code is gone": (lambda made: made["components"]["examples"].pop("image_expired"), "problem image_expired: "),
}


@pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS)
def test_what_breaks_the_promise(change: Change, said: str) -> None:
    made = copy.deepcopy(TINY)
    change(made)
    assert any(line.startswith(said) for line in broken(read(), surface_of(made)))


ALLOWED: Final[dict[str, Change]] = {
    "a key": lambda made: schema(made, "TaskView")["properties"].update(cost={"type": "number"}),
    "a value": lambda made: schema(made, "FailureCode")["enum"].append("bored"),
    "a parameter": lambda made: generate(made)["parameters"].append(
        {"name": "Reason", "in": "header", "required": False, "schema": {"type": "string"}}
    ),
    "a field": lambda made: requests(made)[0]["properties"].update(mood={"type": "string"}),
    "a field takes more": lambda made: requests(made)[0]["properties"].update(fps={"type": ["integer", "string"]}),
    "a form of the body": lambda made: requests(made).append(
        {"title": "other_request", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
    ),
    "a limit": lambda made: requests(made)[0]["properties"]["width"].update(maximum=128),
    "an operation": lambda made: made["paths"].update(
        {"/moods": {"post": {"operationId": "set_mood", "requestBody": {}, "responses": {}}}}
    ),
    "what operators see": lambda made: schema(made, "SwapView")["properties"].popitem(),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_what_may_come_or_change(change: Change) -> None:
    made = copy.deepcopy(TINY)
    change(made)
    assert made != TINY
    assert broken(read(), surface_of(made)) == []
