"""Query parameters that a path does not have, and those that come too often."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from gateway.http.queries import Query, objection
from tests.kit.openapi import TINY, operations
from tests.unit.gateway.test_access import ADMIN, BY_ADMIN, application

QUERY = Query({"status": True, "limit": False})
TASK_ID = "019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, None),
        ({"limit": 1, "status": 3}, None),
        ({"limt": 1}, "'limt': no such query parameter; this path takes limit, status"),
        ({"Limit": 1}, "'Limit': no such query parameter; this path takes limit, status"),
        ({"": 1}, "'': no such query parameter; this path takes limit, status"),
        ({"limit": 2}, "limit: 2 times in the query; send it once"),
    ],
)
def test_the_message_names_what_is_wrong_with_a_query(sent: dict[str, int], expected: str | None) -> None:
    assert objection(QUERY, sent) == expected


@given(st.text(), st.integers(1, 3))
def test_a_query_is_repeated_in_short_and_printable_form(name: str, times: int) -> None:
    message = objection(Query({}), {name: times})
    assert message is not None
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 800


def test_every_operation_refuses_what_it_does_not_take() -> None:
    """Every operation that needs a key. Callers of a probe may add any parameter."""
    with TestClient(application(ADMIN)) as client:
        for method, path, operation in operations(TINY):
            url = path.replace("{task_id}", TASK_ID).replace("{model}", "anisora")
            body: Any = {"json": {}} if method in ("put", "post") else {}
            takes_types = operation.get("requestBody", {}).get("content", {"application/json": {}})
            if "application/json" not in takes_types:  # the declared media type is judged first
                body = {"content": b"x"}
            declared = {} if "json" in body or not body else {"Content-Type": next(iter(takes_types))}
            answer = client.request(method, f"{url}?x%20y=1", headers=BY_ADMIN | declared, **body)
            if operation.get("security") is None:
                assert path in ("/healthz", "/livez", "/readyz")
                continue
            assert answer.status_code == 400, (method, path, answer.text)
            if method != "head":
                answered = answer.json()
                answered = (
                    {**answered["error"], "detail": answered["error"]["message"]}
                    if path.startswith("/v1/")
                    else answered
                )
                assert answered["code"] == "invalid_query"
                takes = sorted(each["name"] for each in operation.get("parameters", []) if each.get("in") == "query")
                takes += ["model"] if path in ("/tasks", "/tasks/events") else []  # a component of the document
                assert f"takes {', '.join(sorted(takes)) or 'none'}" in answered["detail"], (method, path)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=gone", "status: expected pending, delivered or dead"),
        ("status=", "status: expected pending, delivered or dead"),
        ("limit=0", "limit: expected an integer from 1 to 1000"),
    ],
)
def test_what_a_parameter_may_be_is_said(query: str, expected: str) -> None:
    with TestClient(application(ADMIN)) as client:
        answer = client.get(f"/webhooks/deliveries?{query}", headers=BY_ADMIN)
        assert (answer.status_code, answer.json()["detail"]) == (400, expected)


def test_a_wrong_media_type_is_reported_first() -> None:
    """The order of refusals: 415, then 400."""
    with TestClient(application(ADMIN)) as client:
        assert client.post("/generate?x=1", content=b"{}", headers=BY_ADMIN).status_code == 415
