"""`warmlane` with a bug planted: `python -m tests.faults.planted PLANT ROLE …`, for one process and all that it starts.

Each bug replaces one rule of the protocol (design §4, §7) by what a developer might have written in its place. The
checker has to find every one of them; `PLANTED` says with which seed and faults it did, and which invariant caught it.
"""

import asyncio
import os
import signal
import sys
import zlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from nats.aio.msg import Msg

from contracts.tasks import GenerationTask, TaskStatus, encode_task
from contracts.topology import work_subject
from ops import cli
from ops.lanes import providers as lane_providers
from ops.nats.errors import StreamFull
from ops.nats.pull import ack_sync
from tests.faults.fleet import planted_command
from tests.faults.history import FaultKind

FORK_SERVER: Final = "forkserver"
# In one of this many claims the worker dies between its ack and its compare-and-set.
DIES_ONCE_IN: Final = 5


class Plant(Struct, frozen=True, kw_only=True):
    """A bug, the run that shows it, and the invariant of design §4 that it breaks."""

    bug: str
    plant: Callable[[], None]
    rule: int
    seed: int
    seconds: float
    or_rule: int | None = None
    """Another invariant that the bug may break instead on a slow machine."""
    faults: tuple[FaultKind, ...] = ()
    lasts_s: float | None = None
    """How long each fault lasts; None: as long as the seed says."""
    tasks_per_s: float = 8.0
    lanes_off: bool = False
    """Whether an operator sends every request to the degraded worker."""


def ack_before_cas() -> None:
    """A worker acks the message before its claim is stored. Now and then it dies in between."""
    from lane_worker.runtime.loop import WorkLoop

    serve = WorkLoop._serve

    async def acked_first(self: WorkLoop, message: Msg, stop: asyncio.Event) -> None:
        await ack_sync(message)
        if zlib.crc32(message.subject.encode()) % DIES_ONCE_IN == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await serve(self, message, stop)

    _replace(WorkLoop, "_serve", acked_first)


def video_before_cas() -> None:
    """A video counts as published once it is stored: a worker that lost its task does not take it back."""
    from lane_worker.runtime.settling import Settlement

    async def keep(self: Settlement, record: object) -> None:
        """Leaves the video where it is."""

    _replace(Settlement, "discard_video", keep)


def no_epoch_check() -> None:
    """A worker whose write was refused reads the newest revision and overwrites it, whoever owns the task by then."""
    from lane_worker.runtime.held import HeldTask, OwnershipLost

    async def adopt(self: HeldTask, written: bytes | None) -> bool:
        entry = await self._read()
        if entry is None or entry.value is None:
            raise OwnershipLost(None)
        self._revision = entry.revision
        return entry.value == written

    _replace(HeldTask, "_refresh", adopt)


def waiting_forgotten() -> None:
    """No gateway looks at a task that waits."""
    _forget(TaskStatus.PENDING)


def running_forgotten() -> None:
    """No gateway looks at a task that runs."""
    _forget(TaskStatus.PROCESSING)


def _forget(status: TaskStatus) -> None:
    from gateway.boards.deadlines import Deadlines

    take_in = Deadlines.take_in

    def forgetful(self: Deadlines, task: GenerationTask) -> None:
        if task.status is status:
            self.forget(task.id)
        else:
            take_in(self, task)

    _replace(Deadlines, "take_in", forgetful)


def slot_without_proof() -> None:
    """A worker takes released memory to be free, without a proof."""
    from lane_worker.residence.proof import Given, Proof, Prover

    async def believe(self: Prover, given: Given, *, is_used: bool) -> Proof:
        return Proof(given.receipt)

    _replace(Prover, "prove", believe)


def slot_without_lock() -> None:
    """A process opens the lock file of a slot, and does not lock it."""
    from lane_worker.forking import slot

    def open_only(path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    _replace(slot, "_try_lock", open_only)


def refused_and_run() -> None:
    """A gateway queues a task that the degraded queue refuses for the lane all the same, and answers its caller 503."""
    from gateway.placing.queueing import Queueing

    publish = Queueing.publish

    async def sneak(self: Queueing, task: GenerationTask) -> Any:
        try:
            return await publish(self, task)
        except StreamFull:
            await self._link.messages.publish(work_subject("lane", task.model, task.id), encode_task(task))
            raise

    _replace(Queueing, "publish", sneak)


PLANTED: Final[dict[str, Plant]] = {
    "ack-before-cas": Plant(
        bug="the message is acked before the claim's compare-and-set", plant=ack_before_cas, rule=1, seed=1, seconds=6
    ),
    "running-forgotten": Plant(
        bug="no gateway looks at a task that runs",
        plant=running_forgotten,
        rule=1,
        seed=1,
        seconds=12,
        faults=("kill-leader", "kill-leader"),
        lanes_off=True,
    ),
    "video-before-cas": Plant(
        bug="a stored video counts as published, whoever wins the compare-and-set",
        plant=video_before_cas,
        rule=2,
        seed=1,
        seconds=10,
        faults=("stop-lane",),
    ),
    "no-epoch-check": Plant(
        bug="a worker writes over whatever revision is there",
        plant=no_epoch_check,
        rule=3,
        seed=1,
        seconds=10,
        faults=("stop-lane",),
    ),
    "waiting-forgotten": Plant(
        bug="no gateway looks at a task that waits",
        plant=waiting_forgotten,
        rule=4,
        or_rule=1,  # the worker ends the task late, or never, if it is not back before the run ends
        seed=1,
        seconds=8,
        faults=("stop-host",),
        lasts_s=14,
        lanes_off=True,
    ),
    "slot-without-proof": Plant(
        bug="the next pipeline is loaded before the last one is proven gone",
        plant=slot_without_proof,
        rule=5,
        seed=1,
        seconds=4,
    ),
    "slot-without-lock": Plant(
        bug="a slot is used without its lock", plant=slot_without_lock, rule=5, seed=1, seconds=3
    ),
    "refused-and-run": Plant(
        bug="a refused request is queued all the same",
        plant=refused_and_run,
        rule=6,
        seed=1,
        seconds=6,
        tasks_per_s=20,
        lanes_off=True,
    ),
}


def main() -> None:
    """Plants the bug in this process and in those that it starts, and runs the command."""
    name, role, *rest = sys.argv[1:]
    PLANTED[name].plant()
    _replace(lane_providers, "warmlane_command", lambda *arguments: [*planted_command(name), *arguments])
    if role == FORK_SERVER:
        from lane_worker.pipelines import forkserver

        sys.argv = [FORK_SERVER, *rest]
        forkserver.main()
        return
    if role in ("lane", "degraded"):
        from lane_worker.forking.fork_server import ForkServer

        ForkServer.__init__.__defaults__ = ((*planted_command(name), FORK_SERVER),)
    sys.argv = ["warmlane", role, *rest]
    cli.main()


def _replace(place: object, name: str, replacement: Any) -> None:
    original = getattr(place, name)  # AttributeError where the product has changed: then the plant has to follow
    setattr(place, name, wraps(original)(replacement))


if __name__ == "__main__":
    main()
