"""What Warmlane exports to Prometheus: every metric with its labels and their values. For dashboards and alerts."""

from collections.abc import Iterator
from itertools import product
from typing import Final, get_args

from msgspec import Struct

from contracts.api.problems import OverloadLimit
from contracts.lanes import LaneState, SlotState
from contracts.tasks import FailureCode, Priority
from contracts.webhooks import KEPT_EVENTS
from gateway.rules.webhook_retries import OUTCOMES
from lane_worker.runtime.order import SLICE_ENDS
from lane_worker.runtime.streak import DISTRUST
from ops.telemetry.logs import USUAL_LOSSES
from ops.telemetry.metrics import CATALOGUE
from ops.telemetry.unreadable import Kind


class Metric(Struct, frozen=True):
    """A metric by its name in Prometheus; that of a histogram is without `_bucket`, `_sum` and `_count`."""

    name: str
    kind: str
    labels: tuple[str, ...]


METRICS: Final = {
    metric.prometheus_name: Metric(metric.prometheus_name, metric.kind, metric.labels) for metric in CATALOGUE.values()
}

# Every gateway reports the same values of these, because all watch the same buckets. Aggregate them over gateways with
# max or min, never with sum.
ALIKE: Final = frozenset(list(METRICS)[: list(METRICS).index("warmlane_requests_accepted_total")])
# Every process reports these about itself.
OWN: Final = frozenset(
    {
        "warmlane_background_trouble",
        "warmlane_clock_skew_seconds",
        "warmlane_nats_connected",
        "warmlane_watch_restarts_total",
        "warmlane_streams_went_back_total",
    }
)
# Only the process that did the work counts these: the sum over processes is correct. Only a slot's own worker reports
# its memory.
COUNTED: Final = METRICS.keys() - ALIKE - OWN - {"warmlane_memory_after_cleanup_bytes"}

_OUTCOMES: Final = ("done", *(code.value for code in FailureCode))
# The values that a label may have, in one metric or in all. An alert or a panel that asks for another value is wrong.
VALUES: Final[dict[str, tuple[str, ...]]] = {
    "model": ("anisora", "phr00t"),
    "route": ("lane", "degraded"),
    "cause": ("manual", "quota", "capacity"),
    "limit": get_args(OverloadLimit),
    "priority": tuple(Priority),
    "status": ("pending", "processing"),
    "worker": ("anisora-0",),
    "slot": ("cpu-0", "cpu-2"),
    "queue": ("DEGRADED", "LANE_ANISORA", "LANE_PHR00T"),
    "part": ("release", "verify", "load"),
    "field": ("steps", "cfg"),
    "code": ("validation_failed", "queue_overloaded", "storage_full", "transport_unavailable", "rate_limited"),
    "outcome": _OUTCOMES,
    "warmlane_lanes state": tuple(state.value for state in LaneState),
    "warmlane_slot_state state": tuple(state.value for state in SlotState),
    "warmlane_cold_starts_total outcome": ("warm", "gave_up"),
    "warmlane_releases_total outcome": (
        "nothing_resident",
        "unloaded",
        "killed",
        "renewed",
        "escalated",
        "unreadable",
        "quarantined",
    ),
    "warmlane_hosts_distrusted_total reason": DISTRUST,
    "warmlane_order_slices_total cause": SLICE_ENDS,
    "warmlane_log_lines_lost_total reason": USUAL_LOSSES,
    "warmlane_memory_cleanups_total outcome": (*_OUTCOMES, "host_lost", "quarantined", "gave_up"),
    "warmlane_memory_after_cleanup_bytes kind": (
        *("rss", "rss_peak", "cuda_allocated", "cuda_reserved", "cuda_peak_allocated", "cuda_peak_reserved"),
        *("cuda_inactive_split", "device_used", "device_free"),
    ),
    "task": (
        "sweeper",
        "slow look",
        "janitor",
        "fallback episodes",
        "clock",
        "storage",
        "writes",
        "buckets",
        "webhooks",
    ),
    "stream": ("DEGRADED", "LANE_ANISORA", "KV_tasks"),
    "consumer": ("worker",),
    "event": ("retry", "oom"),
    "warmlane_webhooks_attempts_total outcome": OUTCOMES,
    "warmlane_webhooks_deliveries_total event": tuple(event.value for event in KEPT_EVENTS),
    "warmlane_webhooks_deliveries_total outcome": ("delivered", "dead"),
    "bucket": ("tasks", "keys"),
    "warmlane_unreadable_total kind": get_args(Kind),
}


def values_of(metric: Metric, label: str) -> tuple[str, ...]:
    """The values that *label* of *metric* may have. Raises KeyError where VALUES does not list them."""
    return VALUES.get(f"{metric.name} {label}") or VALUES[label]


def metric_of(series: str) -> Metric:
    """The metric that *series* belongs to. Raises KeyError if it belongs to none."""
    for suffix in ("_bucket", "_sum", "_count"):
        found = METRICS.get(series.removesuffix(suffix))
        if series.endswith(suffix) and found is not None and found.kind == "histogram":
            return found
    found = METRICS[series]
    if found.kind == "histogram":
        raise KeyError(series)
    return found


def series() -> Iterator[tuple[str, str]]:
    """Every series there can be, as of a busy system, each with its values in the notation of `promtool test rules`."""
    for metric in METRICS.values():
        for held in product(*(values_of(metric, label) for label in metric.labels)):
            labels = dict(zip(metric.labels, held, strict=True)) | {"job": "warmlane-gateway", "instance": "host:8000"}
            if metric.kind == "gauge":
                yield _selector(metric.name, labels), "1x90"
            elif metric.kind == "counter":
                yield _selector(metric.name, labels), "0+1x90"
            else:
                for bound, growth in (("1", 1), ("10", 2), ("+Inf", 3)):
                    yield _selector(f"{metric.name}_bucket", labels | {"le": bound}), f"0+{growth}x90"
                yield _selector(f"{metric.name}_sum", labels), "0+10x90"
                yield _selector(f"{metric.name}_count", labels), "0+3x90"


def _selector(name: str, labels: dict[str, str]) -> str:
    held = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{held}}}"
