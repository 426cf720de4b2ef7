"""Command-line options that several commands share, each with its environment variable, and their units."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from contracts.order import ORDER_NAMES
from contracts.settings import Windows
from ops.artifact_place import ArtifactPlace
from ops.commands.artifact_options import placed
from ops.commands.durations import Duration
from ops.commands.option_types import ByteSize, HostType, Lanes, ListenHost, Origin
from ops.commands.spelling import require_text
from ops.commands.variables import option_or_variable
from ops.nats.access import DEFAULT_DATA_DIR, NatsAccess
from ops.telemetry.export import METRICS_LISTEN, Listen

# A process may look at a task late: by a second when a server is busy, by more when it was away.
KEEP_MARGIN_S: Final = 10.0
host_option = option_or_variable(
    "--host",
    envvar="WARMLANE_HOST",
    type=HostType(),
    default="127.0.0.1",
    help="Address to listen on, or a name for it. Any but the loopback needs an API key first: `warmlane keys add`.",
)
port_option = option_or_variable(
    "--port",
    envvar="WARMLANE_PORT",
    type=click.IntRange(1, 65_535),
    default=8000,
    help="Port of the HTTP API.",
)
cors_origins_option = option_or_variable(
    "--cors-origin",
    "cors_origins",
    envvar="WARMLANE_CORS_ORIGINS",
    type=Origin(),
    multiple=True,
    help="Let pages of this origin, as in https://app.example.org, call the API from a browser. May be repeated; "
    "the variable separates several by blanks. [default: none]",
)
JAEGER_VARIABLE: Final = "WARMLANE_JAEGER_URL"
trace_link_option = option_or_variable(
    "--jaeger-url",
    envvar=JAEGER_VARIABLE,
    help="Jaeger's pages: a trace is shown as a link there. [default: its ID alone]",
)
trace_reads_option = option_or_variable(
    "--trace-reads",
    envvar="WARMLANE_TRACE_READS",
    is_flag=True,
    help="Trace every request, and not only those that make or change a task. [default: off]",
)
access_log_option = option_or_variable(
    "--access-log",
    envvar="WARMLANE_ACCESS_LOG",
    type=click.Choice(["errors", "all"]),
    default="errors",
    help="Which requests have a line in the log: those that were refused or failed, or all of them.",
)
tls_cert_option = option_or_variable(
    "--tls-cert",
    envvar="WARMLANE_TLS_CERT",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Speak HTTPS, with the certificate (and those between it and its authority) in this PEM file.",
)
tls_key_option = option_or_variable(
    "--tls-key",
    envvar="WARMLANE_TLS_KEY",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The private key of --tls-cert, in PEM and without a passphrase.",
)
nats_port_option = option_or_variable(
    "--nats-port",
    envvar="WARMLANE_NATS_PORT",
    type=click.IntRange(1, 65_535),
    default=4222,
    help="Port of the embedded nats-server.",
)
settings_option = option_or_variable(
    "--settings",
    envvar="WARMLANE_SETTINGS",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Inference settings (JSON) instead of the packaged ones.",
)
profile_option = option_or_variable(
    "--profile",
    envvar="WARMLANE_PROFILE",
    default="tiny",
    help="Which checkpoints: tiny (any machine) or production.",
)


def _shareable(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    # the processes of a system send each other names of files in this folder, in messages that are UTF-8
    require_text(ctx, parameter, str(value.absolute()))
    return value


data_dir_option = option_or_variable(
    "--data-dir",
    envvar="WARMLANE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_shareable,
    default=DEFAULT_DATA_DIR,
    help="Folder of videos, streams, tiny models, locks and logs. Its path has to be UTF-8.",
)
keep_option = option_or_variable(
    "--keep",
    "keep_s",
    envvar="WARMLANE_KEEP",
    type=Duration(),
    default="7d",
    help="How long a finished task and its video are kept; never less than a task may wait, and 10 s more.",
)
step_seconds_option = option_or_variable(
    "--step-seconds",
    envvar="WARMLANE_STEP_SECONDS",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Make every inference step of a tiny pipeline take this long, to imitate a real card.",
)
load_seconds_option = option_or_variable(
    "--load-seconds",
    envvar="WARMLANE_LOAD_SECONDS",
    type=click.FloatRange(0, 3600),
    default=0.0,
    help="Make every load of a tiny pipeline take at least this long, to imitate a real card.",
)
degraded_order_option = option_or_variable(
    "--degraded-order",
    envvar="WARMLANE_DEGRADED_ORDER",
    type=click.Choice(ORDER_NAMES),
    help="Which waiting task the degraded worker starts next: in order of arrival (fifo), or by class, swaps and "
    "callers (swap-aware). [default: as the settings say, swap-aware]",
)
oom_snapshots_option = option_or_variable(
    "--oom-snapshots",
    envvar="WARMLANE_OOM_SNAPSHOTS",
    type=click.IntRange(0, 100),
    default=0,
    help="When a card runs out of memory, write what lay on it to the folder oom of the data folder, for torch's "
    "memory viewer. The newest so many files are kept; 0 writes none.",
)
nats_storage_option = option_or_variable(
    "--nats-storage",
    "nats_storage_bytes",
    envvar="WARMLANE_NATS_STORAGE",
    type=ByteSize(),
    default="20GB",
    help="What nats-server may store: max_file_store of its nats.conf, which it does not report. Near it, new requests "
    "are refused, so that those in hand can end.",
)
log_size_option = option_or_variable(
    "--log-size",
    "log_max_bytes",
    envvar="WARMLANE_LOG_SIZE",
    type=ByteSize(),
    default="20MB",
    help="The size at which the log of a process becomes its old log. One old log is kept.",
)
replicas_option = option_or_variable(
    "--replicas",
    envvar="WARMLANE_REPLICAS",
    type=click.IntRange(1, 5),
    help="How many servers of a cluster keep each stream and bucket. [default: 1 for new ones; others stay]",
)
lanes_option = option_or_variable(
    "--lanes",
    envvar="WARMLANE_LANES",
    type=Lanes(),
    help="Warm lanes per model, as in anisora=1,phr00t=1; a model with 0, or not named, is left to the degraded "
    "worker. [default: as many as the settings want]",
)
gpus_option = option_or_variable(
    "--gpus",
    envvar="WARMLANE_GPUS",
    type=click.IntRange(1, 64),
    help="Use so many of the cards that CUDA_VISIBLE_DEVICES leaves (CPU slots with tiny pipelines) at most. "
    "The first one set aside is the degraded worker's; "
    "lanes that find none are denied. [default: all cards; a CPU slot for each worker]",
)
quota_option = option_or_variable(
    "--quota",
    envvar="WARMLANE_QUOTA",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='The most lanes per model, as in {"max_lanes": {"anisora": 1}} (JSON); may be edited at any time.',
)
_metrics_port_option = option_or_variable(
    "--metrics-port",
    envvar=METRICS_LISTEN[0],
    type=click.IntRange(1, 65_535),
    help="Serve /metrics for a Prometheus on this port. [default: it is not served]",
)
_metrics_host_option = option_or_variable(
    "--metrics-host",
    envvar=METRICS_LISTEN[1],
    type=HostType(),
    default="127.0.0.1",
    help="Address on which /metrics is served, to anyone who asks.",
)
slot_option = option_or_variable(
    "--slot",
    envvar="WARMLANE_SLOT",
    default="cpu-0",
    help="Where it runs: the UUID of a GPU that CUDA_VISIBLE_DEVICES does not hide, or cpu-N; auto: the only card that "
    "this container was given, or with tiny pipelines cpu- and the host's name. One process at a time holds a slot.",
)


def metrics_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--metrics-port` and `--metrics-host`; the command receives *listen*, which is None without a port."""

    @_metrics_port_option
    @_metrics_host_option
    @wraps(function)
    def command(*args: Any, metrics_port: int | None, metrics_host: ListenHost, **options: Any) -> Any:
        listen = None if metrics_port is None else Listen(metrics_host.address, metrics_port)
        return function(*args, listen=listen, **options)

    return command


