"""What was observed in a run: plain data (`History`), and the watchers that record it.

Nothing here asks the product what it did. Calls are noted by the clients; records, queues and leaders by a link of the
watcher's own; slots by the kernel (`/proc`); videos by reading the store at the end.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import av
import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct

from contracts.lanes import Leadership
from contracts.tasks import GenerationTask, UnreadableTask, decode_task
from contracts.topology import LEADER, LEADER_KEY, TASKS, bucket_stream
from ops.nats.clock import parse_time
from ops.nats.entry import Entry
from ops.nats.link import NatsLink
from tests.kit.behind import client_of, js_of
from tests.kit.support import NatsServer, is_running

POLL_S: Final = 0.1
QUEUE_SAMPLE_S: Final = 0.25
HOST_SAMPLE_S: Final = 0.4

CallKind = Literal["submit", "cancel", "poll", "look"]
FaultKind = Literal[
    "kill-gateway",
    "stop-gateway",
    "restart-gateway",
    "kill-lane",
    "stop-lane",
    "kill-host",
    "stop-host",
    "kill-leader",
    "stop-leader",
    "restart-leader",
    "kill-supervisor",
    "stop-supervisor",
    "kill-nats",
    "stop-nats",
    "restart-nats",
    "store-full",
    "store-unwritable",
    "scratch-gone",
    "nats-disk-full",
    "consumer-deleted",
    "tail-lost",
    "bucket-recreated",
]


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of the invariants. *late_s* is how late a gateway may look at a task; later counts as never."""

    wait_limit_s: float
    attempts: int
    depth: int
    late_s: float


class Call(Struct, frozen=True, kw_only=True):
    """One HTTP call of a client, and its answer.

    *request* numbers what a client wants; retries with the same *key* share it. *status* is None where no answer came:
    *sent* then says whether a gateway may have read the call. *task_id* is the task that the answer named, if any. A
    `look` is what a gateway answered about a task at the end of the run.
    """

    request: int
    kind: CallKind
    gateway: str
    sent_at: datetime
    ended_at: datetime
    key: str | None = None
    sent: bool = True
    status: int | None = None
    code: str = ""
    limit: str = ""
    task_id: str = ""
    task_status: str = ""


class Revision(Struct, frozen=True, kw_only=True):
    """A record as stored, with its stream sequence and the server's time."""

    sequence: int
    at: datetime
    task: GenerationTask


class QueueSample(Struct, frozen=True, kw_only=True):
    """What a work stream held at *at*, by the server's clock: how many messages, and of which tasks."""

    at: datetime
    stream: str
    messages: int
    task_ids: tuple[str, ...]


class HostProcess(Struct, frozen=True, kw_only=True):
    """A pipeline host: the slot whose lock file it has open (None: no slot's), and the models whose weights it maps."""

    pid: int
    started: int
    slot: str | None
    models: tuple[str, ...]


class HostSample(Struct, frozen=True, kw_only=True):
    """Every pipeline host at *at*, and the holder of each slot's lock according to the kernel."""

    at: datetime
    holders: dict[str, int]
    hosts: tuple[HostProcess, ...]


class Term(Struct, frozen=True, kw_only=True):
    """The leader as of *at*, the server's time; None when the key had expired or was given back."""

    at: datetime
    worker: str | None
    pid: int | None


class Fault(Struct, frozen=True, kw_only=True):
    """What was done to which target, from *at* to *until* (for a kill: until the injector restarted it, if it did).

    *workers* are the workers that the fault killed: they could not clean up. What the server stored from *lost_since*
    to *until* is lost.
    """

    kind: FaultKind
    target: str
    at: datetime
    until: datetime
    workers: tuple[str, ...] = ()
    lost_since: datetime | None = None


class Artifact(Struct, frozen=True, kw_only=True):
    """A file of the store. *frames* is the number of frames that a decoder read; 0 when it does not play."""

    path: str
    bytes: int
    sha256: str
    frames: int


class Delivered(Struct, frozen=True):
    """A message that the receiver of webhooks was sent: its `webhook-id`, its task, and its type."""

    id: str
    task_id: str
    type: str


