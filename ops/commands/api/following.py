"""A task, followed until it has ended."""

import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx

from contracts.api.tasks import TaskView
from ops.commands.api.health import GatewayHealth
from ops.commands.api.problems import Stuck, decoded
from ops.commands.api.requests import REPLY_TIMEOUT_S, Requests

# One long poll; a gateway answers at most 60 s late.
WAIT_S: Final = 20.0
# A task that moves up in its queue is no change that ends a long poll.
QUEUED_WAIT_S: Final = 1.0
# When a task has not moved for so long, the gateway is asked whether it can.
STUCK_AFTER_S: Final = 20.0
# What `/readyz` says of a stream that refuses writes.
TAKES_NO_WRITES: Final = "takes no writes"


class FollowedTask:
    """*task*, known at *revision* (its ETag; empty where it is not known)."""

    def __init__(self, requests: Requests, health: GatewayHealth, url: str, task: TaskView, revision: str) -> None:
        self._requests, self._health, self._url = requests, health, url
        self._task, self._revision = task, revision
        self._moved_s = self._looked_s = time.monotonic()

    def until_ended(self, on_change: Callable[[TaskView], None]) -> TaskView:
        """As `Client.follow`."""
        on_change(self._task)
        while not self._task.has_ended:
            if (now_s := time.monotonic()) - max(self._moved_s, self._looked_s) >= STUCK_AFTER_S:
                self._looked_s = now_s
                self._require_writes()
            if self._poll():
                on_change(self._task)
        return self._task

    def _poll(self) -> bool:
        """Asks for the task, and returns whether it, or its place in a queue, may have changed."""
        headers = {"If-None-Match": self._revision} if self._revision else {}
        reply = self._get(headers, wait_s=QUEUED_WAIT_S if self._task.queue else WAIT_S)
        if reply.status_code == httpx.codes.NOT_MODIFIED:
            if self._task.queue is None:
                return False
            reply = self._get({}, wait_s=0)
        before, self._task = self._task, decoded(reply, TaskView)
        self._revision = reply.headers.get("ETag", "")
        if self._task != before:
            self._moved_s = time.monotonic()
        return True

    def _get(self, headers: Mapping[str, str], *, wait_s: float) -> httpx.Response:
        return self._requests.send_patiently(
            "GET",
            f"/tasks/{self._task.id}",
            params={"wait": f"{wait_s:g}"},
            headers=headers,
            timeout=wait_s + REPLY_TIMEOUT_S,
        )

    def _require_writes(self) -> None:
        """Raises Stuck where the gateway says that the server stores nothing: then the task cannot move."""
        why = [text for text in self._health.troubles() if TAKES_NO_WRITES in text]
        if why:
            raise Stuck(
                f"task {self._task.id} is {self._task.status} and cannot go on: {why[0]}\n"
                f"It is kept, and goes on when that is done: {self._url}/tasks/{self._task.id}"
            )
