"""The HTTP API as `warmlane submit`, `warmlane demo` and the others use it.

A submit carries an Idempotency-Key, so that it may safely be sent again when an answer was lost. Answers are read
leniently: what a newer gateway adds is ignored.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx

from contracts.api.settings import SettingsView
from contracts.api.tasks import TaskPage, TaskView
from contracts.keys import Presented
from ops.commands.api.following import FollowedTask
from ops.commands.api.health import GatewayHealth
from ops.commands.api.problems import DamagedVideo, decoded
from ops.commands.api.requests import CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S, Requests
from ops.commands.api.webhooks import WebhookCalls

# A gateway may hold a submit for 30 s, until a worker takes it or nobody did.
HELD_REPLY_TIMEOUT_S: Final = 45.0

T = TypeVar("T")


class Client:
    """A connection to one gateway. Close it with `close`, or use it in a `with` block.

    Every call raises Unreachable, NotWarmlane or Refused, which click shows as errors with exit status 1.
    """

    def __init__(self, url: str, *, key: Presented | None = None, ca: Path | None = None, said_by: str = "") -> None:
        """Shows *key* with every request; with *ca*, trusts the certificates of that authority alone. *said_by* says
        who named the *url*, for errors.

        Raises what `web_client` raises.
        """
        self.url = url.rstrip("/")
        self._requests = Requests(self.url, key=key, ca=ca, said_by=said_by)
        self.health = GatewayHealth(self._requests)
        self.webhooks = WebhookCalls(self._requests)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._requests.close()

    def settings(self) -> SettingsView:
        """The models that the gateway serves, and its profile."""
        return decoded(self._requests.send_soon("GET", "/settings"), SettingsView)

    def get(self, path: str, kind: type[T]) -> T:
        """What the gateway answers at *path*, as *kind*."""
        return decoded(self._requests.send("GET", path), kind)

    def put(self, path: str, body: Mapping[str, Any], kind: type[T]) -> T:
        """Puts *body* at *path*, and returns the answer as *kind*."""
        return decoded(self._requests.send("PUT", path, json=body), kind)

    def task(self, task_id: str) -> tuple[TaskView, dict[str, Any]]:
        """The task of that id, for a person and as the gateway wrote it."""
        reply = self._requests.send("GET", _path(task_id))
        return decoded(reply, TaskView), decoded(reply, dict[str, Any])

    def tasks(self, query: Mapping[str, str | list[str]]) -> tuple[list[dict[str, Any]], str | None]:
        """One page of tasks, newest first, as the gateway wrote them, and the cursor of the next page, if any."""
        reply = self._requests.send("GET", "/tasks", params=dict(query))
        page, written = decoded(reply, TaskPage), decoded(reply, dict[str, Any])
        return written["tasks"] if page.tasks else [], page.next_cursor

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str, hold: bool = True) -> tuple[TaskView, str]:
        """Submits *body*, and again with the same key when the answer was lost. Returns the task and its revision.

        Where no lane is free this may take 30 s, until a worker took it. Without *hold* the answer comes at once, and a
        task that nobody took in time ends as failed with `queue_overloaded`.
        """
        headers = {"Idempotency-Key": idempotency_key} | ({} if hold else {"Prefer": "respond-async"})
        timeout = httpx.Timeout(HELD_REPLY_TIMEOUT_S if hold else REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        reply = self._requests.send_soon("POST", "/generate", json=body, headers=headers, timeout=timeout)
        return decoded(reply, TaskView), reply.headers.get("ETag", "")

    def find(self, body: Mapping[str, Any], *, idempotency_key: str) -> TaskView:
        """The task of a `submit` of *body* whose answer was not read; it is asked for once, for REPLY_TIMEOUT_S / 3 at
        most.

        Where that submit never arrived, the task is a new one.
        """
        headers = {"Idempotency-Key": idempotency_key, "Prefer": "respond-async"}
        timeout = httpx.Timeout(REPLY_TIMEOUT_S / 3, connect=CONNECT_TIMEOUT_S)
        return decoded(self._requests.send("POST", "/generate", json=body, headers=headers, timeout=timeout), TaskView)

    def follow(self, task: TaskView, revision: str, on_change: Callable[[TaskView], None]) -> TaskView:
        """Waits until *task* has ended, however long that takes, and calls *on_change* with each new state and place.

        Raises Stuck where it has not moved for STUCK_AFTER_S, and cannot.
        """
        return FollowedTask(self._requests, self.health, self.url, task, revision).until_ended(on_change)

    def cancel(self, task_id: str) -> TaskView:
        """Cancels the task of that id, unless it has ended already, and returns it as it is then."""
        return decoded(self._requests.send("DELETE", _path(task_id)), TaskView)

    def download(self, task: TaskView, path: Path, *, part: Path | None = None) -> None:
        """Saves the video of *task*, which is done, at *path*: whole and checked, or not at all.

        Until it is whole, the file is called *part*.

        Raises DamagedVideo when its hash is not the one in the task; OSError when it cannot be written.
        """
        part = part or path.with_name(f"{path.name}.part")
        try:
            sha256 = self._requests.in_turn(lambda: _written(self._requests.file(f"/tasks/{task.id}/video"), part))
            if task.video is None or sha256 != task.video.sha256:
                raise DamagedVideo(f"the video of task {task.id} arrived damaged; download it again from {self.url}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _written(chunks: Iterable[bytes], part: Path) -> str:
    """Writes *chunks* to *part*, and returns their SHA-256."""
    digest = hashlib.sha256()
    with part.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"
