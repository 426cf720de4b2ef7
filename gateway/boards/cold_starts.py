"""How long lanes take to become warm (KV `cold_starts`), and SC-006's share of them."""

from collections import deque
from collections.abc import Iterable
from typing import Final

import structlog

from contracts.lanes import ColdStart
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import STARTS
from ops.nats.link import NatsLink
from ops.telemetry import metrics

# SC-006: within ten minutes.
TARGET_S: Final = 600.0
STARTS_MAX: Final = 64

log = structlog.get_logger("cold_starts")


def share_within(starts: Iterable[ColdStart], target_s: float) -> float | None:
    """The share of *starts* that reached `warm` within *target_s*, 0 to 1; None when there were none.

    A start that gave up counts as one that did not reach it.
    """
    seconds = [start.seconds for start in starts]
    if not seconds:
        return None
    return sum(taken_s is not None and taken_s <= target_s for taken_s in seconds) / len(seconds)


class ColdStarts:
    """The newest cold starts of every model, 64 each. `start` it before use."""

    def __init__(self) -> None:
        self._starts: dict[str, deque[ColdStart]] = {}
        self._revisions: dict[str, int] = {}
        self._before: set[ColdStart] = set()
        self._is_live = False  # whether an entry is a start of just now, and not one from before this gateway

    async def start(self, link: NatsLink) -> None:
        """Watches the bucket; returns once what is there now has been seen. Raises TransportUnavailable."""
        await (await Bucket(link, STARTS).watch(self.on_entry, history=True, on_again=self._again)).wait()
        self._is_live = True

    def _again(self) -> None:
        self._before = set(self.newest_first())  # these are counted already
        self._starts.clear()
        self._revisions.clear()

    def on_entry(self, entry: Versioned[ColdStart]) -> None:
        """A lane became warm, or gave up."""
        known = self._revisions.get(entry.key)
        if entry.is_deleted or (known is not None and entry.revision <= known):
            return
        self._revisions[entry.key] = entry.revision
        start = entry.value
        if start is None:
            return
        self._starts.setdefault(start.model, deque(maxlen=STARTS_MAX)).append(start)
        if self._is_live and start not in self._before:
            metrics.cold_starts.add(start.model, "gave_up" if start.seconds is None else "warm")
            if start.seconds is not None:
                metrics.cold_start_duration.record(start.seconds, start.model)

    def newest_first(self) -> list[ColdStart]:
        """Every known start, of all models."""
        every = [start for starts in self._starts.values() for start in starts]
        return sorted(every, key=lambda start: start.ended_at, reverse=True)
