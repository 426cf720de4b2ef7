"""The product's view of the time and of nats-py, while the model runs it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, tzinfo
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import stamina.instrumentation

import degraded_worker.hand
import gateway.boards.episode_board
import gateway.boards.lane_board
import gateway.boards.switches
import gateway.boards.task_board
import gateway.http.lookup
import gateway.placing.admission
import gateway.placing.cancelling
import gateway.placing.displacement
import gateway.placing.fallbacks
import gateway.placing.hold
import gateway.placing.input_images
import gateway.placing.leftovers
import gateway.placing.overload
import gateway.placing.queueing
import gateway.placing.retries
import gateway.placing.slow_look
import gateway.placing.sweeper
import gateway.placing.turns
import gateway.rules.webhook_retries
import gateway.webhooks.delivering
import gateway.webhooks.making
import gateway.webhooks.progress
import gateway.webhooks.service
import lane_worker.runtime.attempt
import lane_worker.runtime.claiming
import lane_worker.runtime.held
import lane_worker.runtime.input_image
import lane_worker.runtime.lane_hand
import lane_worker.runtime.lease
import lane_worker.runtime.loop
import lane_worker.runtime.order
import lane_worker.runtime.orphans
import lane_worker.runtime.queued
import lane_worker.runtime.scratch
import lane_worker.runtime.settling
import ops.background
import ops.nats.bucket
import ops.nats.connecting
import ops.nats.connection
import ops.nats.messages
import ops.nats.pull
import ops.nats.reader
import ops.nats.server_clock
import ops.nats.watch
from tests.model.model_loop import HOST
from tests.model.network import current
from tests.model.simulated_client import SimulatedClient
from tests.model.webhooks import WAITS_S, PlayedLeader, PlayedSender

_WITH_DATETIME: tuple[Any, ...] = (
    degraded_worker.hand,
    lane_worker.runtime.order,
    gateway.boards.episode_board,
    gateway.boards.task_board,
    gateway.placing.admission,
    gateway.placing.displacement,
    gateway.placing.turns,
    gateway.placing.fallbacks,
    gateway.placing.hold,
    gateway.placing.input_images,
    gateway.placing.overload,
    gateway.placing.queueing,
    gateway.placing.sweeper,
    gateway.http.lookup,
    gateway.placing.cancelling,
    gateway.webhooks.delivering,
    gateway.webhooks.making,
    gateway.webhooks.progress,
    gateway.webhooks.service,
    lane_worker.runtime.claiming,
    lane_worker.runtime.lane_hand,
    lane_worker.runtime.lease,
    lane_worker.runtime.loop,
    lane_worker.runtime.queued,
    lane_worker.runtime.settling,
    ops.nats.connection,
    ops.nats.reader,
    ops.nats.server_clock,
)
_WITH_LOG: tuple[Any, ...] = (
    degraded_worker.hand,
    gateway.placing.admission,
    gateway.placing.displacement,
    gateway.placing.fallbacks,
    gateway.placing.hold,
    gateway.placing.input_images,
    gateway.boards.lane_board,
    gateway.boards.switches,
    gateway.placing.leftovers,
    gateway.placing.slow_look,
    gateway.placing.sweeper,
    gateway.webhooks.delivering,
    gateway.webhooks.making,
    gateway.webhooks.progress,
    lane_worker.runtime.attempt,
    lane_worker.runtime.claiming,
    lane_worker.runtime.held,
    lane_worker.runtime.input_image,
    lane_worker.runtime.lease,
    lane_worker.runtime.loop,
    lane_worker.runtime.orphans,
    lane_worker.runtime.scratch,
    lane_worker.runtime.settling,
    ops.background,
    ops.nats.connecting,
    ops.nats.connection,
    ops.nats.pull,
    ops.nats.reader,
    ops.nats.watch,
)


_WITH_UNREADABLES: tuple[Any, ...] = (
    lane_worker.runtime.loop,
    ops.nats.bucket,
    ops.nats.reader,
)


class ModelDatetime(datetime):
    """`datetime`, whose `now` is that of the model."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return current().now()


def _monotonic() -> float:
    return current().now_s


# The unexpected exceptions that the product has logged.
ERRORS: list[str] = []
# Tasks of which the server lost stored messages: what is left of such a task may contradict itself.
TORN: set[str] = set()


class SilentLogger:
    """Logs nothing, and keeps unexpected exceptions."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _nothing

    def exception(self, event: str, **fields: Any) -> None:
        host = HOST.get()
        ERRORS.append(f"{host.name if host else ''} {event} {fields}: {sys.exc_info()[1]!r}")


class _Unreadables:
    """In the model no process writes an unreadable entry: if a reader reports one, the reader is wrong."""

    def report(self, kind: str, where: str, error: Exception | str, *, revision: int = 0) -> None:
        if where.rpartition(".")[2] in TORN:
            return
        host = HOST.get()
        ERRORS.append(f"{host.name if host else ''} unreadable {kind} {where}: {error}")


def _nothing(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def simulated_product() -> Iterator[None]:
    """The product's own code runs on the simulated network and its clock."""
    clock = SimpleNamespace(monotonic=_monotonic)
    ids = SimpleNamespace(uuid7=lambda: current().new_id())
    with ExitStack() as stack:
        for module in _WITH_DATETIME:
            stack.enter_context(patch.object(module, "datetime", ModelDatetime))
        for module in _WITH_LOG:
            stack.enter_context(patch.object(module, "log", SilentLogger()))
        for module in _WITH_UNREADABLES:
            stack.enter_context(patch.object(module, "unreadables", _Unreadables()))
        stack.enter_context(patch.object(ops.nats.connecting, "NatsClient", SimulatedClient))
        stack.enter_context(patch.object(ops.nats.connection, "time", clock))
        stack.enter_context(patch.object(ops.nats.messages, "time", clock))
        stack.enter_context(patch.object(ops.nats.watch, "time", clock))
        stack.enter_context(patch.object(degraded_worker.hand, "time", clock))
        stack.enter_context(patch.object(lane_worker.runtime.order, "time", clock))
        stack.enter_context(patch.object(lane_worker.runtime.lane_hand, "time", clock))
        stack.enter_context(patch.object(lane_worker.runtime.lease, "time", clock))
        stack.enter_context(patch.object(lane_worker.runtime.input_image, "time", clock))
        stack.enter_context(patch.object(gateway.placing.retries, "time", clock))
        stack.enter_context(patch.object(gateway.placing.overload, "time", clock))
        for module in (gateway.webhooks.delivering, gateway.webhooks.making, gateway.webhooks.progress):
            stack.enter_context(patch.object(module, "time", clock))
        stack.enter_context(patch.object(gateway.webhooks.service, "Leader", PlayedLeader))
        stack.enter_context(patch.object(gateway.webhooks.service, "WebhookSender", PlayedSender))
        stack.enter_context(patch.object(gateway.rules.webhook_retries, "WAITS_S", WAITS_S))
        stack.enter_context(patch.object(gateway.rules.webhook_retries, "ATTEMPTS_MAX", 1_000))
        stack.enter_context(patch("tenacity.time", clock))
        hooks = stamina.instrumentation.get_on_retry_hooks()
        stamina.instrumentation.set_on_retry_hooks([])
        stack.callback(stamina.instrumentation.set_on_retry_hooks, hooks)
        stack.enter_context(patch.object(gateway.placing.admission, "uuid_utils", ids))
        yield
