"""What lies between a process and the simulated server: calls that are under way.

Every call, answer and delivery is an `Operation` in `Network.under_way`; whoever drives the network decides which of
them takes effect next, whose answer is lost, and when time passes.
"""

import itertools
import math
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import nats.errors
from nats.js.errors import APIError

from tests.model.jetstream import JetStream, Refused, moment
from tests.model.model_loop import HOST, Host, ModelLoop

if TYPE_CHECKING:
    from tests.model.simulated_client import SimulatedClient

REPLY_TIMEOUT_S: Final = 2.0
# For this long after its caller gave up, a request may still be stored: it was in a buffer.
LATE_S: Final = 3.0
TICKS_A_SECOND: Final = 1 << 20

Effect = Callable[[], Any]

_NUMBERS: Final = itertools.count(1)


def in_turn() -> int:
    """A number greater than all before it. It orders what happens at one moment of the model's clock."""
    return next(_NUMBERS)


class Operation:
    """Something that is under way between a process and the server.

    Of one process's operations with the same *lane* only the first can happen: a connection keeps their order.
    *future* is None where no caller waits for the answer. *is_push*: it goes to the process, and not to the server.
    *number* says which of two operations of one moment came first (`in_turn`).
    """

    __slots__ = (
        "can_happen",
        "effect",
        "future",
        "host",
        "is_push",
        "lane",
        "loses_quietly",
        "made_s",
        "number",
        "sent_s",
        "what",
    )

    def __init__(
        self,
        what: str,
        effect: Effect,
        *,
        host: Host | None,
        lane: str,
        future: Any = None,
        sent_s: float,
        is_push: bool = False,
        loses_quietly: bool = False,
        can_happen: Callable[[], bool] | None = None,
    ) -> None:
        self.what, self.effect, self.host, self.lane, self.future = what, effect, host, lane, future
        self.sent_s, self.is_push, self.loses_quietly, self.can_happen = sent_s, is_push, loses_quietly, can_happen
        self.made_s, self.number = sent_s, in_turn()


