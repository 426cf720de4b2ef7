"""A history by task, with what the invariants need to know of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

from msgspec import Struct

from contracts.tasks import GenerationTask
from ops.artifacts import task_id_of
from tests.faults.history import Artifact, Fault, History, Revision

# A gateway tries for 5 s to finish what it had begun; a worker's claim is shorter.
UNDER_WAY: Final = timedelta(seconds=7)
# This long after the server's return no gateway reports any more what the server has lost.
NOTICED: Final = timedelta(seconds=5)
LOST: Final = "lost: "
LIE: Final = "a gateway says "
SERVER_FAULTS: Final = ("kill-nats", "stop-nats", "restart-nats", "nats-disk-full", "consumer-deleted")
GATEWAY_FAULTS: Final = ("kill-gateway", "stop-gateway", "restart-gateway")
STORE_FAULTS: Final = ("store-full", "store-unwritable")


class Violation(Struct, frozen=True, order=True):
    """Invariant *rule* of design §4 does not hold for *subject* (a task, a stream, a slot).

    0: the history has gaps, or a gateway's watch missed a record.
    """

    rule: int
    subject: str
    text: str

    @property
    def of_all(self) -> bool:
        """Whether this must hold for every task, even for one of which the server lost something."""
        return self.text.startswith((LOST, LIE))


class Story:
    """A history, sorted for the questions that the rules ask."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.limits = history.limits

    @cached_property
    def lives(self) -> Mapping[str, Sequence[Revision]]:
        """The revisions of each task, in the order in which the server stored them."""
        lives = defaultdict(list)
        for revision in sorted(self.history.revisions, key=lambda revision: revision.sequence):
            lives[revision.task.id].append(revision)
        return lives

    @cached_property
    def videos(self) -> Mapping[str, Sequence[Artifact]]:
        """The videos of the store, by the task that their names bear."""
        videos = defaultdict(list)
        for artifact in self.history.artifacts:
            if artifact.path.startswith("videos/"):
                videos[task_id_of(artifact.path)].append(artifact)
        return videos

    @cached_property
    def torn(self) -> frozenset[str]:
        """The tasks of which the server lost something, or may have: a revision of each was stored in the lost time, or
        so soon after it that its move had begun before.

        Nothing that was seen of them is guaranteed: they may run twice, lack a message or a video, or be gone. But they
        end.
        """
        every = (*self.history.revisions, *self.history.lost)
        return frozenset(
            revision.task.id
            for fault in self.history.faults
            if fault.lost_since is not None
            for revision in every
            if fault.lost_since <= revision.at <= fault.until + UNDER_WAY
        )

    def may_be_lost(self, at: datetime) -> bool:
        """Whether an answer at *at* may be about something that the server has lost since, or came before the gateway
        had noticed a loss."""
        return any(
            fault.lost_since <= at <= fault.until + NOTICED
            for fault in self.history.faults
            if fault.lost_since is not None
        )

    def last(self, task_id: str) -> GenerationTask | None:
        life = self.lives.get(task_id)
        return life[-1].task if life else None

    def faults(self, kinds: Sequence[str], since: datetime, until: datetime) -> list[Fault]:
        """The faults of *kinds* that overlap the time from *since* to *until*."""
        return [
            fault for fault in self.history.faults if fault.kind in kinds and fault.at <= until and fault.until >= since
        ]
