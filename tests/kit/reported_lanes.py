"""KV `lanes` and `cold_starts`, as a test follows them."""

import asyncio

import msgspec

from contracts.lanes import ColdStart, LaneHeartbeat, LaneState
from gateway.boards.cold_starts import ColdStarts
from gateway.boards.lane_board import LaneBoard
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.kit.support import eventually


class Lanes:
    """The reports of lanes, in the order in which the server stored them."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, LaneHeartbeat | None]] = []
        self.entries: list[Entry] = []

    def on_entry(self, entry: Entry) -> None:
        self.entries.append(entry)
        value = None if entry.value is None else msgspec.json.decode(entry.value, type=LaneHeartbeat)
        self.reported.append((entry.key.partition(".")[2], value))

    def last(self, name: str) -> LaneHeartbeat | None:
        return next((value for key, value in reversed(self.reported) if key == name), None)

    def states(self, name: str) -> list[tuple[LaneState, int]]:
        """State and process of every report, without repetitions."""
        reported = [(value.state, value.pid) for key, value in self.reported if key == name and value is not None]
        return [now for before, now in zip([None, *reported], reported, strict=False) if now != before]

    async def becomes(self, name: str, state: LaneState) -> LaneHeartbeat:
        async def look() -> LaneHeartbeat | None:
            last = self.last(name)
            return last if last is not None and last.state is state else None

        try:
            found = await eventually(look)
        except AssertionError:
            raise AssertionError(f"{name} is never {state}: {self.reported[-10:]}") from None
        assert found is not None
        return found

    async def hears(self, name: str, state: LaneState, pid: int) -> None:
        """Returns when *pid* has reported *state*, which may have been overwritten by then."""
        await eventually(lambda: asyncio.sleep(0, (state, pid) in self.states(name)))

    async def holds(self, name: str, task_id: str) -> None:
        """Returns when the lane reports that it runs *task_id*."""

        async def look() -> bool:
            last = self.last(name)
            return last is not None and last.in_hand is not None and last.in_hand.task_id == task_id

        await eventually(look)

    def causes(self, model: str, *, since: int) -> list[str | None]:
        """Why routing had no lane after each entry from number *since* on, without repetitions; None: it had one."""
        board = LaneBoard(health_timeout_s=60, grace_s=10)
        causes: list[str | None] = []
        for number, entry in enumerate(self.entries):
            board.on_lane(Versioned(HEARTBEATS, entry))
            cause = board.cause(model, entry.time)
            if number >= since and [cause] != causes[-1:]:
                causes.append(cause)
        return causes

    async def are_gone(self, *names: str) -> None:
        await eventually(lambda: asyncio.sleep(0, all(self.last(name) is None for name in names)))


async def starts_of(link: NatsLink, name: str) -> list[ColdStart]:
    """The cold starts of one lane, the oldest first."""
    known = ColdStarts()
    await known.start(link)
    return [start for start in known.newest_first()[::-1] if start.worker == name]
