"""Where traces and metrics go: by OTLP where the standard variables name an endpoint, and to `/metrics`.

Without an endpoint the process sends nothing and imports no exporter; if it serves no `/metrics` either, it measures
nothing. A collector that is away holds no task up: another thread sends. A setting at which the SDK would stop is
logged once and left out: telemetry never takes the product down.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import structlog
from msgspec import Struct
from opentelemetry import metrics, trace

from ops.telemetry.tracing import chosen_id, switch_on

if TYPE_CHECKING:  # nothing of the SDK is imported where nothing is sent
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

# A collector that does not answer must not hold up a process that leaves; by itself the SDK tries for 10 s.
FLUSH_S: Final = 2.0
# The SDK logs every failed try to reach a collector; each of its loggers may log one line in this time.
SILENT_S: Final = 60.0
EXPORT_INTERVAL_S: Final = 15.0
SPANS_WAIT_S: Final = 1.0
PROTOCOL: Final = "http/protobuf"
_IS_NUMBER: Final = re.compile(r"OTEL_\w+_(INTERVAL|TIMEOUT|DELAY|SIZE|LIMIT)")

METRICS_LISTEN: Final = ("WARMLANE_METRICS_PORT", "WARMLANE_METRICS_HOST")
"""The variables that say where a process serves `/metrics`. They hold for that process, not for those that it
starts."""
METRICS_FOLDER: Final = "WARMLANE_METRICS_FOLDER"
"""The variable that names the folder of the sockets on which processes answer a gateway. Without it each process
reports only itself."""

log = structlog.get_logger("telemetry")


class Listen(Struct, frozen=True):
    """Where a worker serves `/metrics`."""

    host: str
    port: int


def has_endpoint(signal: str) -> bool:
    """Whether the environment names an OTLP endpoint for *signal*, `traces` or `metrics`."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    return any(os.environ.get(name) for name in names) and os.environ.get(f"OTEL_{signal.upper()}_EXPORTER") != "none"


@contextlib.contextmanager
def exporting(
    role: str, *, instance: str, serves_metrics: bool = False, listen: Listen | None = None
) -> Iterator[None]:
    """Sends this process's spans and metrics as `warmlane-<role>` while the block runs, and what is left within
    FLUSH_S of the block's end.

    *instance* distinguishes the process from others of its role, and stays the same across restarts. *serves_metrics*:
    the process answers `/metrics` itself (`metrics_text`). *listen*: this function starts a server that answers
    `/metrics` there. Under `warmlane up` the gateway's page has the figures as well (`ops.telemetry.page`). Raises
    click.ClickException where it cannot listen at *listen*.
    """
    _leave_out_unusable()
    traces, figures = has_endpoint("traces"), has_endpoint("metrics")
    with contextlib.ExitStack() as stack:
        if listen is not None:
            stack.callback(_serve(listen))
        is_asked = _is_asked(role, instance, stack)
        if traces or figures:
            _say_less()
            _require_protocol()
        ends = []
        if traces:
            with _going_on_without("traces"):
                ends.append(_send_traces(role, instance))
        serves = serves_metrics or listen is not None or is_asked
        if figures or serves:
            with _going_on_without("metrics"):
                ends.append(_measure(role, instance, sends=figures, serves=serves))
        try:
            yield
        finally:
            flushing = [threading.Thread(target=end, daemon=True) for end in ends]
            for thread in flushing:
                thread.start()
            until_s = time.monotonic() + FLUSH_S
            for thread in flushing:
                thread.join(max(0.0, until_s - time.monotonic()))


async def metrics_text() -> bytes:
    """What `/metrics` answers, in Prometheus' text format: the metrics of this process, or of all processes of
    `warmlane up`."""
    import prometheus_client

    folder = os.environ.get(METRICS_FOLDER)
    if folder:
        from ops.telemetry.page import page_of_all

        return await page_of_all(Path(folder))
    # in a thread: it asks this event loop for figures that only the loop may read
    return await asyncio.to_thread(prometheus_client.generate_latest)


def gateway_instance(port: int) -> str:
    """The name that distinguishes a gateway from others: its machine and port."""
    return f"{socket.gethostname()}:{port}"


def _is_asked(role: str, instance: str, stack: contextlib.ExitStack) -> bool:
    """Whether a gateway asks this process for its metrics. Answers it until *stack* ends."""
    folder = os.environ.get(METRICS_FOLDER)
    if not folder:
        return False
    from ops.telemetry.page import answer_in

    try:
        stack.callback(answer_in(Path(folder), role, instance))
    except OSError as error:
        log.warning("metrics_not_gathered", folder=folder, error=str(error), advice="--metrics-port PORT serves them")
        del os.environ[METRICS_FOLDER]  # a gateway then reports itself alone
        return False
    return True


