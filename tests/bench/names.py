"""The names of the contenders, in figures and in the report."""

from typing import Final

WARMLANE: Final = "Warmlane"
BARE: Final = "bare Litestar + nats-py"
CELERY: Final = "FastAPI + Celery + Redis"
TASKIQ: Final = "FastAPI + taskiq-nats"
TASKIQ_KV: Final = "FastAPI + taskiq-nats + KV record"
MESSAGE_ONLY: Final = (CELERY, TASKIQ)
PEERS: Final = (*MESSAGE_ONLY, TASKIQ_KV)
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
CAPACITY: Final = "the worker alone, never idle"
REFUSAL: Final = "Warmlane, refusal"
NO_OP: Final = "bare Litestar, constant 503"
IN_TIME: Final = "after Retry-After"
TOO_EARLY: Final = "after half of it"
# How many finished tasks there are during a measurement. From SOME on, the oldest is no longer in memory.
FEW: Final = 10
SOME: Final = 1_000
MANY: Final = 100_000
ACCEPT: Final = "accept"
POLL_LIVE: Final = "poll, live"
POLL_NEW: Final = "poll, just finished"
POLL_OLD: Final = "poll, old"
DISPATCH: Final = "dispatch"
GROWING: Final = ((ACCEPT, FEW), (POLL_LIVE, FEW), (POLL_NEW, FEW), (POLL_OLD, SOME), (DISPATCH, FEW))


def at_times(times: float) -> str:
    """A load of *times* what the worker can serve."""
    return f"{times:g} times the capacity"


def finished(what: str, tasks: int) -> str:
    """*what* was done while *tasks* finished tasks had a record."""
    return f"{what}, {tasks:,} finished"


def lanes(what: str, count: int) -> str:
    """*what* was done while *count* lanes of the model reported."""
    return f"{what}, {count:,} {'lane' if count == 1 else 'lanes'}"
