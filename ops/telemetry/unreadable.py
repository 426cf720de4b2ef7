"""Counts what cannot be read, and logs it once, so that one bad message does not stop a process that serves good
ones."""

from collections import OrderedDict
from typing import Final, Literal, get_args

import structlog

from ops.telemetry.metrics import unreadable

Kind = Literal[
    "task",
    "record",
    "heartbeat",
    "slot",
    "leadership",
    "fallback_episode",
    "cold_start",
    "api_key",
    "webhook_endpoint",
    "webhook_delivery",
    "entry",
]
Role = Literal["gateway", "lane", "degraded", "supervisor"]
_WORKERS: Final[tuple[Kind, ...]] = ("task", "record", "slot", "entry")
# What a process of each role reads.
READ: Final[dict[Role, tuple[Kind, ...]]] = {
    "gateway": tuple(kind for kind in get_args(Kind) if kind != "task"),
    "lane": (*_WORKERS, "heartbeat"),
    "degraded": _WORKERS,
    "supervisor": ("cold_start", "entry"),
}
KNOWN_MAX: Final = 1_024
WHERE_MAX_CHARS: Final = 200

log = structlog.get_logger("unreadable")


class Unreadables:
    """The messages and entries that this process could not read."""

    def __init__(self) -> None:
        self.count = 0
        self._known: OrderedDict[tuple[Kind, str, int], None] = OrderedDict()

    def report(self, kind: Kind, where: str, error: Exception | str, *, revision: int = 0) -> None:
        """Counts and logs that a *kind* of thing at *where* (a subject or a key) cannot be read, with the text of
        *error*.

        That text must hold nothing of the content; the text of `contracts.wire.Unreadable` holds none. *revision* is
        the entry's. An entry that comes again at the same revision is neither counted nor logged again.
        """
        known = (kind, where, revision)
        if revision and known in self._known:
            self._known.move_to_end(known)
            return
        self._known[known] = None
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        self.count += 1
        unreadable.add(kind)
        log.error(
            "unreadable",
            kind=kind,
            where=where[:WHERE_MAX_CHARS],
            revision=revision or None,
            reason=str(error),
            count=self.count,
        )


unreadables = Unreadables()


def begin(role: Role) -> None:
    """The metric stands at 0 for every kind that a process of *role* reads, so that the first one shows."""
    for kind in READ[role]:
        unreadable.begin(kind)
