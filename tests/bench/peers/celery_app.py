"""FastAPI + Celery + Redis, as its users run it: the handler calls `delay`, a worker runs the task.

Settings that matter: tasks are acked late, so that a worker's death loses none. There is no result backend, so that a
publish is one write. Redis stores with `appendonly yes`.
"""

import os
import time

from celery import Celery
from fastapi import FastAPI

from tests.bench.peers.bodies import Accepted, Body
from tests.bench.peers.serving import PATH, serve
from tests.bench.peers.started import report_started

celery = Celery("tests.bench.peers.celery_app", broker=os.environ.get("BENCH_REDIS_URL"))
celery.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
app = FastAPI(openapi_url=None)


@celery.task(name="generate")
def generate(request: dict[str, object], published_ns: int) -> None:
    """The task, which reports that it began."""
    report_started(published_ns)


# not `async`: `delay` blocks, and a handler that blocks the event loop serves a fifth less than FastAPI's threads do
@app.post(PATH, status_code=202)
def accept(body: Body) -> Accepted:
    """Queues the task; Redis has it when this returns."""
    queued = generate.delay(body.model_dump(), time.time_ns())
    return Accepted(id=queued.id, status="pending")


if __name__ == "__main__":
    serve(app)
