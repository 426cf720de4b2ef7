"""The HTTP API as `warmlane submit`, `warmlane demo` and the other commands use it: `warmlane_client`, with answers as
types of `contracts.api`, and errors written for a person.

Answers are read leniently: fields that a newer gateway adds are ignored.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from contracts.api.lenient import lenient
from contracts.api.settings import SettingsView
from contracts.api.tasks import TaskPage, TaskView
from contracts.keys import Presented
from ops.commands.api.health import GatewayHealth
from ops.commands.api.problems import Stuck, decoded
from ops.commands.api.requests import Requests
from ops.commands.api.webhooks import WebhookCalls
from ops.machine.tls import trusting
from warmlane_client import Call, Task, Wait

# When a task has not moved for this long, the client asks the gateway whether it can move.
STUCK_AFTER_S: Final = 20.0
# What `/readyz` says about a stream that refuses writes.
TAKES_NO_WRITES: Final = "takes no writes"
FIND_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


class CommandClient:
    """A connection to one gateway, for a `with` block, which closes it.

    Every call raises Unreachable, NotWarmlane or Refused, which click shows as errors with exit status 1.
    """

    def __init__(self, url: str, *, key: Presented | None = None, ca: Path | None = None, said_by: str = "") -> None:
        """Presents *key* with every request; with *ca*, trusts the certificates of that authority alone. *said_by* is
        where the *url* comes from, for errors.

        Raises click.BadParameter if *url* is not a URL, click.ClickException if *ca* or an environment variable cannot
        be used.
        """
        trusted = None if ca is None else trusting(ca)
        self._requests = Requests(url, key=key, trusted=trusted, said_by=said_by)
        self._client = self._requests.client
        self.url = self._client.url
        self.health = GatewayHealth(self._requests)
        self.webhooks = WebhookCalls(self._requests)

    def __enter__(self) -> "CommandClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def settings(self) -> SettingsView:
        """The models that the gateway serves, and its profile."""
        return decoded(self._requests.send("GET", "/settings", repeatable=True), SettingsView)

    def get(self, path: str, kind: type[T]) -> T:
        """What the gateway answers at *path*, as *kind*."""
        return decoded(self._requests.send("GET", path), kind)

    def put(self, path: str, body: Mapping[str, Any], kind: type[T]) -> T:
        """Puts *body* at *path*, and returns the answer as *kind*."""
        return decoded(self._requests.send("PUT", path, json=dict(body)), kind)

    def task(self, task_id: str) -> tuple[TaskView, dict[str, Any]]:
        """The task of that ID: decoded, and as the gateway wrote it."""
        reply = self._requests.send("GET", f"/tasks/{quote(task_id, safe='')}")
        return decoded(reply, TaskView), decoded(reply, dict[str, Any])

    def tasks(self, query: Mapping[str, str | list[str]]) -> tuple[list[dict[str, Any]], str | None]:
        """One page of tasks, newest first, as the gateway wrote them, and the cursor of the next page, if any."""
        reply = self._requests.send("GET", "/tasks", params=query)
        page, written = decoded(reply, TaskPage), decoded(reply, dict[str, Any])
        return written["tasks"] if page.tasks else [], page.next_cursor

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str, hold: bool = True) -> tuple[TaskView, str]:
        """Submits *body*, and again with the same key when the answer was lost. Returns the task and its revision.

        If no lane is free, this may take 30 s, until a worker has taken the task. Without *hold* the answer comes at
        once, and a task that no worker takes in time fails with `queue_overloaded`.
        """
        with self._requests.said():
            task = self._client.submit(body, idempotency_key=idempotency_key, hold=hold)
        return _view(task), task.revision

    def find(self, body: Mapping[str, Any], *, idempotency_key: str) -> TaskView:
        """The task of an earlier `submit` of *body* whose answer was not read. Asks once, for FIND_TIMEOUT_S at most.

        If the gateway never got that submit, this makes a new task.
        """
        headers = {"Idempotency-Key": idempotency_key, "Prefer": "respond-async"}
        call = Call(method="POST", path="/generate", json=dict(body), headers=headers, reply_timeout_s=FIND_TIMEOUT_S)
        with self._requests.said():
            return decoded(self._client.request(call, repeatable=False), TaskView)

    def follow(self, task: TaskView, revision: str, on_change: Callable[[TaskView], None]) -> TaskView:
        """Waits until *task* has ended, however long that takes, and calls *on_change* with each new state and place.

        Raises Stuck if the task has not moved for STUCK_AFTER_S and cannot move.
        """
        begun = Task.of(msgspec.to_builtins(task), revision)
        with self._requests.said():
            ended = self._client.wait(
                begun,
                on_change=lambda seen: on_change(_view(seen)),
                on_idle=self._require_writes,
                how=Wait(idle_s=STUCK_AFTER_S, fresh_places=True),
            )
        return _view(ended)

    def cancel(self, task_id: str) -> TaskView:
        """Cancels the task of that id, unless it has ended already, and returns it as it is then."""
        with self._requests.said():
            return _view(self._client.cancel(task_id))

    def forget(self, task_id: str) -> None:
        """Has the gateway forget the ended task of that ID. Raises Refused, `task_not_found`, if it is gone."""
        with self._requests.said():
            self._client.request(Call(method="DELETE", path=f"/tasks/{quote(task_id, safe='')}/record"))

    def download(self, task: TaskView, path: Path, *, part: Path | None = None) -> None:
        """Saves the video of *task*, which is done, at *path*: whole and checked, or not at all.

        Until it is whole, the file is called *part*. Nothing of *part* is left if the download fails.

        Raises DamagedVideo when its hash is not the one in the task; OSError when it cannot be written.
        """
        done = Task.of(msgspec.to_builtins(task))
        with self._requests.said():
            self._client.download(done, path, part=part or path.with_name(f"{path.name}.part"), keep_part=False)

    def _require_writes(self, task: Task) -> None:
        """Raises Stuck if the gateway reports that nats-server stores nothing: then the task cannot move."""
        why = [text for text in self.health.troubles() if TAKES_NO_WRITES in text]
        if why:
            raise Stuck(
                f"task {task.id} is {task.status} and cannot go on: {why[0]}\n"
                f"It is kept, and goes on when that is done: {self.url}/tasks/{task.id}"
            )


def _view(task: Task) -> TaskView:
    """*task* as commands show it."""
    return msgspec.convert(task.document, lenient(TaskView), strict=False)
