"""The Litestar application: routes and error documents."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from litestar import Litestar, Request
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.plugins import PluginProtocol

from gateway.boards.key_board import Caller
from gateway.http import (
    access,
    admin,
    admin_keys,
    admin_slots,
    batch,
    feed,
    forgetting,
    generate,
    images,
    listing,
    meta,
    models,
    panel,
    problems,
    resubmission,
    tasks,
    video,
    videos,
    webhooks,
)
from gateway.http.body import MAX_BODY_BYTES
from gateway.http.cross_origin import cross_origin
from gateway.http.lookup import CallerRequest
from gateway.http.methods import with_heads_and_options
from gateway.http.openapi.document import docs_routes, openapi_config
from gateway.http.outgoing import outgoing
from gateway.http.queries import declare_query
from gateway.http.straight import straight
from gateway.services import Services

# The headers that a page of another origin may send, and those of an answer that it may see.
CORS_REQUEST_HEADERS: Final = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Traceparent",
    "X-Request-Id",
]
CORS_ANSWER_HEADERS: Final = [
    "Age",
    "Content-Range",
    "ETag",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
]

# Callers of these may add anything to the query.
PROBES: Final = (meta.check_health, meta.check_liveness, meta.check_readiness)

# The route of nearly every task.
STRAIGHT: Final = (generate.generate,)


def create_app(
    services: Services,
    *,
    cors_origins: Sequence[str] = (),
    allowed_hosts: Collection[str] = (),
    observes_http: bool = False,
    traces_reads: bool = False,
    panel_folder: Path = panel.FOLDER,
) -> Litestar:
    """The gateway's ASGI application around *services*, which the caller starts and stops.

    Pages of *cors_origins*, and no others, may call it from a browser. A request without a key may use the names in
    *allowed_hosts*, beside those of this machine. *observes_http*: every request is timed, and a request that makes or
    changes a task is a span; with *traces_reads* every request is one. Without an exporter that would only cost time.
    *panel_folder* has the files of the panel.
    """
    problems.begin()
    routes: list[HTTPRouteHandler] = [
        generate.generate,
        batch.generate_batch,
        listing.list_tasks,
        feed.follow_tasks,
        feed.head_follow_tasks,
        tasks.get_task,
        tasks.follow_task,
        tasks.cancel_task,
        tasks.head_follow_task,
        resubmission.resubmit_task,
        forgetting.forget_task,
        video.get_video,
        video.head_video,
        video.get_thumbnail,
        video.head_thumbnail,
        meta.get_settings,
        meta.check_health,
        meta.check_liveness,
        meta.check_readiness,
        meta.get_metrics,
        admin.get_lanes,
        admin.get_lane_mode,
        admin.set_lane_mode,
        admin.get_queues,
        admin.get_fallbacks,
        admin.get_cold_starts,
        admin.get_swaps,
        admin.get_history,
        admin_slots.lift_quarantine,
        admin_keys.list_keys,
        admin_keys.make_key,
        admin_keys.revoke_key,
        admin.explain_task,
        *webhooks.ROUTES,
        *images.ROUTES,
        *videos.ROUTES,
        *models.ROUTES,
    ]
    for handler in routes:
        if handler not in PROBES:
            declare_query(handler)
    plugins: list[PluginProtocol] = []
    if observes_http:
        # imported only if it is wanted: it takes a tenth of a gateway's start
        from gateway.http.observed import http_plugin, with_roots

        plugins.append(http_plugin(routes, traces_reads=traces_reads))
    cors = _cors(cors_origins) if cors_origins else None
    app = Litestar(
        route_handlers=[*with_heads_and_options([*routes, *panel.panel_routes(panel_folder)]), *docs_routes()],
        plugins=plugins,
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "caller": Provide(_caller, sync_to_thread=False),
        },
        middleware=[
            outgoing,
            access.access_control(
                services.keys, access.RateLimits(), max_body_bytes=MAX_BODY_BYTES, allowed_hosts=allowed_hosts
            ),
            straight(STRAIGHT, services),
        ],
        request_class=CallerRequest,
        cors_config=cors,
        exception_handlers=problems.problem_handlers(),
        openapi_config=openapi_config(services.catalog),
        request_max_body_size=MAX_BODY_BYTES,
        # `gateway.server.access_log` logs requests: a prompt must not end up in a log
        logging_config=None,
    )
    app.asgi_handler = cross_origin(app.asgi_handler, cors, allowed_hosts)
    if observes_http:
        app.asgi_handler = with_roots(app.asgi_handler)
    return app


def _caller(request: Request[Caller, Any, Any]) -> Caller:
    return request.user  # set by `access.access_control`


def _cors(origins: Sequence[str]) -> CORSConfig:
    # no credentials: a key travels in a header that the page sets, never in a cookie that the browser adds by itself
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=CORS_REQUEST_HEADERS,
        expose_headers=CORS_ANSWER_HEADERS,
    )