class History(Struct, frozen=True, kw_only=True):
    """All that was observed. *gaps* says in words what the watcher missed: with a gap, nothing is proven.

    *lost* are revisions that the server had stored and lost again. *missed* are the tasks whose record a gateway's
    watch did not bring, and its slow look found. *delivered* is what the receiver was sent; None without a receiver.
    """

    seed: int
    limits: Limits
    calls: tuple[Call, ...] = ()
    revisions: tuple[Revision, ...] = ()
    lost: tuple[Revision, ...] = ()
    queues: tuple[QueueSample, ...] = ()
    hosts: tuple[HostSample, ...] = ()
    terms: tuple[Term, ...] = ()
    faults: tuple[Fault, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    gaps: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    delivered: tuple[Delivered, ...] | None = None


class Watcher:
    """Reads every revision of every record, and samples the work streams, on a link of its own.

    It asks for one stream sequence after the other, so it misses nothing while it or the server is away. Only if more
    than 16 revisions of one task are stored before it comes back (the bucket's history), a sequence is gone, and `gaps`
    says so. `gaps` also says so when the server's last sequence went back.
    """

    def __init__(self, link: NatsLink, streams: Sequence[str]) -> None:
        self._link = link
        self._streams = streams
        self._next = 1
        self.revisions: list[Revision] = []
        self.lost: list[Revision] = []
        self._losses = 0
        self.latest: dict[str, GenerationTask] = {}
        self.queues: list[QueueSample] = []
        self.terms: list[Term] = []
        self.leader: Leadership | None = None
        self.gaps: list[str] = []

    async def run(self) -> None:
        """Watches until cancelled."""
        await self._link.watches.start(LEADER, self._on_leader)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_for_ever())
            group.create_task(self._sample_for_ever())

    async def catch_up(self) -> None:
        """Reads up to the last revision there is."""
        losses = self._losses
        last = await self._last(self._link)
        if losses != self._losses:
            return  # the answer is from before the loss
        if last < self._next - 1:
            self.gaps.append(f"the server went back from revision {self._next - 1} to {last}")
        await self._read_to(last, losses, self._link)

    async def went_back(self, since: datetime, had: Path) -> None:
        """The server, which is down now, starts again without what it stored from *since* on; *had* has all of it.

        *had* is a folder that nats-server can be started on. The watcher reads there what it had not read in time: a
        busy machine stores faster than it reads, and a task that is lost unseen would seem never to have existed.
        """
        self._losses += 1  # answers that are still on their way no longer count
        server = NatsServer(had)
        await asyncio.to_thread(server.start)
        link = await NatsLink.connect(server.url, name="chaos-lost")
        await self._read_to(await self._last(link), self._losses, link)
        await link.close()
        await asyncio.to_thread(server.stop)
        self.lost += [revision for revision in self.revisions if revision.at >= since]
        self.revisions = [revision for revision in self.revisions if revision.at < since]
        self.latest = {revision.task.id: revision.task for revision in self.revisions}
        self._next = 1 + max((revision.sequence for revision in self.revisions), default=0)

    def all_ended(self) -> bool:
        return all(task.status.is_terminal for task in self.latest.values())

    async def sample(self) -> None:
        """One look at every work stream."""
        for stream in self._streams:
            info = await self._stream_info(stream, self._link)
            subjects: dict[str, int] = info["state"].get("subjects") or {}
            self.queues.append(
                QueueSample(
                    at=parse_time(info["ts"]),
                    stream=stream,
                    messages=info["state"]["messages"],
                    task_ids=tuple(subject.rsplit(".", 1)[-1] for subject in subjects),
                )
            )

    async def _read_for_ever(self) -> None:
        while True:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, ValueError):
                await self.catch_up()
            await asyncio.sleep(POLL_S)

    async def _sample_for_ever(self) -> None:
        while True:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, ValueError):
                await self.sample()
            await asyncio.sleep(QUEUE_SAMPLE_S)

    async def _last(self, link: NatsLink) -> int:
        info = await self._stream_info(bucket_stream(TASKS), link)
        return int(info["state"]["last_seq"])

    async def _read_to(self, last: int, losses: int, link: NatsLink) -> None:
        while self._next <= last:
            await self._read(self._next, losses, link)
            if losses != self._losses:
                return  # the answer is from before the loss
            self._next += 1

    async def _read(self, sequence: int, losses: int, link: NatsLink) -> None:
        try:
            stored = await js_of(link).get_msg(bucket_stream(TASKS), seq=sequence)
        except nats.js.errors.NotFoundError:
            if losses != self._losses:
                return
            self.gaps.append(f"revision {sequence} was gone before it was read")
            return
        assert stored.time is not None
        if losses != self._losses:
            return
        try:
            task = decode_task(stored.data or b"")
        except UnreadableTask as error:
            self.gaps.append(f"revision {sequence} cannot be read: {error}")
            return
        self.revisions.append(Revision(sequence=sequence, at=stored.time, task=task))
        self.latest[task.id] = task

    async def _stream_info(self, stream: str, link: NatsLink) -> dict[str, Any]:
        request = json.dumps({"subjects_filter": ">"}) if stream in self._streams else ""
        reply = await client_of(link).request(f"$JS.API.STREAM.INFO.{stream}", request.encode(), timeout=2)
        answer: dict[str, Any] = json.loads(reply.data)
        if "state" not in answer:
            raise ValueError(f"{stream}: {answer.get('error')}")
        return answer

    def _on_leader(self, entry: Entry) -> None:
        if entry.key != LEADER_KEY:
            return  # the gateway that delivers webhooks
        value = None if entry.value is None else msgspec.json.decode(entry.value, type=Leadership)
        owners = [None if leader is None else leader.owner for leader in (self.leader, value)]
        if owners[0] != owners[1]:
            worker, pid = (None, None) if value is None else (value.worker, value.pid)
            self.terms.append(Term(at=entry.time, worker=worker, pid=pid))
        self.leader = value


