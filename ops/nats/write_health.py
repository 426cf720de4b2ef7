"""Streams that take no writes while the server answers otherwise (ADR 0031).

After its disk was full for a moment, nats-server answers no later write of a stream until it is restarted; it still
answers reads. This file decides what follows from the writes of one process, and from the reports of all;
`ops.nats.refusals` asks and reports.
"""

from typing import Final, Literal

from msgspec import Struct

# A stream counts as refusing when two or more writes had no answer over this time: a disk that was slow once is not
# full.
REFUSES_AFTER_S: Final = 4.0
# After this time without a write, it is unknown what would become of one.
FORGOTTEN_AFTER_S: Final = 60.0
# A report holds for this long; the process publishes it again every LOOK_EVERY_S.
HEARD_S: Final = 5.0

Why = Literal["silent", "limit"]
"""*silent*: writes are not answered. *limit*: JetStream says that its own limit is reached."""


class _Failing(Struct):
    since_s: float
    last_s: float
    count: int
    why: Why


class Writes:
    """What became of the writes of this process, by stream. Pure: `now_s` is any clock that only goes forward.

    1. A stream refuses when two or more writes failed, over `REFUSES_AFTER_S`, and none was stored since.
    2. A write that is stored ends that; so does a new connection, which is to another server, or to one that was
       restarted.
    3. Where the process has not tried for `FORGOTTEN_AFTER_S`, nothing is known.
    """

    def __init__(self) -> None:
        self._failing: dict[str, _Failing] = {}

    def failed(self, stream: str, why: Why, now_s: float) -> None:
        known = self._failing.get(stream)
        if known is None:
            self._failing[stream] = _Failing(now_s, now_s, 1, why)
        else:
            known.last_s, known.count, known.why = now_s, known.count + 1, why

    def __bool__(self) -> bool:
        """Whether any failed of late."""
        return bool(self._failing)

    def stored(self, stream: str) -> None:  # 2
        self._failing.pop(stream, None)

    def forget(self) -> None:  # 2
        self._failing.clear()

    def suspects(self, now_s: float) -> dict[str, Why]:
        """The streams that refuse writes, provided that the server answers a read of them now."""
        for stream, known in list(self._failing.items()):
            if now_s - known.last_s > FORGOTTEN_AFTER_S:  # 3
                del self._failing[stream]
        return {
            stream: known.why
            for stream, known in self._failing.items()
            if known.count > 1 and now_s - known.since_s >= REFUSES_AFTER_S  # 1
        }


class Refusals:
    """Which streams refuse writes, by the reports of all processes. Pure; a report holds for `HEARD_S`."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[Why, float, float]] = {}

    def hear(self, stream: str, why: Why, now_s: float) -> None:
        known = self._heard.get(stream)
        since_s = now_s if known is None or now_s - known[2] > HEARD_S else known[1]
        self._heard[stream] = (why, since_s, now_s)

    def now(self, now_s: float) -> dict[str, Why]:
        """The streams that refuse now, and why."""
        return {stream: why for stream, (why, _, last_s) in self._heard.items() if now_s - last_s <= HEARD_S}

    def silent_for_s(self, now_s: float) -> float:
        """The longest time for which a stream has been silent; 0 where none is."""
        silent = [stream for stream, why in self.now(now_s).items() if why == "silent"]
        return max((now_s - self._heard[stream][1] for stream in silent), default=0.0)