def _serve(listen: Listen) -> Callable[[], None]:
    from prometheus_client import make_wsgi_app

    from ops.telemetry.probes import probe_server

    try:
        server = probe_server(listen.host, listen.port, make_wsgi_app())
    except OSError as error:
        is_elsewhere = error.errno == errno.EADDRNOTAVAIL
        raise click.ClickException(
            f"cannot serve metrics on {listen.host}:{listen.port} ({error.strerror}); choose "
            + ("an address of this machine with --metrics-host" if is_elsewhere else "another port with --metrics-port")
            + (" or WARMLANE_METRICS_HOST" if is_elsewhere else " or WARMLANE_METRICS_PORT")
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    log.info("metrics_served", host=listen.host, port=server.server_port)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(FLUSH_S)

    return stop


def _send_traces(role: str, instance: str) -> Callable[[], None]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from ops.telemetry.sending import Sender

    # A process that is killed loses what it has not sent: the SDK's own default of 5 s is too long for that.
    delay_ms = float(os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or SPANS_WAIT_S * 1e3)
    provider = tracer_provider(_resource(role, instance))
    sender = Sender(OTLPSpanExporter(), OTLPSpanExporter(), delay_ms=delay_ms)
    provider.add_span_processor(sender)
    trace.set_tracer_provider(provider)
    switch_on(sender.end_ahead)
    return provider.shutdown


def tracer_provider(resource: "Resource | None" = None) -> "TracerProvider":
    """The SDK's provider of spans, which can give a span an id beforehand (`ops.telemetry.tracing.attempt_below`)."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return chosen_id()

    return TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)


def _measure(role: str, instance: str, *, sends: bool, serves: bool) -> Callable[[], None]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    readers: list[MetricReader] = []
    if sends:
        with _going_on_without("metrics by OTLP"):
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            # the SDK's own default, a minute, is longer than many a fallback
            interval_ms = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or EXPORT_INTERVAL_S * 1e3)
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=interval_ms))
    if serves:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        readers.append(PrometheusMetricReader(scope_info_enabled=False))
    provider = MeterProvider(readers, resource=_resource(role, instance), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown


def _resource(role: str, instance: str) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = Resource.create(resource_attributes(role, instance))
    # an operator's attributes of the machine replace those found here; those that name the process stay ours
    said = OTELResourceDetector().detect().attributes
    return ours.merge(Resource({name: value for name, value in said.items() if name not in _OURS}))


_OURS: Final = ("service.name", "service.instance.id")


def resource_attributes(role: str, instance: str) -> dict[str, str | int]:
    """The attributes of the sending process, by the semantic conventions.

    `host.id` is the id of the running kernel, which containers share: processes with the same id have the same clock.
    Jaeger corrects the times of a child span from another host, or warns of them, since it cannot distinguish clock
    skew from a wait in a queue. It compares hosts by the attribute `ip`, a name older than the conventions; any text
    will do (ADR 0034).
    """
    attributes: dict[str, str | int] = {
        "service.name": f"warmlane-{role}",
        "service.namespace": "warmlane",
        "service.version": metadata.version("warmlane"),
        "service.instance.id": instance,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    with contextlib.suppress(OSError):  # not on Linux
        attributes["host.id"] = attributes["ip"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return attributes


def unusable(environment: Mapping[str, str], *, propagators: Collection[str]) -> dict[str, str]:
    """The standard variables in *environment* at which the SDK would stop, with the reason. *propagators* are the
    installed ones. Pure."""
    found = {}
    asked = [name.strip() for name in environment.get("OTEL_PROPAGATORS", "").split(",") if name.strip()]
    missing = [name for name in asked if name not in (*propagators, "none")]
    if missing:
        found["OTEL_PROPAGATORS"] = f"{', '.join(missing)}: not installed; there are {', '.join(sorted(propagators))}"
    for name, value in environment.items():
        if _IS_NUMBER.fullmatch(name) and value and not re.fullmatch(r"\d+(\.\d*)?", value.strip()):
            found[name] = "expected a plain number (milliseconds or a count), without a unit"
    queue, batch = (f"OTEL_BSP_MAX_{what}_SIZE" for what in ("QUEUE", "EXPORT_BATCH"))
    if not found.keys() & {queue, batch} and float(environment.get(queue) or 2048) < float(
        environment.get(batch) or 512
    ):
        for name in {queue, batch} & environment.keys():
            found[name] = f"{batch}, 512 by default, may not be more than {queue}, 2048 by default"
    return found


def _leave_out_unusable() -> None:
    propagators = {entry.name for entry in metadata.entry_points(group="opentelemetry_propagator")}
    for name, reason in unusable(os.environ, propagators=propagators).items():
        log.warning("telemetry_setting_ignored", setting=f"{name}={os.environ[name]}", reason=reason)
        del os.environ[name]


@contextlib.contextmanager
def _going_on_without(what: str) -> Iterator[None]:
    """Logs whatever the SDK or one of its plugins raises at a setting of theirs, and lets the process go on."""
    try:
        yield
    except Exception as error:
        advice = "correct or remove the OTEL_ variable that it names"
        log.warning("telemetry_off", what=what, error=f"{type(error).__name__}: {error}", advice=advice)


def _require_protocol() -> None:
    asked = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", PROTOCOL)
    if asked != PROTOCOL:
        log.warning(
            "otlp_protocol_ignored",
            asked=asked,
            advice=f"Warmlane speaks OTLP as {PROTOCOL}, by default on port 4318 of a collector",
        )


class _Seldom(logging.Filter):
    """Lets one record of each logger pass, then no other from that logger for SILENT_S."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_s.get(record.name, -SILENT_S) < SILENT_S:
            return False
        self._last_s[record.name] = now_s
        record.exc_info = record.exc_text = None  # pages of the exporter's frames for a refused connection
        return True


def _say_less() -> None:
    seldom = _Seldom()
    for name in (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "opentelemetry.sdk._shared_internal",
        "opentelemetry.sdk.metrics._internal.export",
    ):
        logging.getLogger(name).addFilter(seldom)
