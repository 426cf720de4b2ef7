"""The memory line: one structured log line after every generation, however it ended (FR-008, FR-009, SC-003).

It carries figures and ids, never a prompt (spec, Security).
"""

from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from contracts.memory import MemoryReading
from ops.machine.readings import Reading
from ops.telemetry.metrics import memory_read

EVENT: Final = "memory_after_cleanup"

_WITHOUT_HOST: Final = ("rss_bytes", "device_used_bytes", "device_free_bytes")

log = structlog.get_logger("memory")


def with_device(memory: MemoryReading, device: Reading | None) -> MemoryReading:
    """*memory*, as the host read it, with what its worker read of the card, if it could. Pure."""
    if device is None:
        return memory
    return replace(memory, device_used_bytes=device.used_bytes, device_free_bytes=device.free_bytes)


def log_memory(
    *,
    outcome: str,
    memory: MemoryReading | None,
    task_id: str,
    attempt: int,
    model: str,
    slot: str,
    device: Reading | None = None,
) -> None:
    """*memory* is what the host holds after its cleanup; None when the host process is gone.

    A host that is gone left nothing to clean: the system took its memory back. *device* is what the worker read of the
    card at that moment; None on a CPU. It is the only figure of a card whose host is gone.
    """
    reading = with_device(MemoryReading(rss_bytes=0) if memory is None else memory, device)
    memory_read(reading, slot=slot, model=model, outcome=outcome)
    figures = msgspec.structs.asdict(reading)
    if memory is None:
        figures = {name: figures[name] for name in _WITHOUT_HOST} | {"process_gone": True}
    log.info(EVENT, task_id=task_id, attempt=attempt, model=model, slot=slot, outcome=outcome, **figures)
