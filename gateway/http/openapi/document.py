"""The API's description: `/openapi.json` and a docs page at `/docs` that needs no internet.

Handlers read and check the request body themselves, so it is described here, from the running catalog (`request`).
Litestar describes what a handler's signature declares; the `operation_class` of a route adds the rest (`operations`):
headers, examples, raw bodies.
"""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import openapi_ui_bundles
from litestar import MediaType, Request, Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag
from litestar.static_files import create_static_files_router
from litestar.types import ControllerRouterHandler

from contracts.settings import Catalog
from gateway.http.access import SECURITY_SCHEME, needs_nothing
from gateway.http.methods import head_of, options_of, with_heads_and_options
from gateway.http.openapi.examples import problem_example
from gateway.http.openapi.request import (
    BATCH_BODY,
    MODEL_QUERY,
    REQUEST_BODY,
    batch_body,
    model_query,
    request_body,
)
from gateway.http.openapi.videos import VIDEO_REQUEST_BODY, video_request_body
from gateway.http.problem_kinds import PROBLEMS
from gateway.http.views import root_of

_DOCS_PATH: Final = "/docs"
_DOCS_PAGES: Final = ["/", "/openapi.json", "/oauth2-redirect.html"]  # which Litestar has below it
_ASSETS_PATH: Final = "/docs/assets"

# A held request is answered within the wait limit; the answer still has to reach its client.
CLIENT_MARGIN_S: Final = 5.0
_DESCRIPTION: Final = """
Warmlane turns a prompt, and for some models an image, into a short video.

1. `POST /generate` answers `202` with a task, or with the reason for the refusal.
2. `GET /tasks/{{id}}?wait=60` answers when the task has ended; `GET /tasks/{{id}}/events` streams its changes.
3. `GET /tasks/{{id}}/video` is the MP4.

A client that would rather be notified than poll gives an address in `webhook`, or registers one with
`POST /webhooks`.

## Waiting

A request for a model with a warm lane is answered at once. Models without a warm lane share one worker, which holds
one model at a time. Up to 25 requests may wait for it. `POST /generate` is then answered when the worker takes the
request, or with `503` after at most {wait_limit_s:g} s: give your client a read time-out of {client_limit_s:g} s or
more. With `Prefer: respond-async` the answer is `202` at once, and a task that no worker takes in time ends as `failed`
with `queue_overloaded`. While a task is pending, `queue` gives its place and its expected wait.

## Keys

Send `Authorization: Bearer KEY`. A key has scopes: `submit` (generate, cancel), `read` (tasks and videos), `metrics`
(`/metrics`), `admin` (all of it, and `/admin`). A task is visible to keys of the same caller, and to `admin`. A key
over its rate limit gets `429` with `Retry-After`. A request that is wrong in several ways is refused with the first of
these that applies: 413, 401, 403, 415, 400, 422, 429, 412, 503.

## Caching and conditions

`HEAD` works wherever `GET` does. An `ETag` changes with the answer: it also covers the place of a waiting task, and
compression (long answers, for clients that accept gzip). `If-None-Match` leads to a `304`; with `wait`, it names the
revision that the client has seen. With `If-Match`, `DELETE` and `PUT` change a resource only at the revision that the
client has seen. The gateway compares the first number of the tag, the revision; any other revision gets a `412`.

## Errors

Every error is a problem document (RFC 9457, `application/problem+json`). Programs switch on `code`; a `422` lists every
wrong field at once, in a fixed order. Below `/v1` an error has the form `{{"error": {{"message": "…", "code": "…"}}}}`,
with the same status and `code`.

| status | code | meaning |
|---|---|---|
"""


