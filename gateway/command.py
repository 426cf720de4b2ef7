"""`warmlane gateway`."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import click
import structlog
import uvicorn
import uvloop

from contracts.settings import SettingsError, load_settings
from gateway.app import create_app
from gateway.boards.storage import StorageWatch
from gateway.rules.addresses import allowing
from gateway.server.access_log import AccessLog
from gateway.server.connections import Connections, http_config
from gateway.server.gate import Gate
from gateway.server.limits import CONNECTIONS_MAX, Limits, connections_max, raise_fd_limit
from gateway.server.proxies import behind_proxies
from gateway.services import Services
from gateway.webhooks.sealing import KEY_VARIABLE, BadSealingKey
from gateway.webhooks.service import WebhookOptions
from ops.artifact_place import ArtifactPlace
from ops.artifacts import StorageFailed
from ops.commands.artifact_options import artifacts_option, links_option, require_links_possible
from ops.commands.behind import Behind, Network, behind_options, webhooks_allow_option
from ops.commands.images import ImageOptions, image_options
from ops.commands.nats_options import nats_options
from ops.commands.option_types import ListenHost
from ops.commands.options import (
    access_log_option,
    cors_origins_option,
    data_dir_option,
    host_option,
    keep_option,
    lanes_option,
    nats_storage_option,
    port_option,
    profile_option,
    require_kept_long_enough,
    settings_option,
    tls_cert_option,
    tls_key_option,
    trace_link_option,
    trace_reads_option,
)
from ops.commands.overload import OverloadOptions, overload_options
from ops.machine.placement import wanted_lanes
from ops.machine.ports import listener, why_not
from ops.machine.secret_variables import secret_in
from ops.machine.tls import tls_of
from ops.nats.access import NatsAccess
from ops.nats.awaited import LeftWaiting, once_there
from ops.nats.errors import TransportUnavailable, UnusableServer
from ops.telemetry.export import exporting, gateway_instance, has_endpoint
from ops.telemetry.logs import configure_logging
from ops.telemetry.probes import ProcessHealth, judged_by
from ops.telemetry.service_manager import reporting_to_service_manager

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

# How many containers may be made and not freed before the garbage collector looks at the youngest; Python's default is
# 700. Every request waits for such a look: 1 ms with this figure, 3 to 7 ms with ten times as many.
GARBAGE_AFTER: Final = 2_000

SERVES: Final = ProcessHealth(True, "serves")

log = structlog.get_logger("gateway")


class _GatewayServer(uvicorn.Server):
    """uvicorn with signals of our own.

    A signal first wakes the long polls and event streams, which would otherwise hold up the exit. It ends the serving
    and not the process: uvicorn's own handling raises the signal again, so that the code after `serve` would never run.
    """

    def __init__(self, config: uvicorn.Config, on_leave: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_leave = on_leave

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._leave, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _leave(self, number: int) -> None:
        self.on_leave()
        self.handle_exit(number, None)


@contextlib.asynccontextmanager
async def _served(
    config: uvicorn.Config, listening: socket.socket, gate: Gate, new_services: Callable[[], Services]
) -> AsyncIterator[Services]:
    """Serves behind the *gate* at first, and yields the services once they run. After the block it serves until a
    signal.

    Raises LeftWaiting if the signal came before the services ran, and whatever they raise when they cannot start.
    """

    async def begin() -> tuple[Services, contextlib.AsyncExitStack]:
        services = new_services()  # new ones at every try, without the state of an earlier try
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(services.running())
            return services, stack.pop_all()

    stop = asyncio.Event()
    server = _GatewayServer(config, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        services, running = await once_there(begin, stop=stop, on_wait=gate.wait_for)
        async with running:
            server.on_leave = services.stop
            if stop.is_set():
                raise LeftWaiting
            with judged_by(lambda: SERVES):
                yield services
                await serving
    finally:
        server.should_exit = True
        await serving


def settle_garbage() -> None:
    """From now on Python's garbage collector ignores what is in memory already, and runs less often.

    What a task leaves in memory is never part of a cycle (`gc=False` in `contracts/tasks.py`). Each collection of
    everything held up every request for 50 to 70 ms (docs/benchmarks/notes.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER, 20, 50)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises click.ClickException when the address is taken or not this machine's."""
    try:
        return listener(host, port)
    except OSError as error:
        option, host_option = "--port or WARMLANE_PORT", "--host or WARMLANE_HOST"
        raise click.ClickException(why_not(error, host, port, option=option, host_option=host_option)) from error


