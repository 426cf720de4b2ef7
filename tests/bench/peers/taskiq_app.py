"""FastAPI + taskiq-nats, as its users run it: the handler calls `kiq`, a worker pulls from a JetStream stream.

The stream is in files, and `kiq` returns when the server has acked the message: one write.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from taskiq_nats import PullBasedJetStreamBroker

from tests.bench.peers.bodies import Accepted, Body
from tests.bench.peers.serving import PATH, serve
from tests.bench.peers.started import report_started

broker = PullBasedJetStreamBroker(os.environ.get("BENCH_NATS_URL", ""), queue="generate")


@broker.task(task_name="generate")
async def generate(request: dict[str, object], published_ns: int) -> None:
    """The task, which reports that it began."""
    report_started(published_ns)


@contextlib.asynccontextmanager
async def _connected(_: FastAPI) -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


app = FastAPI(openapi_url=None, lifespan=_connected)


@app.post(PATH, status_code=202)
async def accept(body: Body) -> Accepted:
    """Queues the task; nats-server has it when this returns."""
    queued = await generate.kiq(body.model_dump(), time.time_ns())
    return Accepted(id=queued.task_id, status="pending")


if __name__ == "__main__":
    serve(app)
