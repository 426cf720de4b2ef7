"""The HTTP API as `warmlane submit` and `warmlane demo` use it.

A submit carries an Idempotency-Key, so it is tried again safely when an answer was lost. Replies are read leniently:
what a newer gateway adds is ignored.
"""

import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import click
import httpx
import msgspec
import stamina
from msgspec import Struct

from contracts.api.admin import ModeView
from contracts.api.health import Readiness
from contracts.api.lenient import lenient
from contracts.api.problems import Problem
from contracts.api.settings import SettingsView
from contracts.api.tasks import TaskPage, TaskView
from contracts.keys import Presented, parse_presented
from contracts.nesting import decode_json
from ops.commands.addresses import DEFAULT_URL, address_of
from ops.commands.web_client import web_client
from ops.nats.access import DEFAULT_DATA_DIR

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 30.0
# A submit may be held for 30 s, until a worker takes it or nobody did.
HELD_REPLY_TIMEOUT_S: Final = 45.0
# One long poll; a gateway answers at most 60 s late.
WAIT_S: Final = 20.0
# A task that moves up in its queue is no change that ends a long poll.
QUEUED_WAIT_S: Final = 1.0
# A submit that finds nobody is given up soon: most likely nothing was started.
SUBMIT_ATTEMPTS: Final = 4
# A task that was accepted goes on without us: be patient with a gateway that is started again.
FOLLOW_PATIENCE_S: Final = 60.0
# Of a task that has not moved for so long, the gateway is asked whether it can.
STUCK_AFTER_S: Final = 20.0
# A request was refused since the queue could not store it: what keeps it from that, `/readyz` says.
NOT_STORED: Final = frozenset({"transport_unavailable", "storage_full"})
# As `/readyz` says it of a stream.
TAKES_NO_WRITES: Final = "takes no writes"
# A key that asked too often is told when its next turn is: that is waited for, unless it is further off than this.
TURN_PATIENCE_S: Final = 60.0
TURN_ATTEMPTS: Final = 20
_TASK_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
KEY_VARIABLE: Final = "WARMLANE_API_KEY"
# What to do about a refusal, where the gateway cannot know it.
HINTS: Final = {
    "unauthorized": f"Set {KEY_VARIABLE}, or name a file that holds the key with --api-key-file. "
    "Where the nats-server is, `warmlane keys add` makes one.",
    "forbidden": "Use another key. Where the nats-server is, `warmlane keys add` makes one with the missing scope.",
}

T = TypeVar("T")


class Refused(click.ClickException):
    """The gateway answered with a problem document. As an uncaught error it is shown line by line; exit status 1.

    *retry_after_s* is when another try makes sense, where the gateway could tell; *troubles* are what is wrong with it.
    """

    def __init__(self, problem: Problem, *, troubles: Sequence[str] = ()) -> None:
        super().__init__("\n".join([*problem_lines(problem), *(f"  The gateway says: {text}" for text in troubles)]))
        self.problem = problem
        self.retry_after_s = problem.retry_after_s


class Unreachable(click.ClickException):
    """No gateway answers."""


class Stuck(click.ClickException):
    """A task does not move, since the server stores nothing: its disk is full, most likely."""


