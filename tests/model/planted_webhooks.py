"""Bugs of webhooks, planted in the product's own code."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import gateway.placing.displacement
import gateway.placing.sweeper
import gateway.rules.due
import gateway.rules.webhook_events
import gateway.webhooks.delivering
from contracts.tasks import GenerationTask, TaskStatus
from contracts.webhooks import WebhookEvent
from gateway.rules.webhook_events import Happened, happened
from gateway.rules.webhook_retries import Delivered
from gateway.webhooks.making import Making


def delivered_only_of_what_comes() -> AbstractContextManager[Any]:
    """A gateway that takes over makes deliveries only for what it sees from then on, as if it followed a cursor."""

    async def nothing(_: Making) -> None:
        pass

    return patch.object(Making, "_look_at_all", nothing)


def sent_is_delivered() -> AbstractContextManager[Any]:
    """A delivery is over once it is sent, whatever the receiver answers."""
    return patch.object(gateway.webhooks.delivering, "verdict", lambda *_, **__: Delivered())


def delivered_what_was_meant() -> AbstractContextManager[Any]:
    """A gateway delivers `task.done` already when a worker claims the task."""

    def early(task: GenerationTask) -> Iterator[Happened]:
        yield from happened(task)
        if task.status is TaskStatus.PROCESSING and task.claimed_at is not None:
            yield Happened(WebhookEvent.DONE, task.claimed_at)

    return patch.object(gateway.rules.webhook_events, "happened", early)


def silent_about_the_cancelled() -> AbstractContextManager[Any]:
    """The old code: no event for a task that was cancelled while its caller was held, although the caller is answered
    with that task."""

    def before(task: GenerationTask) -> Iterator[Happened]:
        if task.attempt or task.promised:
            yield from happened(task)

    return patch.object(gateway.rules.webhook_events, "happened", before)
