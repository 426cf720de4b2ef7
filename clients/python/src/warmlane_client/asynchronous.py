"""The client, for asyncio."""

import asyncio
import inspect
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from warmlane_client.core import calls
from warmlane_client.core.answers import document
from warmlane_client.core.downloading import Downloading
from warmlane_client.core.effects import (
    Call,
    Effect,
    Flow,
    NoReply,
    Open,
    Pause,
    Piece,
    Read,
    Reply,
    Report,
    ReportBytes,
    ReportIdle,
    Restart,
    Seal,
    Send,
    Write,
)
from warmlane_client.core.following import TaskWait, Wait
from warmlane_client.core.retries import Patience
from warmlane_client.errors import NoVideo
from warmlane_client.models import Task, TaskList, VideoRequest
from warmlane_client.part import PartFile
from warmlane_client.shells import Listeners, answer_of, filed
from warmlane_client.transport import GatewayTarget, built, why

T = TypeVar("T")


class AsyncClient:
    """Connections to one gateway, for any number of calls at a time. Close it, or use it in an `async with` block.

    The calls are those of `Client`; their callbacks may also be coroutine functions. Cancelling a call ends it at once;
    a task that was submitted goes on.

    A call that fails is tried again as the client's `Patience` says, and then raises a WarmlaneError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        ca: Path | ssl.SSLContext | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Calls the gateway at *url*, else at WARMLANE_URL, else on this machine. Sends *key*, else WARMLANE_API_KEY.
        Trusts only *ca*, else only WARMLANE_CA, if either is given.

        Raises Misconfigured.
        """
        target = GatewayTarget(url, key, ca)
        self.url = target.url
        self._patience = Patience() if patience is None else patience
        self._http = target.connected(httpx.AsyncClient)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def submit(
        self,
        request: VideoRequest | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        hold: bool = False,
    ) -> Task:
        """Submits *request* and returns its task, which may still wait. The same *idempotency_key* leads to the same
        task. Without one the call makes a new key, so that its tries make one task.

        With *hold* the answer comes when a worker has the task, up to 30 s later. Raises GatewayBusy if no worker took
        it.
        """
        return await self._run(calls.submit(request, self._patience, idempotency_key=idempotency_key, hold=hold))

    async def submit_many(
        self, requests: Iterable[VideoRequest | Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> tuple[Task, ...]:
        """Submits up to 20 *requests* and returns their tasks, in the same order. The gateway accepts all of them, or
        none, and then the error says why. The same *idempotency_key* leads to the same tasks; without one the call
        makes a new key."""
        return await self._run(calls.submit_many(requests, self._patience, idempotency_key=idempotency_key))

    async def wait(
        self,
        task: Task | str,
        *,
        on_change: Callable[[Task], object] | None = None,
        on_idle: Callable[[Task], object] | None = None,
        how: Wait | None = None,
    ) -> Task:
        """Waits until *task*, or the task with that id, has ended, and returns it: done or failed, which is no error
        here.

        Calls *on_change* with each state, including the first, and *on_idle* when the task has not moved for a while.
        An exception from either ends the wait; the task goes on. If the gateway restarts meanwhile, the call waits for
        it. Raises WaitTimedOut as *how* says.
        """
        begun = await self.task(task) if isinstance(task, str) else task
        following = TaskWait(begun, how or Wait(), self._patience)
        return await self._run(following.until_ended(), listeners=Listeners(on_change=on_change, on_idle=on_idle))

    async def task(self, task: Task | str) -> Task:
        """*task*, or the task with that id, as it is now. Raises NotThere."""
        return await self._run(calls.task(task, self._patience))

    async def tasks(
        self,
        *,
        status: tuple[str, ...] = (),
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> TaskList:
        """One page of tasks, newest first: those of that *status* and *model*, with all *labels*, made at
        *created_after* or later and before *created_before* (both with a time zone). The page has at most *limit* tasks
        (up to 100) and begins at *cursor*."""
        query = calls.listing(
            status=status,
            model=model,
            labels=labels,
            created_after=created_after,
            created_before=created_before,
            limit=limit,
            cursor=cursor,
        )
        return await self._run(calls.page(self._patience, query))

    async def every_task(
        self,
        *,
        status: tuple[str, ...] = (),
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncIterator[Task]:
        """All tasks that match, newest first, page after page."""
        cursor: str | None = None
        while True:
            page = await self.tasks(
                status=status,
                model=model,
                labels=labels,
                created_after=created_after,
                created_before=created_before,
                limit=100,
                cursor=cursor,
            )
            for each in page.tasks:
                yield each
            cursor = page.next_cursor
            if cursor is None:
                return

    async def cancel(self, task: Task | str) -> Task:
        """Cancels *task*, or the task with that id, unless it has ended already, and returns it as it is then. Raises
        NotThere."""
        return await self._run(calls.cancel(task, self._patience))

    async def download(
        self,
        task: Task | str,
        path: Path,
        *,
        on_bytes: Callable[[int, int], object] | None = None,
        part: Path | None = None,
        keep_part: bool = True,
    ) -> Path:
        """Saves the video of *task*, or of the task with that id, at *path*: whole and checked, or not at all. Returns
        *path*.

        Calls *on_bytes* with the number of bytes that are there, and the total. Until it is whole the file is called
        *part*. If the download breaks off, the next one resumes it, unless *keep_part* is false.

        Raises NoVideo, DownloadDamaged, PartInUse; OSError when it cannot be written.
        """
        found = await self.task(task) if isinstance(task, str) else task
        if found.video is None:
            raise NoVideo(found)
        file = PartFile(path, part, found.video.sha256, keep=keep_part)
        await asyncio.to_thread(file.open)  # it reads what is there
        try:
            flow = Downloading(found, self._patience, there=file.there).until_whole()
            await self._run(flow, listeners=Listeners(on_bytes=on_bytes), file=file)
        finally:
            file.close()
        return path

    async def settings(self) -> dict[str, Any]:
        """The models that the gateway serves, with their limits and defaults."""
        return document(await self.request(Call(method="GET", path="/settings")))

    async def request(self, call: Call, *, repeatable: bool | None = None, accept: Collection[int] = ()) -> Reply:
        """The answer to any other *call*, with the same tries. *repeatable* says whether the call may safely arrive
        twice; by default its method decides that. A status in *accept* is no error."""
        return await self._run(calls.answered(call, self._patience, repeatable=repeatable, accept=accept))

    async def _run(self, flow: Flow[T], *, listeners: Listeners | None = None, file: PartFile | None = None) -> T:
        return await AsyncShell(self._http, listeners or Listeners(), file).run(flow)


class AsyncShell:
    """Carries out the effects of one flow, one after the other."""

    def __init__(self, http: httpx.AsyncClient, listeners: Listeners, file: PartFile | None) -> None:
        self._http, self._listeners, self._file = http, listeners, file
        self._reply: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def run(self, flow: Flow[T]) -> T:
        """Runs *flow* to its end and returns its result."""
        outcome: Any = None
        try:
            while True:
                try:
                    effect = flow.send(outcome)
                except StopIteration as ended:
                    result: T = ended.value
                    return result
                outcome = await self._carried_out(effect)
        finally:
            flow.close()
            await self._shut()

    async def _carried_out(self, effect: Effect) -> Any:
        match effect:
            case Send(call):
                return await self._sent(call, whole=True)
            case Open(call):
                return await self._sent(call, whole=False)
            case Read():
                return await self._read()
            case Write() | Restart() | Seal():
                # a disk may be slow
                return await asyncio.to_thread(filed, effect, self._file)
            case Report() | ReportIdle() | ReportBytes():
                returned = self._listeners.report(effect)
                if inspect.isawaitable(returned):
                    await returned
            case Pause(seconds, jitter_s):
                await asyncio.sleep(seconds + random.uniform(0, jitter_s))  # noqa: S311  # no secret
        return time.monotonic()

    async def _sent(self, call: Call, *, whole: bool) -> Reply | NoReply:
        await self._shut()
        try:
            reply = await self._http.send(built(self._http, call), stream=True)
            if whole or not reply.is_success:
                try:
                    body = await reply.aread()
                finally:
                    await reply.aclose()
                return answer_of(reply, body, time.monotonic())
        except httpx.HTTPError as error:
            return self._lost(error)
        self._reply, self._pieces = reply, reply.aiter_bytes()
        return answer_of(reply, b"", time.monotonic())

    async def _read(self) -> Piece | NoReply:
        assert self._pieces is not None
        try:
            content = await anext(self._pieces, None)
        except httpx.HTTPError as error:
            return self._lost(error)
        return Piece(content=content, at_s=time.monotonic())

    def _lost(self, error: httpx.HTTPError) -> NoReply:
        return NoReply(url=str(self._http.base_url).rstrip("/"), why=why(error), at_s=time.monotonic())

    async def _shut(self) -> None:
        if self._reply is not None:
            await self._reply.aclose()
            self._reply = None
