"""A second look at the records, from the server and not from memory (design §4, Deadlines).

Deadlines are read from what a watch has brought. Some seconds later, this compares every write on the server with that.
A write that the watch did not bring is read, and counted: a counter above 0 means that a watch has a fault.
"""

import asyncio
from typing import Final

import structlog
from nats.js.errors import NotFoundError

from contracts.topology import TASKS, bucket_stream
from gateway.boards.task_board import TaskBoard
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.telemetry import metrics
from ops.telemetry.seldom import Seldom

EVERY_S: Final = 10.0
# By then the watch has brought what was on its way: it uses the same connection.
ARRIVED_S: Final = 2.0
# A gateway compares so many writes in one look, and goes on from there at the next look.
AT_ONCE: Final = 10_000

log = structlog.get_logger("slow_look")


class SlowLook:
    """Compares what the server has stored in KV `tasks` with what this gateway has in memory, from the first record on,
    including what the task board read when it started. Call `look` only after the board has started."""

    def __init__(self, *, link: NatsLink, tasks: TaskBoard) -> None:
        self._link, self._tasks = link, tasks
        # everything up to this sequence has been compared
        self._compared = 0
        self._seldom = Seldom()

    async def _last(self) -> int:
        return (await self._link.streams.state(bucket_stream(TASKS))).last_seq

    async def run(self) -> None:
        """Looks now and then, until cancelled."""
        while True:
            try:
                await self.look()
            except (NotFoundError, TransportUnavailable) as error:
                self._seldom.log(log.info, "slow_look_delayed", error=str(error))
            await asyncio.sleep(EVERY_S)

    async def look(self) -> int:
        """Reads the records that the watch has missed since the last look. Returns how many those were.

        Raises NotFoundError without the bucket, TransportUnavailable.
        """
        last = await self._last()
        if last < self._compared:  # the server lost something: the board reads the bucket again
            self._compared = 0
        upto = min(last, self._compared + AT_ONCE)
        if upto == self._compared or self._tasks.news_age_s():
            return 0
        written = await self._link.watches.written(TASKS, after=self._compared, upto=upto)
        missing = self._behind(written)
        if missing:
            await asyncio.sleep(ARRIVED_S)
            if self._tasks.news_age_s():
                return 0  # the watch is behind, and known to be; the next look compares the same writes
            missing = self._behind(missing)
        missed = [task_id for task_id in missing if await self._is_missed(task_id)]
        self._compared = upto
        return len(missed)

    def _behind(self, written: dict[str, int]) -> dict[str, int]:
        is_known, forgotten = self._tasks.index.is_known, self._tasks.forgotten
        return {
            task_id: revision
            for task_id, revision in written.items()
            if not is_known(task_id, revision) and task_id not in forgotten
        }

    async def _is_missed(self, task_id: str) -> bool:
        # a record that was deleted, has expired or cannot be read was not missed
        if await self._tasks.read(task_id) is None:
            return False
        metrics.records_missed.add()
        log.error("record_missed", task_id=task_id, advice="the watch of the records did not bring it: report this")
        return True
