"""Asking a memory probe from an event loop, with a driver behind it that may never answer."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from ops.machine.readings import Holder, MemoryProbe, Reading

ANSWER_S: Final = 2.0
# The time is counted in turns of the loop, so a process that was stopped, or whose loop was held up, loses one turn.
TURNS: Final = 20

T = TypeVar("T")


class PatientProbe:
    """*probe*, asked in threads of its own and never twice at a time. For one event loop.

    A driver that hangs costs one thread, which neither keeps the process from ending nor takes one from a shared pool.
    Until the driver comes back, every question is answered with None or an empty answer, and never with the reading of
    an earlier question.
    """

    def __init__(self, probe: MemoryProbe, *, answer_s: float = ANSWER_S) -> None:
        self._probe = probe
        self._answer_s = answer_s
        self._pending: asyncio.Future[None] | None = None
        self.trouble = ""
        """Why the last reading is missing, in the driver's words; empty where there is one."""

    async def read(self, pid: int | None) -> Reading | None:
        """As `MemoryProbe.read`; None also where there is no answer within the time."""
        late: tuple[Reading | None, str] = None, f"the driver did not answer within {self._answer_s:g} s"
        reading, self.trouble = await self._ask(lambda: (self._probe.read(pid), self._probe.trouble), late)
        return reading

    async def holders(self) -> tuple[Holder, ...]:
        """As `MemoryProbe.holders`; empty also where there is no answer within the time."""
        return await self._ask(self._probe.holders, ())

    async def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        answers: list[T] = []
        own: asyncio.Future[None] | None = None
        turns_left = TURNS
        while turns_left:
            if own is not None and own.done():
                break
            if self._pending is None:
                own = self._pending = self._in_a_thread(question, answers)
            done, _ = await asyncio.wait([self._pending], timeout=self._answer_s / TURNS)
            turns_left -= not done
        return answers[0] if answers else otherwise

    def _in_a_thread(self, question: Callable[[], T], answers: list[T]) -> asyncio.Future[None]:
        """Done when the driver has come back, with its answer in *answers* unless it raised."""
        loop = asyncio.get_running_loop()
        pending: asyncio.Future[None] = loop.create_future()

        def came_back() -> None:
            self._pending = None
            pending.set_result(None)

        def run() -> None:
            try:
                answers.append(question())
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(came_back)

        threading.Thread(target=run, name="memory-probe", daemon=True).start()
        return pending
