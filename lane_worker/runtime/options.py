"""What a worker of either kind is given on its command line."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from msgspec import Struct

from contracts.settings import Catalog, load_settings
from lane_worker.runtime.assembly import Setup
from lane_worker.runtime.process import Surroundings
from ops.artifact_place import ArtifactPlace
from ops.commands.artifact_options import artifacts_option, place_in
from ops.commands.nats_options import nats_options
from ops.commands.options import (
    data_dir_option,
    load_seconds_option,
    metrics_options,
    name_option,
    oom_snapshots_option,
    profile_option,
    settings_option,
    slot_option,
    step_seconds_option,
)
from ops.machine.placement import given_slot
from ops.nats.access import NatsAccess, Role
from ops.telemetry.export import Listen


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """As given; *slot* is a slot of this machine, and *data_dir* absolute."""

    slot: str
    name: str | None
    nats: NatsAccess
    data_dir: Path
    artifacts: ArtifactPlace
    settings: Path | None
    profile: str
    step_seconds: float
    load_seconds: float
    oom_snapshots: int
    listen: Listen | None

    def catalog(self) -> Catalog:
        """Raises SettingsError."""
        return load_settings(self.settings).catalog(self.profile)

    def setup(self, here: Surroundings, catalog: Catalog, *, name: str) -> Setup:
        """What the worker *name* is put together from."""
        return Setup(
            here.link,
            here.artifacts,
            catalog,
            name=name,
            slot=self.slot,
            data_dir=self.data_dir,
            step_seconds=self.step_seconds,
            load_seconds=self.load_seconds,
            oom_snapshots=self.oom_snapshots,
        )


def worker_options(role: Role, *, name_help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a worker that connects to nats-server as *role*. The command gets them as *given*."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @slot_option
        @name_option(name_help)
        @nats_options(role)
        @data_dir_option
        @artifacts_option
        @settings_option
        @profile_option
        @step_seconds_option
        @load_seconds_option
        @oom_snapshots_option
        @metrics_options
        @wraps(function)
        def command(
            *args: Any,
            slot: str,
            name: str | None,
            nats: NatsAccess,
            data_dir: Path,
            artifacts: ArtifactPlace | None,
            settings: Path | None,
            profile: str,
            step_seconds: float,
            load_seconds: float,
            oom_snapshots: int,
            listen: Listen | None,
            **more: Any,
        ) -> Any:
            given = WorkerOptions(
                slot=given_slot(slot, profile),
                name=name,
                nats=nats,
                data_dir=data_dir.absolute(),
                artifacts=place_in(data_dir.absolute(), artifacts),
                settings=settings,
                profile=profile,
                step_seconds=step_seconds,
                load_seconds=load_seconds,
                oom_snapshots=oom_snapshots,
                listen=listen,
            )
            return function(*args, given=given, **more)

        return command

    return decorate
