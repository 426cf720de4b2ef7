"""Notifies receivers of the progress of a task: every 2 s at most, and at most once, without another try."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from contracts.tasks import GenerationTask, TaskStatus
from contracts.webhooks import WebhookEvent, delivery_id
from gateway.boards.endpoint_board import EndpointBoard
from gateway.rules.webhook_events import Target, payload, targets
from gateway.rules.webhook_retries import outcome_of
from gateway.webhooks.registry import Registry
from gateway.webhooks.sealing import CannotUnseal
from gateway.webhooks.sending import WebhookSender
from gateway.webhooks.signing import signed_headers
from ops.nats.errors import TransportUnavailable
from ops.telemetry import metrics

EVERY_S: Final = 2.0
# A caller whose slow receivers hold up this many sends is notified less often.
PER_CALLER: Final = 4

log = structlog.get_logger("webhooks")


class ProgressNews:
    """Progress is a hint: what cannot be sent at once is dropped, since the next step makes it old."""

    def __init__(self, *, endpoints: EndpointBoard, registry: Registry, sender: WebhookSender) -> None:
        self._endpoints, self._registry, self._sender = endpoints, registry, sender
        self._sent_s: dict[str, float] = {}
        self._of_caller: Counter[str] = Counter()
        self._sending: set[asyncio.Task[None]] = set()

    def on_task(self, task: GenerationTask) -> None:
        """The record of *task* has changed."""
        if task.status is not TaskStatus.PROCESSING:
            self._sent_s.pop(task.id, None)
            return
        if task.progress is None or not task.progress.step:
            return
        now_s, now = time.monotonic(), datetime.now(UTC)
        if now_s - self._sent_s.get(task.id, -EVERY_S) < EVERY_S:
            return
        found = list(targets(task, self._endpoints.of(task.caller), WebhookEvent.PROGRESS, now))
        if found and self._of_caller[task.caller] + len(found) <= PER_CALLER:
            self._sent_s[task.id] = now_s
            for target in found:
                self._spawn(self._send(task, target, now))

    async def close(self) -> None:
        """Drops what is on its way."""
        for sending in tuple(self._sending):
            sending.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        sending = asyncio.create_task(work)
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _send(self, task: GenerationTask, target: Target, now: datetime) -> None:
        self._of_caller[task.caller] += 1
        try:
            known = await self._registry.get(target.endpoint)
            endpoint = known or await self._registry.for_requests(task.caller, now=now)
            step = 0 if task.progress is None else task.progress.step
            name = delivery_id(task.id, f"progress-{task.attempt}-{step}", target.endpoint)
            body = payload(task, WebhookEvent.PROGRESS, now)
            headers = signed_headers(name, body, self._registry.secrets_of(endpoint, now), now)
            answer = await self._sender.send(target.url, headers, body)
            metrics.webhook_attempts.add(outcome_of(answer))
        except (CannotUnseal, TransportUnavailable) as error:
            log.info("progress_not_told", task_id=task.id, error=str(error))
        finally:
            self._of_caller -= Counter([task.caller])
