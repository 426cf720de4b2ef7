"""The Litestar application: routes and error documents."""

from typing import Final

from litestar import Litestar
from litestar.di import Provide

from gateway import admin, generate, meta, tasks
from gateway.openapi import docs_routes, openapi_config
from gateway.problems import problem_handlers
from gateway.services import Services

# An 8 MiB image as base64, and the rest of the request.
MAX_BODY_BYTES: Final = 12 * 1024 * 1024


def create_app(services: Services) -> Litestar:
    """The gateway's ASGI application around *services*, which the caller starts and stops."""
    return Litestar(
        route_handlers=[
            generate.generate,
            tasks.list_tasks,
            tasks.get_task,
            tasks.follow_task,
            tasks.cancel_task,
            tasks.get_video,
            tasks.head_video,
            meta.get_settings,
            meta.healthz,
            meta.readyz,
            admin.get_lanes,
            admin.get_mode,
            admin.put_mode,
            admin.get_queues,
            admin.get_fallbacks,
            admin.get_cold_starts,
            admin.explain_task,
            *docs_routes(),
        ],
        dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
        exception_handlers=problem_handlers(),
        openapi_config=openapi_config(services.catalog),
        request_max_body_size=MAX_BODY_BYTES,
        # requests are logged by nobody: a prompt must not end in a log
        logging_config=None,
    )
