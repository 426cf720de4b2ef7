"""What happened in the simulated system, line by line."""

from typing import TYPE_CHECKING

from tests.model.network import Operation

if TYPE_CHECKING:
    from tests.model.world import World


class Tale:
    """The story of a run, kept only if *is_tracing*."""

    def __init__(self, world: "World", *, is_tracing: bool) -> None:
        self._world, self.is_tracing = world, is_tracing
        self.trace: list[str] = []

    def note(self, text: str) -> None:
        if self.is_tracing:
            self.trace.append(f"{self._world.now_s - 1_000:9.3f}  {text}")

    def note_operation(self, operation: Operation, what: str) -> None:
        if self.is_tracing:
            who = operation.host.name if operation.host is not None else "server"
            self.note(f"{who}: {operation.what} {what}")
