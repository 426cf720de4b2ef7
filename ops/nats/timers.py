"""Timers that nats-server keeps and delivers at their time, by its own clock."""

import json
from datetime import datetime

from contracts.nesting import loads
from contracts.topology import DEADLINES, TimerKind, timer_due_subject, timer_set_subject
from ops.nats.client import REPLY_TIMEOUT_S, NatsClient
from ops.nats.clock import rfc3339
from ops.nats.errors import TransportUnavailable, translated
from ops.nats.messages import Messages


class Timers:
    """The timers of all tasks."""

    def __init__(self, client: NatsClient, messages: Messages) -> None:
        self._client, self._messages = client, messages

    async def set(self, kind: TimerKind, task_id: str, at: datetime, payload: bytes) -> None:
        """Stores a timer that is due at *at*, in the place of one of the same kind and task.

        Raises TransportUnavailable.
        """
        await self._messages.publish(
            timer_set_subject(kind, task_id),
            payload,
            headers={
                "Nats-Schedule": f"@at {rfc3339(at)}",
                "Nats-Schedule-Target": timer_due_subject(kind, task_id),
            },
        )

    async def exists(self, task_id: str) -> bool:
        """Whether a timer of *task_id* is set, or due and not served yet. Raises TransportUnavailable."""
        question = json.dumps({"subjects_filter": f"deadline.*.*.{task_id}"}).encode()
        with translated(DEADLINES):
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{DEADLINES}", question, timeout=REPLY_TIMEOUT_S)
        info = loads(reply.data)
        if "error" in info:
            raise TransportUnavailable(f"{DEADLINES}: {info['error'].get('description', 'no reason given')}")
        return bool(info["state"].get("subjects"))
