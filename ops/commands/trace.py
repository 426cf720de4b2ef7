"""`warmlane trace`: what became of a task, as a tree of spans, from Jaeger's query API."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
import httpx
from msgspec import Struct

from contracts.nesting import loads
from ops.commands.options import JAEGER_VARIABLE
from ops.commands.variables import option_or_variable
from ops.commands.web_client import web_client

DEFAULT_URL: Final = "http://127.0.0.1:16686"
ROOT_SERVICE: Final = "warmlane-gateway"
TIMEOUT_S: Final = 10.0
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
# Shown beside a span's name: which worker did it, and how it ended.
_SHOWN: Final = ("warmlane.worker", "warmlane.attempt", "warmlane.reason", "warmlane.lost_s", "warmlane.outcome")


class Span(Struct, frozen=True, kw_only=True):
    """One span as Jaeger reports it; times in microseconds."""

    span_id: str
    parent_id: str | None
    name: str
    service: str
    start_us: int
    duration_us: int
    tags: Mapping[str, Any]


def spans_of(trace: Mapping[str, Any]) -> list[Span]:
    """The spans of one trace in Jaeger's answer, in the order in which they began. Pure."""
    found = [
        Span(
            span_id=span["spanID"],
            parent_id=next((ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"), None),
            name=span["operationName"],
            service=trace["processes"][span["processID"]]["serviceName"].removeprefix("warmlane-"),
            start_us=span["startTime"],
            duration_us=span["duration"],
            tags={tag["key"]: tag["value"] for tag in span["tags"]},
        )
        for span in trace["spans"]
    ]
    return sorted(found, key=lambda span: (span.start_us, -span.duration_us))


def tree(spans: list[Span]) -> Iterator[str]:
    """*spans* as lines: how long after the first each began, how long it took, and its place in the tree. Pure.

    A span whose parent was not received stands at the top.
    """
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in children.get(parent, ()):
            begun_s, took_s = (span.start_us - spans[0].start_us) / 1e6, span.duration_us / 1e6
            shown = " ".join(
                f"{name.removeprefix('warmlane.')}={span.tags[name]}" for name in _SHOWN if name in span.tags
            )
            error = f"  !! {span.tags.get('error.type', 'error')}" if span.tags.get("error") else ""
            name = f"{'  ' * depth}{span.name}"
            yield f"{begun_s:+10.3f} s {took_s:9.3f} s  {name:<36} {span.service:<9} {shown}{error}".rstrip()
            yield from lines(span.span_id, depth + 1)

    yield from lines(None, 0)


def trace_link(trace_id: str | None, jaeger_url: str | None) -> str | None:
    """How to find a trace: the address of its page if Jaeger's address is known, otherwise its ID. Pure."""
    if trace_id is None or not jaeger_url:
        return trace_id
    return f"{jaeger_url.rstrip('/')}/trace/{trace_id}"


def known_jaeger() -> str | None:
    """Jaeger's address from the environment."""
    return os.environ.get(JAEGER_VARIABLE)


def fetch(client: httpx.Client, wanted: str) -> list[Mapping[str, Any]]:
    """The traces of a task, or the one trace, that *wanted* names. Raises click.ClickException."""
    try:
        if _TRACE_ID.fullmatch(wanted):
            answer = client.get(f"/api/traces/{wanted}")
        else:
            query = {"service": ROOT_SERVICE, "tags": json.dumps({"task.id": wanted}), "limit": "20", "lookback": "2d"}
            answer = client.get("/api/traces", params=query)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return []
        answer.raise_for_status()
        return list(loads(answer.content)["data"] or [])
    except httpx.HTTPError as error:
        raise click.ClickException(
            f"Jaeger at {client.base_url} does not answer ({error}); name its query API with --jaeger-url or "
            f"{JAEGER_VARIABLE}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{client.base_url} is not Jaeger's query API") from error


@click.command(
    epilog="Examples:\n\n  warmlane trace 01890a5d-ac96-774b-bcce-b302099a8057\n\n"
    "  warmlane trace 4bf92f3577b34da6a3ce929d0e0e4736 --jaeger-url http://jaeger:16686"
)
@click.argument("wanted", metavar="ID")
@option_or_variable(
    "--jaeger-url",
    envvar=JAEGER_VARIABLE,
    default=DEFAULT_URL,
    help="Jaeger's query API.",
)
def command(wanted: str, jaeger_url: str) -> None:
    """Print the trace of a task as a tree. ID is that of the task or of the trace."""
    with web_client(jaeger_url, timeout_s=TIMEOUT_S) as client:
        traces = fetch(client, wanted)
    if not traces:
        raise click.ClickException(
            f"Jaeger has no trace of {wanted}: it may not be sent yet (a second), be dropped already, or tasks are not "
            "traced (OTEL_EXPORTER_OTLP_ENDPOINT)"
        )
    for trace in sorted(traces, key=lambda trace: min(span["startTime"] for span in trace["spans"])):
        click.echo(trace_link(trace["traceID"], jaeger_url))
        for line in tree(spans_of(trace)):
            click.echo(line)
