"""What Warmlane tells Prometheus: every metric with its labels, and what these may hold. For dashboards and alerts."""

from collections.abc import Iterator
from itertools import product
from typing import Final

from msgspec import Struct

from contracts.lanes import LaneState, SlotState
from contracts.tasks import FailureCode


class Metric(Struct, frozen=True):
    """A metric by its name at Prometheus; of a histogram, without `_bucket`, `_sum` and `_count`."""

    name: str
    kind: str
    labels: tuple[str, ...]


def _table(text: str) -> dict[str, Metric]:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return {name: Metric(name, kind, tuple(labels)) for kind, name, *labels in rows}


METRICS: Final = _table(
    """
    gauge     warmlane_lanes                            model state
    gauge     warmlane_lanes_wanted                     model
    gauge     warmlane_lanes_ready                      model
    gauge     warmlane_lane_silence_seconds             model worker
    counter   warmlane_cold_starts_total                model outcome
    histogram warmlane_cold_start_duration_seconds      model
    gauge     warmlane_cold_starts_within_target_ratio  model
    gauge     warmlane_fallback_active                  model cause
    gauge     warmlane_fallback_running_seconds         model cause
    gauge     warmlane_queue_depth                      queue
    gauge     warmlane_queue_limit                      queue
    gauge     warmlane_queue_oldest_age_seconds         queue
    gauge     warmlane_tasks_live                       model status
    gauge     warmlane_degraded_worker_alive
    gauge     warmlane_slot_state                       slot state model
    counter   warmlane_requests_accepted_total          model route
    counter   warmlane_requests_overloaded_total        model limit
    counter   warmlane_requests_refused_total           code
    counter   warmlane_parameters_reported_total        model field
    counter   warmlane_fallback_activations_total       model cause
    counter   warmlane_fallback_time_seconds_total      model cause
    counter   warmlane_fallback_requests_total          model cause
    counter   warmlane_tasks_finished_total             model route outcome
    histogram warmlane_task_duration_seconds            model route outcome
    counter   warmlane_tasks_rerouted_total             model
    counter   warmlane_tasks_requeued_total             model
    counter   warmlane_queue_timeouts_total             model route
    histogram warmlane_queue_wait_seconds               model route
    histogram warmlane_inference_duration_seconds       model
    histogram warmlane_swap_duration_seconds            model part
    counter   warmlane_releases_total                   slot outcome
    gauge     warmlane_memory_after_cleanup_bytes       slot model kind
    counter   warmlane_memory_cleanups_total            model outcome
    counter   warmlane_lane_deaths_total                model
    counter   warmlane_unreadable_total                 kind
    gauge     warmlane_clock_skew_seconds
    gauge     warmlane_nats_connected
    """
)

# What every gateway tells alike, because it watches the same buckets: max or min over gateways, never a sum.
ALIKE: Final = frozenset(list(METRICS)[: list(METRICS).index("warmlane_requests_accepted_total")])
# What every process tells of itself.
OWN: Final = frozenset({"warmlane_clock_skew_seconds", "warmlane_nats_connected"})
# What is counted once, by whoever did it: the sum is the truth. Of a slot's memory its worker alone tells.
COUNTED: Final = METRICS.keys() - ALIKE - OWN - {"warmlane_memory_after_cleanup_bytes"}

_OUTCOMES: Final = ("done", *(code.value for code in FailureCode))
# What a label may hold: of one metric, or of every one. An alert or a panel that asks for anything else is wrong.
VALUES: Final[dict[str, tuple[str, ...]]] = {
    "model": ("anisora", "phr00t"),
    "route": ("lane", "degraded"),
    "cause": ("manual", "quota", "capacity"),
    "limit": ("depth", "wait"),
    "status": ("pending", "processing"),
    "worker": ("anisora-0",),
    "slot": ("cpu-0", "cpu-2"),
    "queue": ("DEGRADED", "LANE_ANISORA", "LANE_PHR00T"),
    "part": ("release", "verify", "load"),
    "field": ("steps", "cfg"),
    "code": ("validation_failed", "queue_overloaded", "transport_unavailable", "rate_limited"),
    "outcome": _OUTCOMES,
    "warmlane_lanes state": tuple(state.value for state in LaneState),
    "warmlane_slot_state state": tuple(state.value for state in SlotState),
    "warmlane_cold_starts_total outcome": ("warm", "gave_up"),
    "warmlane_releases_total outcome": ("nothing_resident", "unloaded", "killed", "escalated", "quarantined"),
    "warmlane_memory_cleanups_total outcome": (*_OUTCOMES, "host_lost", "quarantined"),
    "warmlane_memory_after_cleanup_bytes kind": ("rss", "cuda_allocated", "cuda_reserved", "cuda_peak_allocated"),
    "warmlane_unreadable_total kind": ("task", "lane"),
}


def values_of(metric: Metric, label: str) -> tuple[str, ...]:
    """What *label* of *metric* may hold. KeyError where that stands nowhere."""
    return VALUES.get(f"{metric.name} {label}") or VALUES[label]


def metric_of(series: str) -> Metric:
    """The metric that *series* belongs to. KeyError if it belongs to none."""
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
