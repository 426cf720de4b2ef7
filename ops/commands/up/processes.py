"""The processes of a `warmlane up`: their arguments, their environment, and how they end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ops.artifact_place import without_secrets
from ops.commands.options import Shared, ordered, slowed, snapshotting
from ops.commands.up.setup import SystemSetup
from ops.ending import end
from ops.lanes.supervisor import DRAIN_EXTRA_S
from ops.machine.fork_socket import SHARED_FORK_SERVER, can_listen, importing, remove
from ops.machine.placement import slots
from ops.machine.processes import Process, warmlane_command
from ops.nats.access import NatsAccess, environment_for
from ops.nats.server import embedded_command
from ops.telemetry.export import METRICS_FOLDER, METRICS_LISTEN

STOP_S: Final = 10.0
# The supervisor kills lanes that do not drain. It has this much longer to do so.
SUPERVISOR_EXTRA_S: Final = 5.0
# How long the shared fork server may take to accept workers. On an idle machine it takes a few tenths of a second.
FORKS_LISTEN_S: Final = 5.0

OnDeath = Callable[[Process, int, float], None]


class Processes:
    """The processes, made and not started: the `Stack` runs each when its turn comes."""

    def __init__(
        self, setup: SystemSetup, nats: NatsAccess, secrets: Mapping[str, str], *, store_lock: int, on_death: OnDeath
    ) -> None:
        """*secrets* are the passwords of the server's users, *store_lock* is the descriptor of `holding_store`.

        Raises click.ClickException where this machine has no slot for the degraded worker.
        """
        self._setup, self._on_death = setup, on_death
        self._shared = Shared(nats, setup.data_dir, setup.catalog.profile, setup.settings, setup.artifacts)
        self._forks = setup.data_dir / "forks"
        self.metrics: Path = setup.data_dir / "metrics"
        self.shares_forks = (
            SHARED_FORK_SERVER not in os.environ and hasattr(os, "pidfd_open") and can_listen(self._forks)
        )
        on_store = embedded_command(setup.data_dir, setup.nats_port)
        self.server = self._process("nats-server", on_store, secrets=secrets, inherits=[store_lock], stores=False)
        self.forks = self._process("fork-server", warmlane_command("fork-server", str(self._forks)), stores=False)
        self.gateway = self._process("gateway", warmlane_command("gateway", *self._gateway_arguments()))
        self.supervisor = self._process("supervisor", warmlane_command("supervisor", *self._supervisor_arguments()))
        slot = slots(setup.catalog.profile, lanes=setup.lane_count, gpus=setup.gpus).degraded
        self.degraded = [
            self._process(name, warmlane_command("degraded", *self._degraded_arguments(name, slot)))
            for name in (f"degraded-{number}" for number in range(1 + setup.standbys))
        ]

    def failing(self) -> list[str]:
        """The names of the processes that end again and again."""
        parts = (self.server, self.forks, self.gateway, self.supervisor, *self.degraded)
        return [part.name for part in parts if part.is_failing]

    def forget_forks(self) -> None:
        """Removes the socket of the shared fork server, if there is one, even one that an earlier run left."""
        if self.shares_forks:
            remove(self._forks)

    async def forks_listen(self) -> None:
        """Returns once workers can find the shared fork server, or after FORKS_LISTEN_S.

        A worker that finds no server imports torch itself, which the shared server is there to spare it.
        """
        if not self.shares_forks:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FORKS_LISTEN_S):
                while True:
                    if self._forks.exists() or importing(self._forks).exists():
                        return
                    await asyncio.sleep(0.02)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Lets the workers finish the tasks in hand; *hurry* kills processes that still drain. nats-server and the fork
        server go on."""
        windows, models = self._setup.catalog.windows, self._setup.catalog.models
        within_s = windows.drains_s(models.values()) + DRAIN_EXTRA_S

        async def kill_in_a_hurry() -> None:
            await hurry.wait()
            for process in (self.gateway, *self.degraded):
                process.kill()
            self.supervisor.send(signal.SIGQUIT)

        hurrying = asyncio.create_task(kill_in_a_hurry())
        await asyncio.gather(
            self.gateway.stop(within_s=STOP_S),
            self.supervisor.stop(within_s=within_s + SUPERVISOR_EXTRA_S),
            *(worker.stop(within_s=within_s) for worker in self.degraded),
        )
        await end(hurrying)

    async def end(self) -> None:
        """Ends every process. nats-server is the last, so that the others may still write."""
        for process in (self.gateway, *self.degraded, self.forks):
            process.kill()
        self.supervisor.send(signal.SIGQUIT)
        await self.supervisor.stop(within_s=STOP_S)
        await self.server.stop(within_s=STOP_S)
        self.forget_forks()

    def _process(
        self,
        name: str,
        command: list[str],
        *,
        secrets: Mapping[str, str] | None = None,
        inherits: Sequence[int] = (),
        stores: bool = True,
    ) -> Process:
        # Each process takes its password from its own file: a password in the environment is for another server. One
        # port for metrics cannot serve every worker: the gateway's page has the metrics of all.
        inherited = {variable: os.environ[variable] for variable in os.environ.keys() - set(METRICS_LISTEN)}
        inherited = inherited if stores else without_secrets(inherited)
        environment = environment_for(None, inherited) | dict(secrets or {}) | {METRICS_FOLDER: str(self.metrics)}
        if self.shares_forks:
            environment[SHARED_FORK_SERVER] = str(self._forks)
        return Process(
            name,
            command,
            log_file=self._setup.log_file(name),
            on_death=self._on_death,
            env=environment,
            inherits=inherits,
            log_max_bytes=self._setup.log_max_bytes,
        )

    def _gateway_arguments(self) -> Iterator[str]:
        setup = self._setup
        yield from ("--host", setup.host.address, "--port", str(setup.port), "--keep", f"{setup.keep_s:g}s")
        yield from ("--lanes", self._lanes_argument())
        for origin in setup.cors_origins:
            yield from ("--cors-origin", origin)
        for network in setup.webhooks_allow:
            yield from ("--webhooks-allow", str(network))
        yield from setup.images.arguments()
        yield from setup.behind.arguments()
        yield from setup.overload.arguments()
        if setup.links_last_s is not None:
            yield from ("--download-links", f"{setup.links_last_s:g}s")
        if setup.tls is not None:
            yield from setup.tls.arguments()
        yield from self._shared.arguments()

    def _supervisor_arguments(self) -> Iterator[str]:
        setup = self._setup
        yield from ("--log-size", f"{setup.log_max_bytes / 1024:g}KB")
        yield from ("--lanes", self._lanes_argument())
        if setup.gpus is not None:
            yield from ("--gpus", str(setup.gpus))
        if setup.quota_file is not None:
            yield from ("--quota", str(setup.quota_file))
        yield from self._worker_arguments()

    def _degraded_arguments(self, name: str, slot: str) -> Iterator[str]:
        yield from ("--name", name, "--slot", slot, *ordered(self._setup.degraded_order))
        yield from self._worker_arguments()

    def _worker_arguments(self) -> Iterator[str]:
        yield from slowed(self._setup.step_seconds, self._setup.load_seconds)
        yield from snapshotting(self._setup.oom_snapshots)
        yield from self._shared.arguments()

    def _lanes_argument(self) -> str:
        return ",".join(f"{model}={count}" for model, count in self._setup.lanes.items())
