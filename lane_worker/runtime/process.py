"""A worker's process, from its start to its end. Shared by both kinds of worker."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import uvloop
from msgspec import Struct

from contracts.settings import SettingsError
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.outcome import HostLost, SlotTaken
from lane_worker.runtime.name import HeldName, NameHeld, holding_name, holding_slot
from ops.artifact_place import ArtifactPlace, open_artifacts
from ops.artifacts import Artifacts, StorageFailed
from ops.machine.nvml import DriverUnusable
from ops.machine.processes import LEAVE_FOR_QUOTA
from ops.nats.access import NatsAccess
from ops.nats.awaited import LeftWaiting, linked_once_there
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.nats.link import NatsLink
from ops.nats.link_health import reporting_on
from ops.telemetry.export import Listen, exporting
from ops.telemetry.service_manager import reporting_to_service_manager
from ops.telemetry.unreadable import Role


class Surroundings(Struct, frozen=True):
    """What surrounds a worker. SIGTERM and SIGINT set *stop*; LEAVE_FOR_QUOTA sets *for_quota*, and *stop* after it."""

    link: NatsLink
    artifacts: Artifacts
    stop: asyncio.Event
    for_quota: asyncio.Event


@asynccontextmanager
async def connected(
    nats: NatsAccess,
    *,
    role: Role,
    name: str,
    data_dir: Path,
    artifacts: ArtifactPlace,
    require: Callable[[NatsLink, HeldName], Awaitable[None]],
    slot: str | None = None,
) -> AsyncIterator[Surroundings]:
    """What surrounds a worker, once all of it is there.

    The process holds *name*, and for a lane its *slot*. Signals end it. The server has the right time, and what
    *require* asks for. The store of the *artifacts* takes what is written: no card spends minutes on a video that
    cannot be stored.

    It waits for a server, and for what `warmlane provision` makes there. Raises LeftWaiting for a signal meanwhile;
    NameHeld before anything is written, StorageFailed, and what else *require* raises.
    """
    stop, for_quota = asyncio.Event(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        held = await stack.enter_async_context(holding_name(data_dir, name))
        all_held = [held]
        if slot is not None:
            all_held.append(await stack.enter_async_context(holding_slot(data_dir, slot, name)))

        def leave() -> None:
            for each in all_held:
                each.leaves()
            stop.set()

        def leave_for_quota() -> None:
            for_quota.set()
            leave()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave)
        loop.add_signal_handler(LEAVE_FOR_QUOTA, leave_for_quota)
        store = await open_artifacts(artifacts, writes_videos=True)

        async def require_all(link: NatsLink) -> None:
            await require(link, held)
            await link.clock.require()

        link = await linked_once_there(nats, name=f"{role}-{name}", require=require_all, stop=stop)
        try:
            async with reporting_on(link, role):
                yield Surroundings(link, store, stop, for_quota)
        finally:
            await link.close()


def run_to_end(role: Role, work: Coroutine[Any, Any, None], *, instance: str, listen: Listen | None) -> None:
    """Runs *work*. Its spans and metrics go out under the name *instance*; `/metrics` is served where *listen* says.

    Raises click.ClickException for what ended it, where a user can put that right.
    """
    try:
        with reporting_to_service_manager(), exporting(role, instance=instance, listen=listen):
            uvloop.run(work)
    except LeftWaiting:
        return
    except (
        SettingsError,
        TransportUnavailable,
        UnusableServer,
        StorageFailed,
        DriverUnusable,
        AllocatorMisconfigured,
        NameHeld,
        SlotTaken,
        HostLost,
    ) as error:
        raise click.ClickException(str(error)) from error
