"""The limit: Litestar and nats-py, and the two writes of an acceptance, with nothing around them.

`POST /generate` decodes the body, publishes the message and creates the record: the same bytes on the same subjects
with the same headers as the gateway, in the same order, each after the ack of the one before. It checks nothing, knows
no callers, routes nothing, keeps no task in memory, and retries nothing.

`GET /tasks/{id}` answers with JSON that was prepared before. `POST /refuse` does nothing, and answers a constant 503.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import nats
import uuid_utils
from litestar import Litestar, Request, Response, get, post, put
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from msgspec import Struct
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from contracts.tasks import GenerationTask
from contracts.topology import TASKS, bucket_subject, work_subject
from ops.nats.access import inbox_prefix
from ops.nats.client import REPLY_TIMEOUT_S
from ops.nats.connecting import MAX_OUTSTANDING_PINGS, PING_INTERVAL_S
from tests.bench.peers.serving import serve

REFUSED: Final = {"code": "queue_overloaded", "detail": "25 requests are waiting already", "limit": "depth"}


class Body(Struct):
    """What a client sends."""

    model: str
    prompt: str
    seed: int


class Accepted(Struct):
    """The answer."""

    id: str
    status: str


class Bare:
    """The service. *record* is one that a gateway stored. Each task is stored as these bytes with its own id."""

    def __init__(self, record: bytes) -> None:
        self._record = record
        template = msgspec.json.decode(record, type=GenerationTask)
        self._id = template.id.encode()
        self._client: Client
        self._js: JetStreamContext
        self._known: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def connected(self, _: Litestar) -> AsyncIterator[None]:
        """Holds the connection, made with the options of `ops.nats.link`."""
        self._client = await nats.connect(
            os.environ["BENCH_NATS_URL"],
            pending_size=0,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            connect_timeout=2,
            inbox_prefix=inbox_prefix("gateway").encode(),
        )
        self._js = self._client.jetstream(timeout=REPLY_TIMEOUT_S)
        yield
        await self._client.close()

    async def accept(self, body: bytes) -> Accepted:
        """Stores the message, then the record."""
        request = msgspec.json.decode(body, type=Body)
        task_id = str(uuid_utils.uuid7())
        stored = self._record.replace(self._id, task_id.encode())
        await self._js.publish(
            work_subject("lane", request.model, task_id),
            stored,
            timeout=REPLY_TIMEOUT_S,
            headers={"Nats-Msg-Id": f"{task_id}.0"},
        )
        await self._js.publish(
            bucket_subject(TASKS, task_id),
            stored,
            timeout=REPLY_TIMEOUT_S,
            headers={"Nats-Expected-Last-Subject-Sequence": "0"},
        )
        return Accepted(task_id, "pending")

    def app(self) -> Litestar:
        """The application with its routes."""

        @post("/generate", status_code=202)
        async def generate(request: Request[Any, Any, Any]) -> Accepted:
            return await self.accept(await request.body())

        @get("/tasks/{task_id:str}")
        async def get_task(task_id: FromPath[str]) -> Response[Any]:
            if task_id not in self._known:
                raise NotFoundException
            return Response(self._known[task_id])

        @put("/tasks/{task_id:str}", status_code=204)
        async def put_task(request: Request[Any, Any, Any], task_id: FromPath[str]) -> None:
            self._known[task_id] = msgspec.json.decode(await request.body())

        @post("/refuse", status_code=503)
        async def refuse() -> dict[str, str]:
            return REFUSED

        return Litestar(
            [generate, get_task, put_task, refuse], lifespan=[self.connected], openapi_config=None, logging_config=None
        )


if __name__ == "__main__":
    serve(Bare(Path(os.environ["BENCH_RECORD"]).read_bytes()).app())
