"""One page of metrics for all processes of a `warmlane up`, so that Prometheus has one target for each machine.

Each process answers on a socket in a folder that `up` names to all of them. The gateway asks every socket, and its
`/metrics` shows what they answered. Each series has the labels `job` and `instance` of its process, as the repository's
collector configuration gives them. A dead or suspended process is missing, and delays the page by ASK_S at most.
"""

import asyncio
import contextlib
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec import Struct
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, Collector

from contracts.nesting import MsgpackDecoder

# Longer than a process waits for its own event loop (`instruments.ANSWER_S`), and shorter than a scrape may take.
ASK_S: Final = 2.5
# `service.namespace/service.name`, as OpenTelemetry specifies for Prometheus.
JOB_PREFIX: Final = "warmlane/warmlane-"
_SEND_S: Final = 5.0

log = structlog.get_logger("metrics")


class Sample(Struct, frozen=True, array_like=True):
    """One line of a page."""

    name: str
    labels: dict[str, str]
    value: float


class Family(Struct, frozen=True, array_like=True):
    """The lines of one metric."""

    name: str
    description: str
    type: str
    samples: tuple[Sample, ...]


class ProcessPage(Struct, frozen=True):
    """What one process reports of itself. *began_s* is when it began to report, by the clock of the machine."""

    role: str
    instance: str
    began_s: float
    families: tuple[Family, ...]


def joined(pages: Iterable[ProcessPage]) -> list[Metric]:
    """The families of *pages* as one page, each sample with the `job` and the `instance` of its process. Pure.

    1. Of two processes with one name only the newer counts: it took the place of the other.
    2. Where two processes disagree on the type of a family, it has the type of the first.
    """
    newest: dict[tuple[str, str], ProcessPage] = {}
    for page in sorted(pages, key=lambda page: page.began_s):  # 1
        newest[page.role, page.instance] = page
    families: dict[str, Metric] = {}
    for page in sorted(newest.values(), key=lambda page: (page.role, page.instance)):
        process = {"job": JOB_PREFIX + page.role, "instance": page.instance}
        for family in page.families:
            of_all = families.setdefault(family.name, Metric(family.name, family.description, family.type))
            if of_all.type == family.type:  # 2
                for sample in family.samples:
                    of_all.add_sample(sample.name, sample.labels | process, sample.value)
    return list(families.values())


class _Joined(Collector):
    def __init__(self, pages: Iterable[ProcessPage]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        yield from joined(self._pages)


_PAGE: Final = MsgpackDecoder[ProcessPage](ProcessPage)


async def page_of_all(folder: Path) -> bytes:
    """What the processes that answer in *folder* report, in Prometheus' text format, within ASK_S."""
    sockets = await asyncio.to_thread(lambda: sorted(folder.glob("*.sock")))
    answers = await asyncio.gather(*map(_ask, sockets))
    pages = [answer for answer in answers if answer is not None]
    return await asyncio.to_thread(lambda: generate_latest(_Joined(pages)))


async def _ask(path: Path) -> ProcessPage | None:
    try:
        async with asyncio.timeout(ASK_S):
            with _short(path) as address:
                reader, writer = await asyncio.open_unix_connection(address)
            try:
                return _PAGE.decode(await reader.read(-1))
            finally:
                writer.close()
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # its process was killed: no other process will take this name
    except (OSError, TimeoutError, msgspec.DecodeError) as error:
        log.info("process_without_metrics", socket=path.name, error=str(error) or type(error).__name__)
    return None


def answer_in(folder: Path, role: str, instance: str) -> Callable[[], None]:
    """Answers in *folder* with what this process measures, from a thread, until the returned function is called. Raises
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}.sock"
    # the socket gets its name only when it listens: if a gateway's connection is refused, it takes the process for dead
    part = path.with_suffix(".part")
    for left in (path, part):
        left.unlink(missing_ok=True)
    server = _PageServer(part, role, instance)
    part.replace(path)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        path.unlink(missing_ok=True)
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class _PageServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, role: str, instance: str) -> None:
        self.role, self.instance, self.began_s = role, instance, time.time()
        with _short(path) as address:
            super().__init__(address, _PageAnswer)
        path.chmod(0o700)  # only processes of this user may ask

    def handle_error(self, request: object, client_address: object) -> None:
        log.info("metrics_not_sent", exc_info=True)  # the gateway that asked has gone


class _PageAnswer(socketserver.BaseRequestHandler):
    server: _PageServer

    def handle(self) -> None:
        page = ProcessPage(self.server.role, self.server.instance, self.server.began_s, tuple(_families()))
        self.request.settimeout(_SEND_S)
        self.request.sendall(msgspec.msgpack.encode(page))


def _families() -> Iterator[Family]:
    for metric in REGISTRY.collect():
        samples = tuple(Sample(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples)
        yield Family(metric.name, metric.documentation, metric.type, samples)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for *path* that is short enough for a socket, which allows about 100 bytes, however long the path is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        there = Path(f"/proc/self/fd/{folder}")
        yield str(there / path.name if there.exists() else path)
    finally:
        os.close(folder)
