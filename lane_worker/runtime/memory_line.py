"""The memory line: one structured log line after every generation, however it ended (FR-008, FR-009, SC-003).

It carries figures and ids, never a prompt (spec, Security).
"""

from typing import Final

import msgspec
import structlog

from contracts.tasks import MemoryReading

EVENT: Final = "memory_after_cleanup"

log = structlog.get_logger("memory")


def log_memory(
    *, task_id: str, attempt: int, model: str, outcome: str, memory: MemoryReading, slot: str
) -> None:
    """The host cleaned up and lives; *memory* is what it holds now."""
    figures = msgspec.structs.asdict(memory)
    log.info(EVENT, task_id=task_id, attempt=attempt, model=model, outcome=outcome, slot=slot, **figures)


def log_process_gone(*, task_id: str, attempt: int, model: str, outcome: str, slot: str) -> None:
    """The host process is gone, and the system took its memory back with it: nothing was left to clean."""
    log.info(
        EVENT,
        task_id=task_id,
        attempt=attempt,
        model=model,
        outcome=outcome,
        slot=slot,
        rss_bytes=0,
        process_gone=True,
    )
