"""Clients that behave like people and programs: they hold, poll, cancel, hang up, retry, and record every answer."""

import asyncio
import base64
import io
import random
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from msgspec import Struct
from PIL import Image

from contracts.tasks import Priority
from tests.faults.fleet import LANELESS, LANES
from tests.faults.history import Call, CallKind

ANSWER_S: Final = 10.0
TRIES_S: Final = 20.0
RETRY_S: Final = 0.3


class Wish(Struct, frozen=True, kw_only=True):
    """What one client wants, and how it goes about it."""

    number: int
    at_s: float
    model: str
    gateway: int
    key: str | None
    respond_async: bool
    image: bool
    follow: bool
    cancel_after_s: float | None
    hang_up_after_s: float | None
    priority: Priority = Priority.STANDARD


def wishes(seed: int, *, seconds: float, rate: float) -> list[Wish]:
    """*rate* wishes a second at random moments. The same seed gives the same ones, but for the keys, which no two runs
    may share."""
    dice = random.Random(f"wishes {seed}")
    classes = random.Random(f"classes {seed}")  # a generator of its own: all else that a seed decides stays the same
    run = uuid.uuid4().hex[:8]
    found: list[Wish] = []
    at_s = dice.expovariate(rate)
    while at_s < seconds:
        number = len(found)
        model = dice.choices([*LANES, LANELESS], weights=[9, 9, 2])[0]
        keyed, respond_async = dice.random() < 0.6, dice.random() < 0.5
        hangs_up = not respond_async and dice.random() < (0.2 if model == LANELESS else 0.02)
        wish = Wish(
            number=number,
            at_s=at_s,
            model=model,
            gateway=dice.randrange(2),
            key=f"{run}-{number}" if keyed else None,
            respond_async=respond_async,
            image=model == "anisora" and dice.random() < 0.1,
            follow=dice.random() < 0.2,
            cancel_after_s=dice.uniform(0, 0.6) if dice.random() < 0.06 else None,
            hang_up_after_s=dice.uniform(0.02, 1.5) if hangs_up else None,
            priority=classes.choice(tuple(Priority)),
        )
        found.append(wish)
        at_s += dice.expovariate(rate)
    return found


class Clients:
    """Sends wishes, and keeps every call."""

    def __init__(self, urls: Mapping[str, str], on_call: Callable[[Call], None] = lambda _: None) -> None:
        self._gateways = list(urls.items())
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        self._http = httpx.AsyncClient(timeout=ANSWER_S, limits=limits)
        self._on_call = on_call
        self.calls: list[Call] = []

    async def run(self, wanted: list[Wish]) -> None:
        """Sends each wish at its time, whatever becomes of the earlier ones; returns when the last client is done."""
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for wish in wanted:
                await asyncio.sleep(max(0.0, begun_s + wish.at_s - time.monotonic()))
                group.create_task(self._fulfil(wish))

    async def look(self) -> None:
        """Asks every gateway for every task, at the end of the run."""
        for name, url in self._gateways:
            cursor: str | None = None
            while True:
                sent_at = datetime.now(UTC)
                answer = await self._http.get(
                    f"{url}/tasks", params={"limit": 100, **({"cursor": cursor} if cursor else {})}
                )
                answer.raise_for_status()
                page = answer.json()
                self.calls += [
                    Call(
                        request=-1,
                        kind="look",
                        gateway=name,
                        sent_at=sent_at,
                        ended_at=datetime.now(UTC),
                        status=answer.status_code,
                        task_id=task["id"],
                        task_status=task["status"],
                    )
                    for task in page["tasks"]
                ]
                cursor = page["next_cursor"]
                if cursor is None:
                    break

    async def close(self) -> None:
        await self._http.aclose()

    async def _fulfil(self, wish: Wish) -> None:
        task_id = await self._submit(wish)
        if task_id is None:
            return
        if wish.cancel_after_s is not None:
            await asyncio.sleep(wish.cancel_after_s)
            await self._cancel(wish, task_id)
        if wish.follow:
            await self._follow(wish, task_id)

    async def _submit(self, wish: Wish) -> str | None:
        """The id that the client got, if any. A key makes every retry safe. Without a key, only the retry of a request
        that was not sent is safe."""
        body: dict[str, Any] = {"model": wish.model, "prompt": f"request {wish.number}"}
        if wish.image:
            body["image"] = _PICTURE
        headers = {"Priority": wish.priority.value}
        if wish.key is not None:
            headers["Idempotency-Key"] = wish.key
        if wish.respond_async:
            headers["Prefer"] = "respond-async"
        deadline_s, tries = time.monotonic() + TRIES_S, 0
        while True:
            call = await self._call(
                wish,
                "submit",
                "POST",
                "/generate",
                tries,
                hang_up_after_s=wish.hang_up_after_s,
                json=body,
                headers=headers,
            )
            tries += 1
            if call.status == 202:
                return call.task_id
            is_unknown = call.status is None or call.code == "transport_unavailable"
            may_retry = not call.sent or (wish.key is not None and is_unknown)
            refused_once = call.code == "queue_overloaded" and wish.key is not None and tries == 1
            if wish.hang_up_after_s is not None or not (may_retry or refused_once) or time.monotonic() > deadline_s:
                return None
            await asyncio.sleep(1.0 if refused_once else RETRY_S)

    async def _cancel(self, wish: Wish, task_id: str) -> None:
        for tries in range(3):
            call = await self._call(wish, "cancel", "DELETE", f"/tasks/{task_id}", tries, task_id=task_id)
            if call.status == 200:
                return
            await asyncio.sleep(RETRY_S)

    async def _follow(self, wish: Wish, task_id: str) -> None:
        for tries in range(6):
            call = await self._call(wish, "poll", "GET", f"/tasks/{task_id}?wait=5", tries, task_id=task_id)
            if call.task_status in ("done", "failed"):
                return
            await asyncio.sleep(RETRY_S)

    async def _call(
        self,
        wish: Wish,
        kind: CallKind,
        method: str,
        path: str,
        tries: int,
        *,
        task_id: str = "",
        hang_up_after_s: float | None = None,
        **options: Any,
    ) -> Call:
        name, url = self._gateways[(wish.gateway + tries) % len(self._gateways)]
        sent_at = datetime.now(UTC)
        response, sent = None, True
        try:
            async with asyncio.timeout(hang_up_after_s):
                response = await self._http.request(method, url + path, **options)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            sent = False
        except (httpx.TransportError, TimeoutError):
            pass
        answer = _read(response)
        call = Call(
            request=wish.number,
            kind=kind,
            gateway=name,
            sent_at=sent_at,
            ended_at=datetime.now(UTC),
            key=wish.key,
            sent=sent,
            status=None if response is None else response.status_code,
            code=str(answer.get("code") or ""),
            limit=str(answer.get("limit") or ""),
            task_id=str(answer.get("id") or str(answer.get("instance") or "").removeprefix("/tasks/") or task_id),
            task_status="" if response is None or response.status_code >= 300 else str(answer.get("status") or ""),
        )
        self.calls.append(call)
        self._on_call(call)
        return call


def _read(response: httpx.Response | None) -> dict[str, Any]:
    try:
        answer = {} if response is None else response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _picture() -> str:
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 80, 40)).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


_PICTURE: Final = _picture()
