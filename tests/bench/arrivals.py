"""Requests at random moments, which do not wait for earlier answers, each from a client that holds the line."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final

import httpx
from msgspec import Struct

CLIENT_TIMEOUT_S: Final = 60.0
OVERLOADED: Final = "queue_overloaded"


class Answer(Struct, frozen=True, kw_only=True):
    """One POST: when it was sent, or meant to be, how long its answer took from then on, and what the answer said."""

    sent_s: float
    took_s: float
    status: int
    code: str = ""
    limit: str = ""
    retry_after_s: float = 0.0
    task_id: str = ""


def client_of(url: str) -> httpx.AsyncClient:
    """A client with no limit on connections, so that each held request has one."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=CLIENT_TIMEOUT_S, limits=limits)


async def post(
    client: httpx.AsyncClient,
    model: str,
    number: int,
    *,
    due_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> Answer:
    """Sends one request as a client that holds the line does, unless *headers* say otherwise.

    Its time counts from *due_s*, a moment of `time.perf_counter`, or from now. Raises httpx.TransportError.
    """
    begun_s = time.perf_counter() if due_s is None else due_s
    body = {"model": model, "prompt": f"request {number}"} | fields
    response = await client.post("/generate", json=body, headers=headers)
    took_s = time.perf_counter() - begun_s
    body = response.json()
    return Answer(
        sent_s=begun_s,
        took_s=took_s,
        status=response.status_code,
        code=body.get("code", ""),
        limit=body.get("limit", "") if body.get("code") == OVERLOADED else "",
        retry_after_s=float(response.headers.get("retry-after", 0)),
        task_id=body.get("id", ""),
    )


def moments(rate_per_s: float, seconds: float, *, seed: int = 25) -> Iterator[float]:
    """Random moments within *seconds*, in seconds, *rate_per_s* on average; the same for the same *seed*. Pure."""
    dice = random.Random(seed)
    at_s = dice.expovariate(rate_per_s)
    while at_s <= seconds:
        yield at_s
        at_s += dice.expovariate(rate_per_s)


async def send(
    at: Iterable[float],
    make: Callable[[int, float], Coroutine[Any, Any, Answer]],
    *,
    on_sent: Callable[[float], None] = lambda _: None,
) -> list[Answer]:
    """Sends a request at each of the moments *at*, in seconds from now. *make* makes it from its number and the moment
    in `time.perf_counter` at which it is due. Returns when all are answered."""
    begun_s = time.perf_counter()
    posts: list[asyncio.Task[Answer]] = []
    for number, at_s in enumerate(at):
        await asyncio.sleep(max(0.0, begun_s + at_s - time.perf_counter()))
        posts.append(asyncio.create_task(make(number, begun_s + at_s)))
        on_sent(at_s)
    return await asyncio.gather(*posts)