class Network:
    """The server, the clock, and everything that is under way."""

    def __init__(self) -> None:
        self.loop = ModelLoop()
        self.server = JetStream()
        self.under_way: list[Operation] = []
        self.clients: list[SimulatedClient] = []
        self.steps = 0
        self.on_new_id: Callable[[str], None] = lambda _: None
        self._ids = itertools.count(1)
        # while an effect happens: the process that asked for it, when, and in which turn
        self.acting: Host | None = None
        self.asked_s, self.asked = 0.0, 0

    # ── the clock ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def now_s(self) -> float:
        return self.loop.clock_s

    def now(self) -> datetime:
        """The time on the clock of the process that asks."""
        host = HOST.get()
        return moment(self.loop.clock_s + (host.skew_s if host is not None else 0.0))

    def next_event_s(self) -> float | None:
        """When the next thing happens by itself."""
        now_s = self.loop.clock_s
        moments = [self.loop.next_timer_s(), self.server.next_event_s(now_s)]
        for operation in self.under_way:
            if operation.future is not None and operation.can_happen is None:
                moments.append(operation.sent_s + REPLY_TIMEOUT_S)
            elif operation.future is None and not operation.is_push:
                moments.append(operation.sent_s + LATE_S)
        return min((at_s for at_s in moments if at_s is not None and at_s > now_s), default=None)

    def pass_time(self, to_s: float) -> None:
        """Sets the clock to *to_s*; what was due by then has happened."""
        with self.loop.running():
            self.loop.clock_s = max(self.loop.clock_s, on_a_tick(to_s))
            now_s = self.loop.clock_s
            self.server.pass_time(now_s)
            for operation in list(self.under_way):
                if operation.future is not None and operation.can_happen is None:
                    if operation.sent_s + REPLY_TIMEOUT_S <= now_s:
                        self.give_up(operation)
                elif operation.future is None and not operation.is_push and operation.sent_s + LATE_S <= now_s:
                    self.under_way.remove(operation)
            self.loop.fire_timers()
            self.loop.run_ready()

    def new_id(self) -> UUID:
        """An id that a process takes for a random one."""
        made = UUID(int=next(self._ids) | 7 << 76 | 2 << 62)
        self.on_new_id(str(made))
        return made

    # ── what is under way ────────────────────────────────────────────────────────────────────────────────────────

    async def call(self, what: str, effect: Effect, *, lane: str, can_happen: Callable[[], bool] | None = None) -> Any:
        """What *effect* returns, once it has happened and the answer has come."""
        future = self.loop.create_future()
        operation = Operation(
            what,
            effect,
            host=HOST.get(),
            lane=lane,
            future=future,
            sent_s=self.now_s,
            can_happen=can_happen,
        )
        self.under_way.append(operation)
        try:
            return await future
        finally:
            if can_happen is not None and operation in self.under_way:
                self.under_way.remove(operation)  # a cancelled fetch takes no message

    def send(self, what: str, effect: Effect, *, lane: str) -> None:
        """*effect* happens at some time, or never."""
        self.under_way.append(Operation(what, effect, host=HOST.get(), lane=lane, sent_s=self.now_s))

    def push(self, what: str, host: Host | None, effect: Effect, *, lane: str, loses_quietly: bool) -> None:
        """Brings something to *host*."""
        self.under_way.append(
            Operation(
                what,
                effect,
                host=host,
                lane=lane,
                sent_s=self.now_s,
                is_push=True,
                loses_quietly=loses_quietly,
            )
        )

    def waits_for_messages(self, host: Host) -> bool:
        """Whether a fetch of *host* is under way."""
        return any(operation.host is host and operation.can_happen is not None for operation in self.under_way)

    def possible(self) -> list[Operation]:
        """What may happen next, the oldest first."""
        found: list[Operation] = []
        seen: set[tuple[int, str]] = set()
        for operation in self.under_way:
            key = (id(operation.host), operation.lane)
            if key in seen:
                continue
            if operation.can_happen is not None and not operation.can_happen():
                continue
            seen.add(key)
            found.append(operation)
        return found

    def happen(self, operation: Operation, *, answered: bool = True) -> None:
        """*operation* takes effect; if not *answered*, its caller does not learn what became of it."""
        self.under_way.remove(operation)
        self.steps += 1
        with self.loop.running():
            self.acting, self.asked_s, self.asked = operation.host, operation.made_s, operation.number
            try:
                result = operation.effect()
            except Refused as refused:
                self.acting = None
                if answered and operation.future is not None and not operation.future.done():
                    operation.future.set_exception(_api_error(refused))
                elif operation.future is not None:
                    self._fail(operation)
            except nats.errors.Error as error:
                self.acting = None
                if operation.future is not None and not operation.future.done():
                    operation.future.set_exception(error)
            else:
                self.acting = None
                if operation.can_happen is not None and not answered:
                    self.under_way.append(operation)  # its message reached nobody, and is redelivered after ack_wait
                elif operation.future is not None:
                    if not answered:
                        self._fail(operation)
                    elif not operation.future.done():
                        operation.future.set_result(result)
            self.loop.run_ready()

    def happen_unheard(self, operation: Operation) -> None:
        """*operation* takes effect at once; its answer is under way, and comes later."""
        future = operation.future
        if future is None or operation.can_happen is not None:
            self.happen(operation)
            return
        self.under_way.remove(operation)
        self.steps += 1
        outcome: Callable[[], None]
        self.acting, self.asked_s, self.asked = operation.host, operation.made_s, operation.number
        with self.loop.running():
            try:
                result = operation.effect()
            except Refused as refused:
                error: Exception = _api_error(refused)
                outcome = lambda: future.done() or future.set_exception(error)  # noqa: E731
            except nats.errors.Error as failed:
                error = failed
                outcome = lambda: future.done() or future.set_exception(error)  # noqa: E731
            else:
                outcome = lambda: future.done() or future.set_result(result)  # noqa: E731
            finally:
                self.acting = None
        answer = Operation(
            f"answer to {operation.what}",
            outcome,
            host=operation.host,
            lane=f"answer {id(operation)}",
            future=None,
            sent_s=self.now_s,
            is_push=True,
            loses_quietly=True,
        )
        self.under_way.append(answer)
        # an answer that never comes is a time-out
        self.loop.call_later(REPLY_TIMEOUT_S, self._time_out, operation, answer, context=context_of(operation.host))

    def _time_out(self, operation: Operation, answer: Operation) -> None:
        if answer in self.under_way:
            self.under_way.remove(answer)
        self._fail(operation)

    def lose(self, operation: Operation) -> None:
        """*operation* never happens."""
        if operation.is_push and not operation.loses_quietly:
            return
        if operation.can_happen is not None:
            return
        self.under_way.remove(operation)
        self.steps += 1
        with self.loop.running():
            self._fail(operation)
            self.loop.run_ready()

    def miss(self, operation: Operation) -> None:
        """What *operation* brings never arrives, and the process does not notice."""
        self.under_way.remove(operation)
        self.steps += 1

    def give_up(self, operation: Operation) -> None:
        """Its caller gets an unknown outcome; the operation may still happen later."""
        if operation.future is None or operation.can_happen is not None:
            return
        self.steps += 1
        with self.loop.running():
            self._fail(operation)
            operation.future = None
            operation.sent_s = self.now_s
            self.loop.run_ready()

    def _fail(self, operation: Operation) -> None:
        future = operation.future
        if future is not None and not future.done():
            future.set_exception(operation_failure(operation))

    # ── calmly ───────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self) -> None:
        """Everything that is under way happens, in order, and is answered."""
        with self.loop.running():
            self.loop.run_ready()
        for _ in range(100_000):
            possible = self.possible()
            if not possible:
                return
            self.happen(possible[0])
        raise AssertionError("there is no end to what happens at one moment")

    def run_until_complete(self, coroutine: Any) -> Any:
        """Runs *coroutine* on a network where nothing goes wrong."""
        with self.loop.running():
            task = self.loop.create_task(coroutine)
        while True:
            self.settle()
            if task.done():
                return task.result()
            at_s = self.next_event_s()
            assert at_s is not None, "it waits for ever"
            self.pass_time(at_s)

    # ── what the server does for clients ─────────────────────────────────────────────────────────────────────────

    def core_publish(self, subject: str, payload: bytes = b"") -> None:
        """Delivers to subscribers of *subject*, whether or not a stream stores it."""
        for client in self.clients:
            for matches, callback in client.subscriptions:
                if matches(subject):
                    client.deliver(f"hint {subject}", callback, SimpleNamespace(subject=subject, data=payload), None)


def on_a_tick(at_s: float) -> float:
    """The first tick of the clock at or after *at_s*. Ticks are about 1 µs, and differences between them are exact, so
    that a process that waits until a moment does not wake a rounding error before it."""
    return math.ceil(at_s * TICKS_A_SECOND) / TICKS_A_SECOND


def context_of(host: Host | None) -> Any:
    """The context in which callbacks of *host* run; None: the caller's own context."""
    return None if host is None else host.context.copy()


def operation_failure(operation: Operation) -> Exception:
    """The error that the caller of an unanswered call gets."""
    return StoreAway(operation.what) if operation.lane.startswith("store ") else nats.errors.TimeoutError()


class StoreAway(OSError):
    """The artifact store did not answer."""


def _api_error(refused: Refused) -> APIError:
    try:
        APIError.from_error(
            {"code": refused.code, "err_code": refused.err_code, "description": refused.description},
        )
    except APIError as error:
        return error
    raise AssertionError("from_error raises")


_NETWORK: list[Network] = []


def current() -> Network:
    """The network of this run."""
    return _NETWORK[-1]


def use(network: Network) -> None:
    """From now on *network* is the one that clients find."""
    _NETWORK[:] = [network]
