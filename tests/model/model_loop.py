"""An event loop without a system below it: its clock is set by hand, and nothing happens by itself.

The context distinguishes processes. Callbacks of a killed process are never called. Those of a stopped process are
called when it goes on.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, cast

# A process that calls this many callbacks without an effect or time passing is in an endless loop.
MAX_HANDLES: Final = 20_000


class Host:
    """What the loop knows of a process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.stopped_s = 0.0
        self.skew_s = 0.0
        self.parked: list[Handle] = []
        self.context = copy_context()
        self.context.run(HOST.set, self)


HOST: ContextVar[Host | None] = ContextVar("host", default=None)


class Handle:
    """A callback that is yet to be called."""

    __slots__ = ("args", "callback", "context", "is_cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> None:
        self.callback, self.args, self.context = callback, args, context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


class _Running:
    # as a class because it is entered for every effect, and a generator costs ten times as much

    __slots__ = ("_before", "_loop")

    def __init__(self, loop: "ModelLoop") -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._before = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop.as_asyncio)

    def __exit__(self, *_: object) -> None:
        asyncio._set_running_loop(self._before)


class ModelLoop:
    """Runs coroutines for as long as any of them can go on. `clock_s` is the time.

    To asyncio it is an event loop: it has what `Task`, `Future`, `timeout` and `sleep` need of one.
    """

    def __init__(self) -> None:
        self.clock_s = 1_000.0
        self.unexpected: list[str] = []
        self.tearing_down = False
        self.all_tasks: list[asyncio.Task[Any]] = []
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = itertools.count()
        # the callbacks of killed processes
        self._never: list[Handle] = []
        self._stopped: list[Host] = []

    @property
    def as_asyncio(self) -> asyncio.AbstractEventLoop:
        return cast(asyncio.AbstractEventLoop, self)

    # ── what asyncio asks of a loop ──────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self.clock_s

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context or copy_context())
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.clock_s + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context or copy_context())
        heapq.heappush(self._timers, (when, next(self._count), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.as_asyncio)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self.as_asyncio, context=context)
        self.all_tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        done = self.create_future()
        done.set_result(func(*args))
        return done

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.tearing_down:
            self.unexpected.append(f"{context.get('message')}: {context.get('exception')!r}")

    # ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────

    def running(self) -> "_Running":
        """While the block runs, this is the running loop."""
        return _Running(self)

    def run_ready(self) -> None:
        """Goes on until nothing more can happen without an effect or the time."""
        ready = self._ready
        left = MAX_HANDLES
        while ready:
            handle = ready.popleft()
            if handle.is_cancelled:
                continue
            host = handle.context.get(HOST)
            if host is not None and not self.tearing_down:
                if not host.alive:
                    self._never.append(handle)
                    continue
                if host.stopped:
                    if not host.parked:
                        self._stopped.append(host)
                    host.parked.append(handle)
                    continue
            handle.context.run(handle.callback, *handle.args)
            left -= 1
            if not left:
                raise AssertionError(f"no end to {handle.callback} of {host.name if host else None}")

    def go_on(self, host: Host) -> None:
        """*host* was stopped, and goes on."""
        host.stopped = False
        self._ready.extend(host.parked)
        host.parked.clear()

    def next_timer_s(self) -> float | None:
        timers = self._timers
        while timers and (timers[0][2].is_cancelled or self._is_dead(timers[0][2])):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def _is_dead(self, handle: Handle) -> bool:
        host = handle.context.get(HOST)
        return host is not None and not host.alive and not self.tearing_down

    def fire_timers(self) -> None:
        """Calls what is due."""
        while self._timers and self._timers[0][0] <= self.clock_s:
            self._ready.append(heapq.heappop(self._timers)[2])

    def tear_down(self) -> None:
        """Ends every coroutine, whatever it was doing. Nothing that they do then counts."""
        self.tearing_down = True
        for host in self._stopped:
            self._never.extend(host.parked)
            host.parked.clear()  # a host is listed once for each time that it was stopped
        self._ready.extend(self._never)
        with self.running():
            for _ in range(50):
                open_tasks = [task for task in self.all_tasks if not task.done()]
                if not open_tasks:
                    break
                for task in open_tasks:
                    task.cancel()
                self.run_ready()
                self.clock_s += 10.0
                self.fire_timers()
                self.run_ready()
        for task in self.all_tasks:
            if task.done() and not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not warn of it