def openapi_config(catalog: Catalog) -> OpenAPIConfig:
    """The document for the models of *catalog*, and the page at `/docs`. `docs_routes` serves the rest of it."""
    return OpenAPIConfig(
        title="Warmlane",
        version=own_version(),
        description=_description(catalog.windows.wait_limit_s),
        tags=[
            Tag(name="generation", description="Submit generations."),
            Tag(name="tasks", description="Follow and cancel tasks, and download their videos."),
            Tag(name="images", description="Upload an image once, and name it in many requests."),
            Tag(name="webhooks", description="Be notified instead of polling."),
            Tag(name="videos", description="The same tasks, as clients of OpenAI's video API see them."),
            Tag(name="settings", description="Models, limits and fixed parameters."),
            Tag(name="operations", description="Health, readiness and metrics."),
            Tag(name="admin", description="Lanes, queues, slots and keys, for operators."),
        ],
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, method, path: handler.handler_name,  # `list_tasks`, `generate`, …
        components=Components(
            parameters={MODEL_QUERY: model_query(catalog)},
            request_bodies={
                REQUEST_BODY: request_body(catalog),
                BATCH_BODY: batch_body(catalog),
                VIDEO_REQUEST_BODY: video_request_body(catalog),
            },
            examples={code: problem_example(code) for code in PROBLEMS},
            security_schemes={SECURITY_SCHEME: _security_scheme()},
        ),
        # Litestar answers unknown paths below this router itself, so it must not be the root
        openapi_router=Router(
            path=_DOCS_PATH,
            route_handlers=[
                *(options_of(path, ("GET", "HEAD")) for path in _DOCS_PAGES),
                head_of(_DOCS_PAGES, needs_nothing()),
            ],
            include_in_schema=False,
            opt=needs_nothing(),
        ),
        render_plugins=[
            _DocsPage(path="/"),
            _Document(path="/openapi.json"),
        ],
    )


class _DocsPage(SwaggerRenderPlugin):
    """Swagger UI, with addresses under the path that its reader sees."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return _swagger(root_of(request)).render(request, served_under(root_of(request), openapi_schema))


class _Document(JsonRenderPlugin):
    """The document below `/docs`, where Litestar has one too."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return super().render(request, served_under(root_of(request), openapi_schema))


@lru_cache(maxsize=8)
def _swagger(root: str) -> SwaggerRenderPlugin:
    assets = f"{root}{_ASSETS_PATH}"
    return SwaggerRenderPlugin(
        path="/",
        js_url=f"{assets}/swagger-ui-bundle.js",
        css_url=f"{assets}/swagger-ui.css",
        standalone_preset_js_url=f"{assets}/swagger-ui-standalone-preset.js",
        favicon=f"<link rel='icon' type='image/png' href='{assets}/favicon-32x32.png'>",
    )


def served_under(root: str, document: dict[str, Any]) -> dict[str, Any]:
    """*document* with the prefix of all of its paths: relative, so right for every scheme and host."""
    return document | {"servers": [{"url": root or "/"}]}


def _security_scheme() -> SecurityScheme:
    return SecurityScheme(
        type="http",
        scheme="bearer",
        bearer_format="wl_ID_SECRET",
        description=(
            "An API key, made with `warmlane keys add`. Each operation lists the scope that it needs; `admin` "
            "includes all scopes. On the loopback, no key is needed until the first one is made."
        ),
    )


def _description(wait_limit_s: float) -> str:
    text = _DESCRIPTION.format(wait_limit_s=wait_limit_s, client_limit_s=wait_limit_s + CLIENT_MARGIN_S)
    return text + "".join(f"| {kind.status} | `{code}` | {kind.title} |\n" for code, kind in PROBLEMS.items())


def own_version() -> str:
    """The version of this gateway; `unreleased` in a source tree that was never installed."""
    try:
        return version("warmlane")
    except PackageNotFoundError:
        return "unreleased"


@get(
    "/openapi.json",
    media_type=MediaType.JSON,
    include_in_schema=False,
    sync_to_thread=False,
    opt=needs_nothing(),
)
def openapi_json(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """The OpenAPI document."""
    return served_under(root_of(request), request.app.openapi_schema.to_schema())


def docs_routes() -> list[ControllerRouterHandler]:
    """`/openapi.json`, and the files of Swagger UI, which come with a package and not from a CDN."""
    assets = create_static_files_router(
        path=_ASSETS_PATH,
        directories=[openapi_ui_bundles.swagger_ui.static_path],
        include_in_schema=False,
        opt=needs_nothing(),
    )
    return [*with_heads_and_options([openapi_json]), assets]
