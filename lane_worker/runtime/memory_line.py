"""The memory line: one structured log line after every generation, however it ended (FR-008, FR-009, SC-003).

It carries figures and ids, never a prompt (spec, Security).
"""

from typing import Final

import msgspec
import structlog

from contracts.tasks import MemoryReading
from ops.metrics import memory_read

EVENT: Final = "memory_after_cleanup"

log = structlog.get_logger("memory")


def log_memory(
    *, outcome: str, memory: MemoryReading | None, task_id: str, attempt: int, model: str, slot: str
) -> None:
    """*memory* is what the host holds after its cleanup; None when the host process is gone.

    Then the system took its memory back with it, and there was nothing left to clean.
    """
    figures = {"rss_bytes": 0, "process_gone": True} if memory is None else msgspec.structs.asdict(memory)
    memory_read(memory, slot=slot, model=model, outcome=outcome)
    log.info(EVENT, task_id=task_id, attempt=attempt, model=model, slot=slot, outcome=outcome, **figures)
