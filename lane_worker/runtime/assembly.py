"""Puts a worker together: what both kinds of worker are made of, from one set of values."""

import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec import Struct

from contracts.lanes import SlotState
from contracts.settings import Catalog, ModelEntry
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import OOM_FOLDER, Host
from lane_worker.forking.host_messages import Role
from lane_worker.residence.residence import Residence
from lane_worker.runtime.distrust import Distrust
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.loop import WorkLoop
from lane_worker.runtime.outcome import Runner
from lane_worker.runtime.scratch import Scratch
from lane_worker.runtime.slot_display import SlotDisplay
from lane_worker.runtime.source import Source
from ops.artifacts import Artifacts
from ops.machine.memory import probe_for
from ops.nats.link import NatsLink
from ops.telemetry.metrics import ENDED_BY_WORKERS, begin_tasks, memory_cleanups


class Setup(Struct, frozen=True):
    """What a worker is given, whatever it serves. *name* is unique and stable; *slot* is where its pipeline lies."""

    link: NatsLink
    artifacts: Artifacts
    catalog: Catalog
    name: str
    slot: str
    data_dir: Path
    step_seconds: float = 0.0
    load_seconds: float = 0.0
    oom_snapshots: int = 0


class Parts(Struct, frozen=True):
    """What a worker is made of. *owner* is this process, as records name it."""

    owner: str
    scratch: Scratch
    host: Host
    display: SlotDisplay
    residence: Residence
    runner: HostRunner
    distrust: Distrust
    loop: WorkLoop


def assemble(
    setup: Setup,
    models: Mapping[str, ModelEntry],
    *,
    role: Role,
    stream: str,
    ordered: Callable[[str, Residence, Runner], tuple[Source, Runner]],
    fork_server: ForkServer | None = None,
    on_wait: Callable[[str], None] | None = None,
    on_busy: Callable[[bool], None] = lambda _: None,
) -> Parts:
    """The parts of a worker that serves *models* from *stream*. Nothing runs yet.

    *ordered* is called with the owner, the residence and the runner, and returns where the messages come from and the
    runner that runs them.
    *on_wait* is called with the reason why nothing is loaded yet; without it, the slot's detail says so.
    """
    owner = uuid.uuid4().hex
    scratch = Scratch(setup.data_dir, slot=setup.slot, owner=owner)
    host = Host(
        slot=setup.slot,
        role=role,
        lock_dir=setup.data_dir / "locks",
        models_dir=setup.data_dir / "models",
        step_seconds=setup.step_seconds,
        load_seconds=setup.load_seconds,
        fork_server=fork_server,
        oom_dir=setup.data_dir / OOM_FOLDER,
        oom_snapshots=setup.oom_snapshots,
        worker=setup.name,
    )
    display = SlotDisplay(setup.link, slot=setup.slot, worker=setup.name)
    residence = Residence(
        host=host,
        slot=setup.slot,
        models=models,
        probe=probe_for(setup.slot, setup.catalog.tolerances),
        on_state=display.show,
        on_wait=on_wait or (lambda detail: display.show(SlotState.EMPTY, None, detail)),
    )
    runner = HostRunner(residence=residence, models=models, slot=setup.slot, scratch=scratch.folder)
    distrust = Distrust(runner, setup.slot, renew_after=setup.catalog.warmth.renew_after_failures)
    source, runs = ordered(owner, residence, runner)
    loop = WorkLoop(
        link=setup.link,
        artifacts=setup.artifacts,
        stream=stream,
        owner=owner,
        worker=setup.name,
        windows=setup.catalog.windows,
        runner=runs,
        scratch=scratch,
        on_busy=on_busy,
        source=source,
    )
    return Parts(owner, scratch, host, display, residence, runner, distrust, loop)


async def open_up(parts: Parts, models: Collection[str], *, role: Role) -> None:
    """Prepares a worker of *models* to serve: makes the folder of its files, sets its counts to 0, and reads its slot's
    entry. Raises OSError, TransportUnavailable."""
    parts.scratch.ensure()
    begin_tasks(models, role, ENDED_BY_WORKERS)
    for model in models:
        memory_cleanups.begin(model, "done")
    parts.distrust.begin()
    await parts.display.start()
