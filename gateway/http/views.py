"""What clients see of a task and of the settings: the structs of `contracts.api`, filled in."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from litestar.connection import ASGIConnection

from contracts.api.settings import CallerView, Mode, ModelView, PriorityView, SettingsView
from contracts.api.tasks import ParameterWarning, Progress, QueuePlace, TaskLinks, TaskView, VideoView
from contracts.fields import Presence
from contracts.settings import Catalog
from contracts.tasks import (
    GenerationTask,
    Priority,
    ReplacedParameter,
    TaskStatus,
)
from gateway.boards.key_board import ANYBODY, Caller
from gateway.http.body import MAX_BODY_BYTES
from gateway.http.priority import allowed_by, default_of

MODES: Final[Mapping[Presence, tuple[Mode, ...]]] = {
    "unsupported": ("text-to-video",),
    "optional": ("text-to-video", "image-to-video"),
    "required": ("image-to-video",),
}


def root_of(request: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The prefix of every path in an answer: empty, or as in `/warmlane` (`server/proxies.py`)."""
    return request.scope["root_path"]


def task_url(root: str, task_id: str) -> str:
    """The path of a task: `Location` of a 202, and the base of its links."""
    return f"{root}/tasks/{task_id}"


def view(task: GenerationTask, place: QueuePlace | None, now: datetime, *, root: str = "") -> TaskView:
    """*task*, which stands in its queue at *place* (`Estimates.place`), as its caller sees it *now*, under *root*."""
    url, video = task_url(root, task.id), task.video
    return TaskView(
        id=task.id,
        status=task.status,
        model=task.model,
        route=task.route,
        priority=task.priority,
        worker=task.worker,
        attempt=task.attempt,
        parameters=task.parameters,
        warnings=tuple(_warning(each) for each in task.replaced),
        webhook=task.webhook,
        labels=task.labels,
        keep_s=task.keep_s,
        created_at=task.created_at,
        queued_at=task.queued_at,
        claimed_at=task.claimed_at,
        finished_at=task.finished_at,
        queue=place,
        progress=Progress.of(task, now),
        error=task.error,
        video=None if video is None else VideoView.of(video),
        swap=task.swap,
        memory=task.memory,
        timeline=task.timeline,
        trace_id=task.trace_id,
        links=TaskLinks(
            self_=url,
            events=f"{url}/events",
            video=f"{url}/video" if task.status is TaskStatus.DONE else None,
            thumbnail=None if video is None or video.thumbnail is None else f"{url}/thumbnail",
            cancel=None if task.status.is_terminal else url,
        ),
    )


def _warning(replaced: ReplacedParameter) -> ParameterWarning:
    return ParameterWarning(
        pointer=f"/{replaced.field}",
        code="fixed_value_replaced",
        message=f"{replaced.field}: expected {replaced.used}, got {replaced.got}; {replaced.used} was used",
        expected=replaced.used,
        got=replaced.got,
    )


def settings_view(
    catalog: Catalog,
    caller: Caller = ANYBODY,
    *,
    keep_s: float = 0.0,
    jaeger_url: str | None = None,
    version: str | None = None,
) -> SettingsView:
    """The body of `GET /settings` for *caller*, models by name."""
    key = caller.key
    return SettingsView(
        profile=catalog.profile,
        wait_limit_s=catalog.windows.wait_limit_s,
        models=tuple(
            ModelView(
                name=entry.name,
                title=entry.title,
                aliases=entry.aliases,
                enforcement=entry.enforcement,
                modes=MODES[entry.constraints.image.presence],
                constraints=entry.constraints,
            )
            for _, entry in sorted(catalog.models.items())
        ),
        priorities=tuple(PriorityView(name=each, allowed=each.rank >= allowed_by(key).rank) for each in Priority),
        default_priority=default_of(key),
        body_max_bytes=MAX_BODY_BYTES,
        keep_s=keep_s,
        trace_url=f"{jaeger_url.rstrip('/')}/trace/{{trace_id}}" if jaeger_url else None,
        caller=CallerView(
            name=caller.name,
            scopes=caller.scopes,
            key_id=None if key is None else key.id,
            is_open=key is None,
            max_waiting=None if key is None else key.max_waiting,
            max_running=None if key is None else key.max_running,
        ),
        version=version,
    )
