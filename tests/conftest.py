"""Fixtures of all tests: a real nats-server for one test, or a whole system for many."""

import gc
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from contracts.settings import Catalog, load_settings
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.telemetry.unreadable import unreadables
from tests.kit import reaper
from tests.kit.gate import Gate, gated_forks
from tests.kit.measured import Measured
from tests.kit.patient import connected
from tests.kit.support import (
    KEEP_S,
    ROGUE_HOST,
    SHARED_FOLDER,
    NatsServer,
    fork_server_at,
    settings_file,
    shared_folder,
    shared_forks,
)
from tests.kit.system import UpProcess
from tests.kit.tools import BUILT_BY

# The same setting as in the pipeline hosts, because tests compare their results. torch reads it when it is imported.
os.environ.setdefault("MKL_CBWR", "AUTO")

# If a shell starts the tests in the background, all of their processes ignore Ctrl-C, even those that a test
# interrupts. A signal that is caught here has its default handler again in a new process.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """The workers of pytest-xdist share what is started once for all tests. It ends with the process that starts the
    workers. Everything else that a worker starts ends with that worker."""
    reaper.watch()
    if not hasattr(config, "workerinput"):
        os.environ[SHARED_FOLDER] = str(shared_folder())


# Nearly all objects made from here until the tests are collected stay: a search for garbage takes a fifth of that time
gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but only among objects made from here on. So the cleanup of a pipeline, which
    collects garbage, need not search the objects of all imports each time.

    A test computes in its own process with one thread, as a pipeline host does: when other processes want the cores,
    two threads that wait for each other take twenty times as long."""
    gc.freeze()
    gc.enable()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    """The process ends, so the kernel takes back all memory at once: a search for garbage would be in vain."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """`make test` skips a test that needs a built tool; `make tools-test` runs tests marked `tools`. Without the mark
    neither would run such a test."""
    report = yield
    if report.skipped and BUILT_BY in str(report.longrepr) and item.get_closest_marker("tools") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs a tool that is built: mark it with @pytest.mark.tools"
    return report


@pytest.fixture
def catalog() -> Catalog:
    """The packaged settings, tiny profile."""
    return load_settings().catalog("tiny")


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running server with an empty store."""
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def link(nats_server: NatsServer, catalog: Catalog) -> AsyncIterator[NatsLink]:
    """A process's connection to a provisioned server."""
    own = await connected(nats_server.url)
    await provision(own, wanted(catalog, keep_s=KEEP_S))
    await own.close()
    link = await NatsLink.connect(nats_server.url, name="test")
    yield link
    await link.close()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `shared_forks` before the test awaits anything, because the import must not block the test's event loop.
    Workers in this process use the fork server too."""
    for name, value in shared_forks().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate that is closed."""
    return Gate(tmp_path)


@pytest.fixture(scope="session")
def rogue_forks() -> None:
    """As `forks`, for hosts that misbehave when a test asks them to."""
    fork_server_at(ROGUE_HOST)


@pytest.fixture(scope="session", autouse=True)
def measured() -> Measured:
    """The metrics of this process. It comes before any test: a command that a test runs in this process sets a
    provider too, and OpenTelemetry keeps the first one."""
    return Measured()


@pytest.fixture(autouse=True)
def unreadable_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets which entries earlier tests could not read: a process logs each such entry only once."""
    monkeypatch.setattr(unreadables, "_known", OrderedDict())


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A running system with a warm lane of each model, shared by a module's tests that break nothing.

    Few modules use it. A system that idles until all tests have ended would cost more than starting another one.
    """
    up = UpProcess(tmp_path_factory.mktemp("system"), **shared_forks())
    up.start()
    yield up
    up.stop()


@pytest.fixture(scope="module")
def slow_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """As `system`, but a step takes half a second, and a `Gate` can hold a task."""
    folder = tmp_path_factory.mktemp("slow")
    # only the process that is killed loses its lease, even where another one gets no core for seconds
    settings = settings_file(folder, reconnect_grace_s=1.0, heartbeat_s=1.0)
    up = UpProcess(folder, "--settings", str(settings), "--step-seconds", "0.5", **gated_forks())
    up.start()
    yield up
    up.stop()


@pytest.fixture(scope="session")
def heavy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines big enough to show in resident memory, with settings of their own: about 380 MB of weights each, made
    once.

    That is half of what `make swap` uses: three times the tolerance of the proof, in half of the time.
    """
    from tests.bench.peers.heavy import NARROW, make_pipelines

    folder = tmp_path_factory.mktemp("heavy")
    make_pipelines(folder, {"anisora": 5, "phr00t": 10}, NARROW)
    return folder
