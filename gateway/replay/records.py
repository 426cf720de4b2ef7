"""The records of tasks that a replay reads: of a running system, or of a backup."""

from datetime import datetime
from pathlib import Path

from msgspec import Struct

from contracts.tasks import GenerationTask, UnreadableTask, decode_task_of
from contracts.topology import TASKS
from ops.commands.backup.reading import opened
from ops.nats.access import NatsAccess
from ops.nats.entry import Entry
from ops.nats.link import NatsLink


class Records(Struct, frozen=True):
    """The newest record of each task; records that cannot be read are only counted (*unreadable*)."""

    tasks: list[GenerationTask]
    unreadable: int


async def records_of_server(nats: NatsAccess) -> Records:
    """The records in the bucket now. Raises TransportUnavailable, UnusableServer, NotFoundError without such a
    bucket."""
    link = await NatsLink.connect(nats, name="replay")
    try:
        return await _read(link)
    finally:
        await link.close()


async def records_of_backup(folder: Path) -> Records:
    """The records that `warmlane backup` saved in *folder*. Raises what `opened` raises."""
    async with opened(folder) as link:
        return await _read(link)


async def _read(link: NatsLink) -> Records:
    found: dict[str, bytes] = {}

    def note(entry: Entry) -> None:
        found.pop(entry.key, None)
        if entry.value is not None:
            found[entry.key] = entry.value

    await (await link.watches.start(TASKS, note)).wait()
    tasks = []
    for task_id, value in found.items():
        try:
            tasks.append(decode_task_of(task_id, value))
        except UnreadableTask:
            continue
    return Records(tasks, len(found) - len(tasks))


def between(records: Records, since: datetime | None, until: datetime | None) -> list[GenerationTask]:
    """The tasks that came at *since* or later, and before *until*."""
    return [
        task
        for task in records.tasks
        if (since is None or task.created_at >= since) and (until is None or task.created_at < until)
    ]