class Shared(Struct, frozen=True):
    """The options that every process of one deployment shares."""

    nats: NatsAccess
    data_dir: Path
    profile: str
    settings: Path | None
    artifacts: ArtifactPlace | None = None

    def arguments(self) -> list[str]:
        """These settings as options for the command line of another process."""
        arguments = [*self.nats.arguments(), "--data-dir", str(self.data_dir), "--profile", self.profile]
        arguments += placed(self.artifacts)
        return arguments if self.settings is None else [*arguments, "--settings", str(self.settings)]


def require_kept_long_enough(keep_s: float, windows: Windows) -> None:
    """Raises click.BadParameter when records would expire before their deadlines.

    A task that waits or runs would then be forgotten.
    """
    least_s = max(windows.wait_limit_s, windows.lease_s) + KEEP_MARGIN_S
    if keep_s < least_s:
        raise click.BadParameter(
            f"{keep_s:g}s is less than the {least_s:g}s for which a task may wait or be silent; keep tasks longer",
            param_hint="--keep",
        )


def slowed(step_seconds: float, load_seconds: float) -> list[str]:
    """`--step-seconds` and `--load-seconds` for the command line of a worker, where they are not 0."""
    steps = ["--step-seconds", f"{step_seconds:g}"] if step_seconds else []
    return [*steps, *(["--load-seconds", f"{load_seconds:g}"] if load_seconds else [])]


def ordered(degraded_order: str | None) -> list[str]:
    """`--degraded-order` for the command line of a degraded worker, where it was given."""
    return [] if degraded_order is None else ["--degraded-order", degraded_order]


def snapshotting(oom_snapshots: int) -> list[str]:
    """`--oom-snapshots` for the command line of a worker or a supervisor, where it is not 0."""
    return ["--oom-snapshots", str(oom_snapshots)] if oom_snapshots else []


def name_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--name`, with a help text of the command's own, which names the default."""
    return option_or_variable("--name", envvar="WARMLANE_NAME", help=text)
