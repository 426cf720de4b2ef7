"""A duration for every HTTP request, and a span for those that make or change a task, by Litestar's OpenTelemetry
plugin; and the root of each task's trace."""

import os
import re
from collections.abc import Iterable
from typing import Any, Final

from litestar.handlers import HTTPRouteHandler
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from litestar.types import ASGIApp, Receive, Scope, Send
from opentelemetry import context, trace
from opentelemetry.propagate import extract

from gateway.rules.paths import routed
from ops.telemetry.tracing import current_root, root

ACCEPT: Final = "accept"
MAKES_A_TASK: Final = re.compile(r"/(generate(/batch)?|tasks/[^/]+/resubmit|v1/videos(/sync)?)")

# Probes and scrapes come every few seconds forever, and the docs page belongs to no task.
_UNTRACED: Final = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
_UNOBSERVED = ["^/(healthz|livez|readyz|metrics)/*$", "^/docs", "^/openapi"]


def http_plugin(routes: Iterable[object], *, traces_reads: bool = False) -> OpenTelemetryPlugin:
    """The plugin for an application with *routes*.

    With *traces_reads* every request has a span. Without it only those that `changes_a_task` names have one: the spans
    of clients that poll would drown them. The plugin runs before routing, so it finds the route itself: a span or a
    metric that is named after each task is of no use.
    """
    # the names that the semantic conventions call stable, and not the earlier ones
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    paths = {path for route in routes if isinstance(route, HTTPRouteHandler) for path in route.paths}
    templates = [(path, path.split("/")) for path in (re.sub(r":[a-z]+}", "}", path) for path in sorted(paths))]

    def describe(scope: Scope) -> tuple[str, dict[Any, str]]:
        method, route = str(scope.get("method", "")), route_of(scope["path"], templates)
        return (f"{method} {route}", {"http.route": route}) if route else (method, {})

    return OpenTelemetryPlugin(
        OpenTelemetryConfig(
            scope_span_details_extractor=describe,
            tracer_provider=_BelowRoots(traces_reads=traces_reads),
            exclude=_UNOBSERVED,
            exclude_spans=["receive", "send"],
        )
    )


def changes_a_task(method: str, route: str) -> bool:
    """Whether a request of *method* to the path or template *route* makes a task, or changes one."""
    return method not in {"GET", "HEAD", "OPTIONS"} and re.match(r"/(generate|tasks|v1/videos)(/|$)", route) is not None


def with_roots(app: ASGIApp) -> ASGIApp:
    """*app*, with a root span around each `POST` to a path that MAKES_A_TASK matches, sent before there is a task (ADR
    0036)."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "POST" or MAKES_A_TASK.fullmatch(routed(scope["path"])) is None:
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with root(ACCEPT, extract(headers)):
            await app(scope, receive, send)

    return serve


class _BelowRoots(trace.TracerProvider):
    """The process's provider for requests that make or change a task, or with *traces_reads* for all of them. The
    others are timed, but have no span."""

    def __init__(self, *, traces_reads: bool) -> None:
        self._traces_reads = traces_reads

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _Tracer(trace.get_tracer_provider().get_tracer(*args, **kwargs), traces_reads=self._traces_reads)


class _Tracer(trace.NoOpTracer):
    def __init__(self, tracer: trace.Tracer, *, traces_reads: bool) -> None:
        self._tracer, self._traces_reads = tracer, traces_reads

    def start_span(self, name: str, context: context.Context | None = None, *args: Any, **kwargs: Any) -> trace.Span:
        method, _, route = name.partition(" ")
        if not self._traces_reads and not changes_a_task(method, route):
            return _UNTRACED
        above = current_root()
        if above.get_span_context().is_valid:
            context = trace.set_span_in_context(above, context)
        return self._tracer.start_span(name, context, *args, **kwargs)


def route_of(path: str, templates: Iterable[tuple[str, list[str]]]) -> str:
    """The template that *path* fits; empty where it fits none. A literal segment goes before a parameter, and slashes
    at the end of *path* do not count."""
    parts = routed(path).split("/")
    fitting = [
        (sum(segment.startswith("{") for segment in segments), template)
        for template, segments in templates
        if len(segments) == len(parts)
        and all(segment.startswith("{") or segment == part for segment, part in zip(segments, parts, strict=True))
    ]
    return min(fitting)[1] if fitting else ""