class HostWatcher:
    """Looks at every pipeline host of one data folder, through /proc."""

    def __init__(self, data_dir: Path) -> None:
        self._locks = f"{data_dir}/locks/"
        self._models = f"{data_dir}/models/"
        self.samples: list[HostSample] = []

    async def run(self) -> None:
        """Samples until cancelled."""
        while True:
            self.samples.append(await asyncio.to_thread(self.look))
            await asyncio.sleep(HOST_SAMPLE_S)

    def look(self) -> HostSample:
        """The hosts now. A host that ends meanwhile may be left out."""
        hosts = tuple(host for pid in _host_pids() if (host := self._host(pid)) is not None)
        return HostSample(at=datetime.now(UTC), holders=self._holders(), hosts=hosts)

    def _host(self, pid: int) -> HostProcess | None:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
            started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
            slot = next(self._locks_open(pid), None)
        except OSError:
            return None
        models = {line.split(self._models, 1)[1].split("/", 1)[0] for line in maps.splitlines() if self._models in line}
        if not models and slot is None:  # a fork server, or a host of another system
            return None
        return HostProcess(pid=pid, started=started, slot=slot, models=tuple(sorted(models)))

    def _locks_open(self, pid: int) -> Iterator[str]:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                place = os.readlink(entry.path)
                if place.startswith(self._locks):
                    yield Path(place).stem

    def _holders(self) -> dict[str, int]:
        slots = {path.stat().st_ino: path.stem for path in Path(self._locks).glob("*.lock")}
        holders = {}
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and (slot := slots.get(int(words[5].rsplit(":", 1)[1]))) is not None:
                holders[slot] = int(words[4])
        return holders


def _host_pids() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = Path(entry.path, "cmdline").read_bytes()
                if b"forkserver" in command and is_running(int(entry.name)):
                    yield int(entry.name)


def read_store(folder: Path) -> tuple[Artifact, ...]:
    """Every object of the store in *folder*. Videos are decoded, whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = str(path.relative_to(folder))
            frames = frames_of(path) if name.startswith("videos/") else 0
            sha256 = hashlib.sha256(content).hexdigest()
            found.append(Artifact(path=name, bytes=len(content), sha256=sha256, frames=frames))
    return tuple(found)


def frames_of(path: Path) -> int:
    """How many frames a decoder reads from the video; 0 when the file is no video."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError):
        return 0
