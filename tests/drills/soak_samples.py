"""What `make soak` samples of a running system: memory, open files, streams and buckets, folders."""

import asyncio
import contextlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
from msgspec import Struct

from contracts.topology import TASKS, Topology, bucket_stream
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from tests.kit.behind import js_of

# Not every sample lists the thousands of files.
FOLDERS_EVERY: Final = 5
# Streams that hold something for every recent task; all others are added up.
LARGE: Final = frozenset({bucket_stream(TASKS)})
OTHERS: Final = "all other streams and buckets"
ROLES: Final = ("gateway", "supervisor", "nats-server")
FORK_SERVER: Final = "'s fork server"
HOST: Final = "'s host"


class Sample(Struct, frozen=True):
    """One moment: seconds since the start, tasks accepted until then, and a value for each series.

    A series is named by kind and owner: `rss gateway`, `files gateway`, `cpu gateway`, `messages KV_tasks`,
    `bytes KV_tasks`, `disk nats`, `objects artifacts`.
    """

    at_s: float
    accepted: int
    values: Mapping[str, float]


class Sampler:
    """Samples the `warmlane up` of process *pid* in *data_dir*."""

    def __init__(self, pid: int, link: NatsLink, topology: Topology, data_dir: Path) -> None:
        self._pid, self._link, self._data_dir = pid, link, data_dir
        self._names = frozenset(topology.names)
        self._folders: Mapping[str, float] = {}
        self._begun_s = time.monotonic()
        self.samples: list[Sample] = []
        self._seen: dict[int, str] = {}

    def processes(self) -> Counter[str]:
        """How many processes of each kind were seen. Each counts once, as what it was last: until its exec, a new
        process looks like the one that started it."""
        return Counter(self._seen.values())

    async def take(self, accepted: int, *, last: bool = False) -> None:
        """Takes one more sample. Every fifth sample, and the *last* one, includes the folders."""
        values: defaultdict[str, float] = defaultdict(float)
        for name, process in labelled(self._pid):
            with contextlib.suppress(psutil.Error):
                values[f"rss {name}"] += process.memory_info().rss
                values[f"files {name}"] += process.num_fds()
                times = process.cpu_times()
                values[f"cpu {name}"] += times.user + times.system
                self._seen[process.pid] = name
        with contextlib.suppress(TransportUnavailable):
            for info in await js_of(self._link).streams_info():
                if info.config.name in self._names:
                    name = info.config.name if info.config.name in LARGE else OTHERS
                    values[f"messages {name}"] += info.state.messages
                    values[f"bytes {name}"] += info.state.bytes
        if last or len(self.samples) % FOLDERS_EVERY == 0:
            self._folders = await asyncio.to_thread(self._look_at_folders)
        at_s = time.monotonic() - self._begun_s
        self.samples.append(Sample(at_s, accepted, {**values, **self._folders}))

    def _look_at_folders(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for name in ("nats", "artifacts", "scratch", "logs"):
            count, size_bytes = weigh(self._data_dir / name)
            values |= {f"objects {name}": count, f"disk {name}": size_bytes}
        return values


def labelled(pid: int) -> Iterator[tuple[str, psutil.Process]]:
    """The processes of a `warmlane up`, each with its kind."""
    names: dict[int, str] = {pid: "warmlane up"}
    top = psutil.Process(pid)
    yield names[pid], top
    # parents come before their children
    for process in top.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            names[process.pid] = label(process.cmdline(), names.get(process.ppid(), ""))
            yield names[process.pid], process


def label(words: list[str], parent: str) -> str:
    """The kind of a process, by its command line and its parent's kind. Pure."""
    if parent.endswith(FORK_SERVER):
        return parent.removesuffix(FORK_SERVER) + HOST
    if "--name" in words:
        return words[words.index("--name") + 1]
    known = [role for role in ROLES if role in (Path(word).name for word in words)]
    if known:
        return known[0]
    return parent + FORK_SERVER if any("forkserver" in word for word in words) else f"a child of {parent}"


def weigh(folder: Path) -> tuple[int, int]:
    """How many files are below *folder*, and how many bytes of the disk they take."""
    count = size_bytes = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # the file may go meanwhile
                status = os.stat(os.path.join(place, file))  # a Path for each is slow
                count += 1
                size_bytes += status.st_blocks * 512
    return count, size_bytes


def thinned(samples: list[Sample], most: int) -> list[Sample]:
    """At most *most* of *samples*, evenly spread, the first and the last among them. Pure."""
    if len(samples) <= most:
        return samples
    return [samples[round(number * (len(samples) - 1) / (most - 1))] for number in range(most)]


def as_columns(samples: list[Sample]) -> dict[str, Any]:
    """The samples for a file: a list for each series, None where it had no value. Pure."""
    names = sorted({name for sample in samples for name in sample.values})
    return {
        "at_s": [round(sample.at_s, 1) for sample in samples],
        "accepted": [sample.accepted for sample in samples],
        "series": {name: [_whole(sample.values.get(name)) for sample in samples] for name in names},
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
