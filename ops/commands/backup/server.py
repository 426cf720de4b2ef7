"""The requests to nats-server that saving and restoring share."""

import contextlib
import json
from typing import Any, Final

from contracts.nesting import loads
from contracts.tasks import UnreadableTask, decode_task
from contracts.topology import TASKS
from ops.commands.backup.layout import BackupError, Record
from ops.nats.entry import Entry
from ops.nats.link import NatsLink

# The server gives up on a client that is silent for 5 s; we give up on a server after twice that.
SILENCE_S: Final = 10.0


async def unended_tasks(link: NatsLink) -> list[Record]:
    """The last records of all tasks that have not ended."""
    found: dict[str, Record] = {}

    def note(entry: Entry) -> None:
        found.pop(entry.key, None)
        with contextlib.suppress(UnreadableTask):
            if entry.value is not None and not decode_task(entry.value).status.is_terminal:
                found[entry.key] = Record(entry.key, entry.revision, entry.value)

    await (await link.watches.start(TASKS, note)).wait()
    return list(found.values())


async def ask(link: NatsLink, subject: str, request: dict[str, Any]) -> dict[str, Any]:
    """What JetStream answers to *request*. Raises BackupError, TransportUnavailable."""
    name = subject.rpartition(".")[2]
    answer = await link.core.request(subject, json.dumps(request).encode(), timeout_s=SILENCE_S, about=name)
    return answered(name, answer.data)


def answered(name: str, data: bytes) -> dict[str, Any]:
    """*data* as JetStream's answer about the stream *name*. Raises BackupError where that is an error."""
    answer: dict[str, Any] = loads(data)
    if "error" in answer:
        raise BackupError(f"{name}: {answer['error'].get('description', answer['error'])}")
    return answer
