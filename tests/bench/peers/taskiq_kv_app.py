"""FastAPI + taskiq-nats, and a record of each task in a KV bucket: what `taskiq_app` leaves out of an acceptance.

It stores the message first, then the record, and waits for each ack, as Warmlane does. Both use what taskiq-nats and
nats-py offer for it. A client can ask for a task by its id. The worker is that of `taskiq_app`.
"""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response
from nats.js.api import KeyValueConfig
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue
from pydantic import BaseModel

from tests.bench.peers.bodies import Accepted, Body
from tests.bench.peers.serving import PATH, serve
from tests.bench.peers.taskiq_app import broker, generate

BUCKET = "records"


class Record(BaseModel):
    """What the peer stores of a task."""

    id: str
    status: str
    created_at: float
    request: Body


class _Records:
    bucket: KeyValue


_records = _Records()


@contextlib.asynccontextmanager
async def _connected(_: FastAPI) -> AsyncIterator[None]:
    await broker.startup()
    _records.bucket = await broker.js.create_key_value(KeyValueConfig(BUCKET))
    yield
    await broker.shutdown()


app = FastAPI(openapi_url=None, lifespan=_connected)


@app.post(PATH, status_code=202)
async def accept(body: Body) -> Accepted:
    """Queues the task and records it; nats-server has both when this returns."""
    task_id = uuid.uuid4().hex
    await generate.kicker().with_task_id(task_id).kiq(body.model_dump(), time.time_ns())
    record = Record(id=task_id, status="pending", created_at=time.time(), request=body)
    await _records.bucket.create(task_id, record.model_dump_json().encode())
    return Accepted(id=task_id, status=record.status)


@app.get("/tasks/{task_id}")
async def get_task(task_id: str) -> Response:
    """The record of a task."""
    try:
        entry = await _records.bucket.get(task_id)
    except KeyNotFoundError:
        return Response(status_code=404)
    return Response(entry.value, media_type="application/json")


if __name__ == "__main__":
    serve(app)