@click.command(
    epilog="Examples:\n\n  warmlane gateway\n\n  warmlane gateway --port 8080 --nats-url nats://127.0.0.1:4222\n\n"
    "  warmlane gateway --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem   (after `warmlane keys add`)\n\n"
    "  warmlane gateway --trusted-proxy 127.0.0.1   (behind the nginx of docs/operate/behind-nginx.md)"
)
@host_option
@port_option
@nats_options("gateway")
@data_dir_option
@artifacts_option
@links_option
@settings_option
@profile_option
@lanes_option
@keep_option
@nats_storage_option
@cors_origins_option
@trace_reads_option
@access_log_option
@trace_link_option
@webhooks_allow_option
@image_options
@behind_options
@overload_options
@tls_cert_option
@tls_key_option
def command(
    host: ListenHost,
    port: int,
    nats: NatsAccess,
    data_dir: Path,
    artifacts: ArtifactPlace | None,
    links_last_s: float | None,
    settings: Path | None,
    profile: str,
    lanes: dict[str, int] | None,
    keep_s: float,
    nats_storage_bytes: int,
    cors_origins: tuple[str, ...],
    trace_reads: bool,
    access_log: str,
    jaeger_url: str | None,
    webhooks_allow: tuple[Network, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    behind: Behind,
    overload: OverloadOptions,
    images: ImageOptions,
) -> None:
    """Serve the HTTP API. Any number of gateways can run on the same nats-server and artifact store."""
    require_links_possible(links_last_s, artifacts)
    tls = tls_of(tls_cert, tls_key)
    configure_logging("gateway")

    async def run() -> None:
        catalog = load_settings(settings).catalog(profile)
        catalog = overload.on(catalog.with_lanes(wanted_lanes(lanes, catalog)))
        require_kept_long_enough(keep_s, catalog.windows)
        listening = listen(host.address, port)
        limits = Limits(connections_max=connections_max(CONNECTIONS_MAX, raise_fd_limit()))
        requests = AccessLog(logs_all=access_log == "all")
        gate = Gate(catalog.models)
        served = behind_proxies(requests.around(gate), behind.root_path, behind.trusted)
        config = http_config(served, Connections(limits, requests), tls=None if tls is None else tls.context)

        def new_services() -> Services:
            return Services(
                catalog=catalog,
                nats=nats,
                artifacts_dir=data_dir / "artifacts",
                artifacts=artifacts,
                links_last_s=links_last_s,
                keep_s=keep_s,
                storage=StorageWatch(limit_bytes=nats_storage_bytes, store=data_dir / "nats"),
                opens_without_keys=host.is_loopback,
                jaeger_url=jaeger_url,
                webhooks=WebhookOptions(data_dir, allowing(webhooks_allow), secret_in(os.environ, KEY_VARIABLE)),
                images=images,
            )

        async with _served(config, listening, gate, new_services) as services:
            app = create_app(
                services,
                cors_origins=cors_origins,
                allowed_hosts=behind.allowed_hosts,
                observes_http=has_endpoint("traces") or has_endpoint("metrics"),
                traces_reads=trace_reads,
            )
            if tls is None and not host.is_loopback:
                log.warning("no_tls", risk="keys and videos can be read in transit", advice="--tls-cert and --tls-key")
            if behind.allowed_hosts and services.keys.is_open:
                log.warning(
                    "open_to_others",
                    risk="whoever reaches it by these names may do everything",
                    hosts=behind.allowed_hosts,
                    advice="warmlane keys add",
                )
            reporting = [name for name, entry in catalog.models.items() if entry.enforcement == "report"]
            if reporting:
                log.warning(
                    "fixed_values_not_enforced", models=reporting, advice="docs/operate/rollback.md: back to reject"
                )
            settle_garbage()
            log.info("listening", host=host.name, tls=tls is not None, port=listening.getsockname()[1])
            gate.open(app)

    try:
        with reporting_to_service_manager(), exporting("gateway", instance=gateway_instance(port), serves_metrics=True):
            uvloop.run(run())
    except LeftWaiting:
        return
    except (SettingsError, TransportUnavailable, UnusableServer, StorageFailed, BadSealingKey) as error:
        raise click.ClickException(str(error)) from error
