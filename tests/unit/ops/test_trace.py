"""`warmlane trace` on answers of Jaeger 1.76, cut down to what the command reads."""

from typing import Any

import click
import httpx
import pytest

from ops.commands.trace import fetch, spans_of, trace_link, tree


def spans_answered() -> dict[str, Any]:
    def span(span_id: str, parent: str, name: str, start: int, took: int, process: str, **tags: Any) -> dict[str, Any]:
        return {
            "spanID": span_id,
            "references": [{"refType": "CHILD_OF", "traceID": "t", "spanID": parent}] if parent else [],
            "operationName": name,
            "startTime": start,
            "duration": took,
            "processID": process,
            "tags": [{"key": key.replace("__", "."), "type": "string", "value": value} for key, value in tags.items()],
        }

    return {
        "traceID": "t",
        "spans": [
            span("c", "b", "process LANE_ANISORA", 2_000, 2_000_000, "p1", error=True, error__type="worker_lost"),
            span("a", "", "POST /generate", 0, 9_000, "p1"),
            span("b", "a", "publish LANE_ANISORA", 1_000, 3_000, "p1"),
            span("d", "gone", "load", 3_000, 1_000, "p2", warmlane__worker="anisora-0"),
        ],
        "processes": {"p1": {"serviceName": "warmlane-gateway"}, "p2": {"serviceName": "warmlane-lane"}},
    }


def test_a_tree_has_times_services_and_errors() -> None:
    lines = list(tree(spans_of(spans_answered())))
    assert lines[0][26:].startswith("POST /generate ")
    assert [len(line[26:]) - len(line[26:].lstrip()) for line in lines] == [0, 2, 4, 0]
    assert "+0.002 s     2.000 s" in lines[2]
    assert lines[2].endswith("!! worker_lost")
    assert lines[3].endswith("lane      worker=anisora-0"), "its parent has not come"


@pytest.mark.parametrize(
    ("trace_id", "url", "link"),
    [(None, "http://j", None), ("t", None, "t"), ("t", "", "t"), ("t", "http://j/", "http://j/trace/t")],
)
def test_an_id_is_a_link_where_jaeger_is_known(trace_id: str | None, url: str | None, link: str | None) -> None:
    assert trace_link(trace_id, url) == link


@pytest.mark.parametrize(("status", "body"), [(200, "<html>"), (200, "[]"), (500, "{}")])
def test_an_answer_that_is_not_jaegers_is_reported(status: int, body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    with httpx.Client(transport=transport, base_url="http://j") as client, pytest.raises(click.ClickException):
        fetch(client, "01890a5d")


def test_a_trace_that_is_not_there_is_none() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    with httpx.Client(transport=transport, base_url="http://j") as client:
        assert fetch(client, "4bf92f3577b34da6a3ce929d0e0e4736") == []
