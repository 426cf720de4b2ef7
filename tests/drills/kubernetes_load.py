"""What `make kubernetes` runs inside the cluster, in the pod `admin` of the chart: clients, and a look at the records.

The drill passes this file to the pod's Python, so it needs only what the gateway's image holds. Each line that it
prints is a JSON object: `accepted`, `ended`, `lost_sight` or `given_up` for a task, `status` whenever what `warmlane
status` shows of lanes and leader has changed, and at last `records`. It sends until its standard input ends or *count*
requests are sent.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import struct
import sys
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

from contracts.tasks import GenerationTask, decode_task
from contracts.topology import TASKS
from ops.nats.access import access
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from warmlane_client import AsyncClient, Patience, VideoRequest, WarmlaneError, image_uri

# Requests wait for a nats-server, or for every gateway, that is being replaced.
PATIENCE = Patience(busy_s=300, turn_s=300, lost_attempts=60, lost_s=300)
SMALL = {"width": 32, "height": 32, "num_frames": 9}
LOOK_S = 0.5
BEGUN_S = time.monotonic()


def say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, "at_s": round(time.monotonic() - BEGUN_S, 3), **more}), flush=True)


def picture() -> bytes:
    """A grey PNG of 256 x 256, for models that start from one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * 256 for _ in range(256))
    header = struct.pack(">IIBBBBB", 256, 256, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Load:
    """Clients that each request one video after the other."""

    def __init__(self, name: str, *, count: int | None, profile: str) -> None:
        self._name, self._count, self._profile = name, count, profile
        self._numbers = itertools.count()
        self.accepted: list[str] = []

    async def run(self, models: list[str], clients: int, stop: asyncio.Event) -> None:
        async with AsyncClient(patience=PATIENCE) as client, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._one_after_the_other(client, models[number % len(models)], stop))

    async def _one_after_the_other(self, client: AsyncClient, model: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = next(self._numbers)
            if self._count is not None and number >= self._count:
                return
            await self._task(client, model, number)

    async def _task(self, client: AsyncClient, model: str, number: int) -> None:
        name, begun_s = f"{self._name}-{number}", time.monotonic()
        try:
            task = await client.submit(self._request(model, name), idempotency_key=name)
        except WarmlaneError as error:
            say("given_up", model=model, error=str(error))
            return
        self.accepted.append(task.id)
        say("accepted", id=task.id, model=model, waited_s=round(time.monotonic() - begun_s, 3))
        try:
            task = await client.wait(task)
        except WarmlaneError as error:  # the record says whether it ended
            say("lost_sight", id=task.id, error=str(error))
            return
        code = None if task.error is None else task.error.code
        took_s = round(time.monotonic() - begun_s, 3)
        say("ended", id=task.id, status=task.status, code=code, route=task.route, attempt=task.attempt, took_s=took_s)

    def _request(self, model: str, name: str) -> VideoRequest:
        size: dict[str, Any] = SMALL if self._profile == "tiny" else {}
        image = image_uri(picture()) if self._profile != "tiny" and model == "anisora" else None
        return VideoRequest(model=model, prompt=f"drill {name}", image=image, labels={"drill": self._name}, **size)


async def watch_status(stop: asyncio.Event) -> None:
    """Prints the state of lanes and leader whenever it changes, until *stop*."""
    headers = {"Authorization": f"Bearer {os.environ['WARMLANE_API_KEY']}"}
    last: Any = None
    async with httpx.AsyncClient(base_url=os.environ["WARMLANE_URL"], headers=headers, timeout=5) as http:
        while not stop.is_set():
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                lanes, queue = (await http.get("/admin/lanes")).json(), (await http.get("/admin/queue")).json()
                shown = {
                    "lanes": [
                        {"model": model["model"], "route": model["route"]["outcome"]}
                        | {key: lane[key] for key in ("worker", "state", "detail")}
                        for model in lanes["models"]
                        for lane in model["lanes"] or [{"worker": "", "state": "", "detail": ""}]
                    ],
                    "leader": (queue["leader"] or {}).get("worker"),
                }
                if shown != last:
                    say("status", **shown)
                    last = shown
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_S)


async def look_at_records(accepted: list[str], within_s: float) -> None:
    """Waits until every accepted task has ended; then prints which never did, and which ended more than once."""
    link = await NatsLink.connect(
        access("admin", os.environ["WARMLANE_NATS_URL"], data_dir=Path("/nowhere")), name="drill"
    )
    seen: dict[str, list[GenerationTask]] = defaultdict(list)

    moved = asyncio.Event()

    def note(entry: Entry) -> None:
        if entry.value is not None:
            seen[entry.key].append(decode_task(entry.value))
            moved.set()

    def all_ended() -> bool:
        return all(seen[task] and seen[task][-1].status.is_terminal for task in accepted)

    try:
        await (await link.watches.start(TASKS, note, history=True)).wait()
        with contextlib.suppress(TimeoutError):  # what has not ended by then is lost
            async with asyncio.timeout(within_s):
                while not all_ended():
                    moved.clear()
                    await moved.wait()
    finally:
        await link.close()
    ends = {task: [each for each in seen[task] if each.status.is_terminal] for task in accepted}
    lost = [task for task, found in ends.items() if not found]
    doubled = [task for task, found in ends.items() if len(found) > 1 or (found and seen[task][-1] is not found[0])]
    say("records", accepted=len(accepted), lost=lost, doubled=doubled)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--count", type=int)
    parser.add_argument("--profile", default="tiny")
    given = parser.parse_args()
    stop, watched = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_input() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), on_input)
    load = Load(given.name, count=given.count, profile=given.profile)
    watching = asyncio.create_task(watch_status(watched))
    await load.run(given.models, given.clients, stop)
    await stop.wait()  # so it also sees what is shown after the last task
    watched.set()
    await watching
    await look_at_records(load.accepted, within_s=90)


asyncio.run(main())
