"""A running pipeline host and the worker's end of its pipe."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from typing import Final, Self

import structlog

from lane_worker.forking.host_messages import (
    LENGTH,
    BadMessage,
    Exit,
    FromChild,
    Ping,
    Pong,
    ToChild,
    body_length,
    decode_from_child,
    frame,
)
from lane_worker.forking.how_it_died import KillsForMemory, how_it_died, reported_exit_code
from lane_worker.forking.outcome import HostLost
from lane_worker.forking.process_end import process_end
from ops.waiting import set_within

PING_S: Final = 1.0
DEATH_S: Final = 10.0


log = structlog.get_logger("host")


class HostChild:
    """A running child and our end of its pipe. It is `gone` when the process has ended, and its memory with it.

    The log says how a child died, unless the worker ended it: no caller may be waiting for a message from it.
    """

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exit_reader: socket.socket
    ) -> None:
        self.pid = pid
        self._ended = process_end(pid)
        self.gone = asyncio.Event()
        self.answered_at_s = time.monotonic()
        self._reader = reader
        self._writer = writer
        self._exit_reader = exit_reader
        self._end = ""
        self._is_to_end = False
        self._kills = KillsForMemory()
        self._messages: asyncio.Queue[FromChild | None] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ping())]

    @classmethod
    async def connect(cls, pid: int, pipe: socket.socket, exit_reader: socket.socket) -> Self:
        """The fork server of the child reports on *exit_reader* what the child ended with."""
        return cls(pid, *await asyncio.open_connection(sock=pipe), exit_reader)

    @property
    def is_gone(self) -> bool:
        return self.gone.is_set()

    def send(self, message: ToChild) -> None:
        # Not drained: a child that reads nothing must not hold us up. Its deadlines end it, and the buffer with it.
        self._is_to_end |= isinstance(message, Exit)
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    async def next_message(self) -> FromChild:
        """Raises HostLost when the child is gone and everything that it had sent was taken."""
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            raise HostLost(self._end)
        return message

    async def answer(self, limit_s: float, complaint: str, overrun: type[HostLost] = HostLost) -> FromChild:
        """The next message. Raises HostLost. Where none comes within *limit_s*, kills the child and raises *overrun*,
        whose text says that the child *complaint*."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.next_message()
        except TimeoutError:
            await self.kill()
            raise overrun(f"the pipeline host {complaint} within {limit_s:g} s and was killed") from None
        except asyncio.CancelledError:
            self.end()
            raise

    async def nonsense(self, message: FromChild) -> HostLost:
        """Kills the child for *message*, which nobody asked for. Returns the error to raise."""
        await self.kill()
        return HostLost(f"the pipeline host sent an unexpected {type(message).__name__} and was killed")

    def end(self) -> None:
        """SIGKILL; its end is not waited for."""
        self._is_to_end = True
        self._sigkill()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Raises HostLost when even that does not end it (a driver that hangs)."""
        self.end()
        if not await set_within(DEATH_S, self.gone):
            raise HostLost(f"process {self.pid} survives SIGKILL; its slot stays locked until it ends")

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(LENGTH.size)
                message = decode_from_child(await self._reader.readexactly(body_length(head)))
                if isinstance(message, Pong):
                    self.answered_at_s = time.monotonic()
                    self._kills.answers(message.number)
                else:
                    self._messages.put_nowait(message)
        except BadMessage as error:
            self._end = f"the pipeline host broke the protocol and was killed: {error}"
        except (asyncio.IncompleteReadError, OSError):
            pass  # the usual end of the pipe
        finally:
            # A child without a pipe is of no use. Its pipe may close before it lets go of its card: only the end of the
            # process counts.
            self._sigkill()
            await self._ended
            self.gone.set()
            with self._exit_reader:
                await self._account_for_the_end()
            self._messages.put_nowait(None)
            self._writer.close()
            self._tasks[1].cancel()

    async def _account_for_the_end(self) -> None:
        if self._is_to_end:
            self._end = self._end or "the pipeline host was ended by its worker"
            return
        short_of_memory = self._kills.seen()  # before anything else can be killed
        self._end = self._end or how_it_died(
            await reported_exit_code(self._exit_reader), short_of_memory=short_of_memory
        )
        log.error("pipeline_host_died", pid=self.pid, error=self._end)

    async def _ping(self) -> None:
        for number in itertools.count(1):
            self._kills.asks(number)
            self.send(Ping(number))
            await asyncio.sleep(PING_S)

    def _sigkill(self) -> None:
        # until it is gone the pid is this child's
        if not self.is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