class NotWarmlane(click.ClickException):
    """What answers is not a Warmlane gateway; *status* and *retry_after_s* are those of an answer by whom it may be."""

    def __init__(self, message: str, *, status: int = 200, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class DamagedVideo(click.ClickException):
    """What was downloaded is not what the task says."""


def task_id_of(_: click.Context, __: click.Parameter, value: str) -> str:
    """For an argument: the id of a task. Raises click.BadParameter for what cannot be one."""
    if not _TASK_ID.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no id of a task; `warmlane tasks list` shows them")
    return value.lower()


def problem_lines(problem: Problem) -> Iterator[str]:
    """*problem* for a person: what it is, then one line for each wrong field."""
    yield f"{problem.title} ({problem.status} {problem.code})"
    if problem.errors:
        for error in problem.errors:
            yield f"  {error.message}"
    elif problem.detail:
        yield f"  {problem.detail}"
    if problem.code in HINTS:
        yield f"  {HINTS[problem.code]}"
    if problem.retry_after_s is not None:
        yield f"  Try again in {problem.retry_after_s:g} s."


class Client:
    """A connection to one gateway. Close it with `close`, or use it in a `with` block.

    Every call raises Unreachable, NotWarmlane or Refused, which click shows as errors with exit status 1.
    """

    def __init__(self, url: str, *, key: Presented | None = None, ca: Path | None = None, said_by: str = "") -> None:
        """Shows *key* with every request; with *ca*, trusts the certificates of that authority alone. *said_by* is who
        named the *url*, for errors.

        Raises what `web_client` raises.
        """
        self.url = url.rstrip("/")
        self._said_by = f" ({said_by})" if said_by else ""
        # retries are ours to mention, not to log
        stamina.instrumentation.set_on_retry_hooks([])
        self._http = web_client(
            self.url,
            timeout=httpx.Timeout(REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={} if key is None else {"Authorization": f"Bearer {key.text}"},
            ca=ca,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()

    def settings(self) -> SettingsView:
        """The models that the gateway serves, and its profile."""
        reply = self._soon(lambda: self._request("GET", "/settings"))
        return _decode(reply, SettingsView)

    def readiness(self) -> Readiness:
        """Which workers there are. Not yet ready is an answer, and not an error."""
        try:
            return _decode(self._http.get("/readyz"), Readiness)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def get(self, path: str, kind: type[T]) -> T:
        """What the gateway answers at *path*, as *kind*."""
        return _decode(self._request("GET", path), kind)

    def task(self, task_id: str) -> tuple[TaskView, dict[str, Any]]:
        """The task of that id, for a person and as the gateway told it."""
        reply = self._request("GET", f"/tasks/{quote(task_id, safe='')}")
        return _decode(reply, TaskView), _decode(reply, dict[str, Any])

    def tasks(self, query: Mapping[str, str]) -> tuple[list[dict[str, Any]], str | None]:
        """One page of tasks, newest first, as the gateway tells them, and the cursor of the next page, if any."""
        reply = self._request("GET", "/tasks", params=dict(query))
        page, told = _decode(reply, TaskPage), _decode(reply, dict[str, Any])
        return told["tasks"] if page.tasks else [], page.next_cursor

    def lane_mode(self, model: str) -> ModeView:
        """The switch of *model*, a name or an alias."""
        return self.get(_mode_path(model), ModeView)

    def set_lane_mode(self, model: str, mode: str) -> ModeView:
        """Sets the switch of *model* to `auto` or `degraded`."""
        return _decode(self._request("PUT", _mode_path(model), json={"mode": mode}), ModeView)

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str, hold: bool = True) -> tuple[TaskView, str]:
        """Submits *body*, and again with the same key when the answer was lost. The task and its revision.

        Where no lane is free this may take 30 s, until a worker took it. Without *hold* the answer comes at once, and
        what nobody took in time ends as failed with `queue_overloaded`.
        """
        headers = {"Idempotency-Key": idempotency_key} | ({} if hold else {"Prefer": "respond-async"})
        timeout = httpx.Timeout(HELD_REPLY_TIMEOUT_S if hold else REPLY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        reply = self._soon(lambda: self._request("POST", "/generate", json=body, headers=headers, timeout=timeout))
        return _decode(reply, TaskView), reply.headers.get("ETag", "")

    def find(self, body: Mapping[str, Any], *, idempotency_key: str) -> TaskView:
        """The task of a `submit` of *body* whose answer was not read; asks once, for REPLY_TIMEOUT_S / 3 at most.

        Where that submit was never heard of, the task is a new one.
        """
        headers = {"Idempotency-Key": idempotency_key, "Prefer": "respond-async"}
        timeout = httpx.Timeout(REPLY_TIMEOUT_S / 3, connect=CONNECT_TIMEOUT_S)
        return _decode(self._request("POST", "/generate", json=body, headers=headers, timeout=timeout), TaskView)

    def follow(self, task: TaskView, revision: str, on_change: Callable[[TaskView], None]) -> TaskView:
        """Waits until *task* has ended, however long that takes, and tells *on_change* each new state and place.

        Raises Stuck where it has not moved for STUCK_AFTER_S, and cannot.
        """
        path = f"/tasks/{task.id}"
        moved_s = looked_s = time.monotonic()
        on_change(task)
        while not task.has_ended:
            if (now_s := time.monotonic()) - max(moved_s, looked_s) >= STUCK_AFTER_S:
                looked_s = now_s
                self._require_writes(task)
            headers = {"If-None-Match": revision} if revision else {}
            reply = self._patiently(path, headers, wait_s=QUEUED_WAIT_S if task.queue else WAIT_S)
            if reply.status_code == httpx.codes.NOT_MODIFIED:
                if task.queue is None:
                    continue
                reply = self._patiently(path, {}, wait_s=0)
            before, task = task, _decode(reply, TaskView)
            revision = reply.headers.get("ETag", "")
            moved_s = moved_s if task == before else time.monotonic()
            on_change(task)
        return task

    def _require_writes(self, task: TaskView) -> None:
        """Raises Stuck where the gateway says that the server stores nothing: then *task* cannot move."""
        why = [text for text in self._troubles() if TAKES_NO_WRITES in text]
        if why:
            raise Stuck(
                f"task {task.id} is {task.status} and cannot go on: {why[0]}\n"
                f"It is kept, and goes on when that is done: {self.url}/tasks/{task.id}"
            )

    def explained(self, error: click.ClickException) -> click.ClickException:
        """*error*, and what the gateway says is wrong with it where that is why it refused."""
        if isinstance(error, Refused) and error.problem.code in NOT_STORED:
            return Refused(error.problem, troubles=self._troubles())
        return error

    def _troubles(self) -> Sequence[str]:
        try:
            return self.readiness().troubles
        except click.ClickException:
            return ()

    def _patiently(self, path: str, headers: Mapping[str, str], *, wait_s: float) -> httpx.Response:
        params = {"wait": f"{wait_s:g}"}
        for attempt in stamina.retry_context(
            on=_worth_another_try, attempts=None, timeout=FOLLOW_PATIENCE_S, wait_max=2.0, wait_jitter=0.1
        ):
            with attempt:
                return self._request("GET", path, params=params, headers=headers, timeout=wait_s + REPLY_TIMEOUT_S)
        raise AssertionError("stamina returns or raises")

    def cancel(self, task: TaskView) -> TaskView:
        """Cancels *task*, unless it has ended already; the task as it is then."""
        return self.cancel_id(task.id)

    def cancel_id(self, task_id: str) -> TaskView:
        """As `cancel`, for the task of that id."""
        return _decode(self._request("DELETE", f"/tasks/{quote(task_id, safe='')}"), TaskView)

    def download(self, task: TaskView, path: Path, *, part: Path | None = None) -> None:
        """Saves the video of *task*, which is done, at *path*: whole and checked, or not at all.

        Until then it is called *part*.

        Raises DamagedVideo when its hash is not the one in the task; OSError when it cannot be written.
        """
        self._in_turn(lambda: self._download(task, path, part or path.with_name(f"{path.name}.part")))

    def _download(self, task: TaskView, path: Path, part: Path) -> None:
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for chunk in self._chunks(f"/tasks/{task.id}/video"):
                    digest.update(chunk)
                    file.write(chunk)
            if task.video is None or digest.hexdigest() != task.video.sha256:
                raise DamagedVideo(f"the video of task {task.id} arrived damaged; download it again from {self.url}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _chunks(self, path: str) -> Iterator[bytes]:
        try:
            with self._http.stream("GET", path) as reply:
                if not reply.is_success:
                    reply.read()
                    raise _refusal(reply)
                yield from reply.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _soon(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        for attempt in stamina.retry_context(
            on=_worth_another_try, attempts=SUBMIT_ATTEMPTS, wait_initial=0.2, wait_max=2.0, wait_jitter=0.1
        ):
            with attempt:
                return call()
        raise AssertionError("stamina returns or raises")

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._in_turn(lambda: self._request_once(method, path, **options))

    def _in_turn(self, call: Callable[[], T]) -> T:
        # a request that came too often was not looked at: to send it again, when told to, is safe
        for attempt in stamina.retry_context(on=_until_turn, attempts=TURN_ATTEMPTS, timeout=None):
            with attempt:
                return call()
        raise AssertionError("stamina returns or raises")

    def _request_once(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.UnsupportedProtocol as error:
            raise click.BadParameter(f"{self.url!r} does not begin with http://", param_hint="--url") from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if reply.is_success or reply.status_code == httpx.codes.NOT_MODIFIED:
            return reply
        raise _refusal(reply)

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Unreachable(
                f"the certificate of {self.url} is not one to trust ({error}); "
                "name the file of its authority with --ca or WARMLANE_CA"
            )
        return Unreachable(
            f"no gateway answers at {self.url}{self._said_by}: {str(error) or type(error).__name__}; start one with "
            "`warmlane up`, name the folder of one with --data-dir, or its address with --url or WARMLANE_URL"
        )


def _mode_path(model: str) -> str:
    return f"/admin/lanes/{quote(model, safe='')}/mode"


def _worth_another_try(error: Exception) -> bool:
    return isinstance(error, Unreachable) or (
        isinstance(error, Refused) and error.problem.code == "transport_unavailable"
    )


def _until_turn(error: Exception) -> bool | float:
    if not isinstance(error, Refused) or error.problem.code != "rate_limited":
        return False
    wait_s = error.retry_after_s or 1.0
    return wait_s if wait_s <= TURN_PATIENCE_S else False


def _refusal(reply: httpx.Response) -> click.ClickException:
    try:
        problem = decode_json(reply.content, lenient(Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NotWarmlane(
            f"{reply.request.url} answered {reply.status_code}, and not as a Warmlane gateway does; check the address",
            status=reply.status_code,
            retry_after_s=_retry_after_s(reply),
        )
    if problem.retry_after_s is None:
        problem = msgspec.structs.replace(problem, retry_after_s=_retry_after_s(reply))
    return Refused(problem)


def _retry_after_s(reply: httpx.Response) -> float | None:
    header = reply.headers.get("Retry-After", "")
    return float(header) if header.isascii() and header.isdigit() else None


def _decode(reply: httpx.Response, kind: type[T]) -> T:
    try:
        return decode_json(reply.content, lenient(kind))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotWarmlane(f"{reply.request.url} did not answer as a Warmlane gateway does ({error})") from error


url_option = click.option(
    "--url",
    envvar="WARMLANE_URL",
    show_default=f"of the `warmlane up` in the data folder, else {DEFAULT_URL}",
    show_envvar=True,
    help="Where the gateway answers.",
)
_folder_option = click.option(
    "--data-dir",
    "client_dir",
    envvar="WARMLANE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    show_envvar=True,
    help="Data folder of `warmlane up`, where its addresses stand.",
)


class Gateway(Struct, frozen=True):
    """Which gateway a command talks to, and as whom."""

    url: str
    key: Presented | None = None
    ca: Path | None = None
    said_by: str = ""

    def client(self) -> Client:
        """A connection to it. Raises what `Client` raises."""
        return Client(self.url, key=self.key, ca=self.ca, said_by=self.said_by)


def presented_key(file: Path | None) -> Presented | None:
    """The key in *file*, else the one in WARMLANE_API_KEY, if any.

    Raises click.ClickException, which does not repeat it, for what has not the form of a key.
    """
    try:
        text = os.environ.get(KEY_VARIABLE, "") if file is None else file.read_text(errors="replace")
    except OSError as error:
        raise click.ClickException(f"--api-key-file {file} cannot be read: {error.strerror}") from error
    if file is None and not text.strip():
        return None
    presented = parse_presented(text.strip())
    if presented is None:
        raise click.ClickException(
            f"{KEY_VARIABLE if file is None else file} does not hold an API key as `warmlane keys add` prints it, "
            "which begins with wl_"
        )
    return presented


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--url`, `--data-dir`, `--api-key-file` and `--ca`; the command gets them as *gateway*, a `Gateway`."""

    @url_option
    @_folder_option
    @click.option(
        "--api-key-file",
        envvar="WARMLANE_API_KEY_FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        show_envvar=True,
        # never as an option: every user of a machine sees the arguments of its processes
        help=f"File with the API key. [default: what {KEY_VARIABLE} holds]",
    )
    @click.option(
        "--ca",
        envvar="WARMLANE_CA",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        show_envvar=True,
        help="PEM file of the authority to trust, where the gateway's certificate is a private one.",
    )
    @functools.wraps(command)
    def with_gateway(
        *arguments: Any, url: str | None, client_dir: Path, api_key_file: Path | None, ca: Path | None, **options: Any
    ) -> Any:
        address = address_of("url", "url", url or None, client_dir, "client_dir")
        gateway = Gateway(address.url, presented_key(api_key_file), ca, said_by=address.said_by)
        return command(*arguments, gateway=gateway, **options)

    return with_gateway
