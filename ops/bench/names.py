"""What the contenders are called, in figures and in the report."""

from typing import Final

WARMLANE: Final = "Warmlane"
BARE: Final = "bare Litestar + nats-py"
CELERY: Final = "FastAPI + Celery + Redis"
TASKIQ: Final = "FastAPI + taskiq-nats"
PEERS: Final = (CELERY, TASKIQ)
LIVE: Final = "Warmlane, live task"
FINISHED: Final = "Warmlane, finished task"
UVICORN: Final = "uvicorn"
GRANIAN: Final = "granian"
BARE_JSON: Final = "bare Litestar JSON handler"
LONG_POLLS: Final = "long-polls"
STREAMS: Final = "event streams"
DIRECT: Final = "the pipeline, called directly"
BARE_SWAP: Final = "bare script that swaps"
FRESH: Final = "a new process for each task"
