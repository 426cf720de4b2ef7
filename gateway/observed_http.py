"""A span and a duration for every HTTP request, by Litestar's own OpenTelemetry plugin."""

import os
import re
from collections.abc import Iterable
from typing import Any

from litestar.handlers import HTTPRouteHandler
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from litestar.types import Scope

# Probes and scrapes come every few seconds for ever, and the page is no part of anybody's task.
_UNOBSERVED = ["^/healthz$", "^/readyz$", "^/metrics$", "^/docs", "^/openapi"]


def http_plugin(routes: Iterable[object]) -> OpenTelemetryPlugin:
    """The plugin for an application with *routes*.

    It stands before routing, so it finds the route itself: a span or a metric that is named after each task is of no
    use.
    """
    # the names that the semantic conventions call stable, and not those of before
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    paths = {path for route in routes if isinstance(route, HTTPRouteHandler) for path in route.paths}
    templates = [(path, path.split("/")) for path in (re.sub(r":[a-z]+}", "}", path) for path in sorted(paths))]

    def describe(scope: Scope) -> tuple[str, dict[Any, str]]:
        method, route = str(scope.get("method", "")), route_of(scope["path"], templates)
        return (f"{method} {route}", {"http.route": route}) if route else (method, {})

    return OpenTelemetryPlugin(
        OpenTelemetryConfig(
            scope_span_details_extractor=describe, exclude=_UNOBSERVED, exclude_spans=["receive", "send"]
        )
    )


def route_of(path: str, templates: Iterable[tuple[str, list[str]]]) -> str:
    """The template that *path* fits; empty where it fits none. A literal segment goes before a parameter."""
    parts = path.split("/")
    fitting = [
        (sum(segment.startswith("{") for segment in segments), template)
        for template, segments in templates
        if len(segments) == len(parts)
        and all(segment.startswith("{") or segment == part for segment, part in zip(segments, parts, strict=True))
    ]
    return min(fitting)[1] if fitting else ""
