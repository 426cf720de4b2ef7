"""Every metric of Warmlane (design §11), one line each; `docs/operate/observability.md` says what each is good for.

Labels have few values: a model, a worker, a slot, a code; never a task, a caller or a prompt.

There are two kinds. Every gateway reports the same figure where it watches the same buckets (`Observed`; take the
maximum over gateways). Everything else is counted once, by the process that did it (take the sum). `Metric.by` names
the roles that report a metric: a zero from any other role would say that nothing happened anywhere.
"""

from collections.abc import Iterable
from typing import Final

from contracts.memory import MemoryReading
from contracts.tasks import FailureCode, GenerationTask
from ops.telemetry.instruments import ENTERED, Counter, Gauge, Histogram, Metric, Observed

_SHORT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_LONG_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 3600)

# Who reports a metric: roles, as `service.name` has them after `warmlane-`.
GATEWAYS: Final = ("gateway",)
WORKERS: Final = ("lane", "degraded")
SUPERVISORS: Final = ("supervisor",)
WHO_HOLDS_TASKS: Final = (*GATEWAYS, *WORKERS)
EVERYBODY: Final = (*GATEWAYS, *WORKERS, *SUPERVISORS)

# ── reported alike by every gateway ──────────────────────────────────────────────────────────────────────────────────

lanes = Observed("warmlane.lanes", "model state", "Lanes in each state", by=GATEWAYS)
lanes_wanted = Observed("warmlane.lanes.wanted", "model", "Lanes that the settings want, or `--lanes`", by=GATEWAYS)
lanes_ready = Observed("warmlane.lanes.ready", "model", "Lanes that take requests now", by=GATEWAYS)
lane_silence = Observed(
    "warmlane.lane.silence",
    "model worker",
    "Time since the lane's host was last known to answer",
    unit="s",
    by=GATEWAYS,
)
cold_starts = Counter("warmlane.cold_starts", "model outcome", "Lanes that became warm, or gave up", by=GATEWAYS)
cold_start_duration = Histogram(
    "warmlane.cold_start.duration", "model", "From the start of a lane's process to warm", bounds_s=_LONG_S, by=GATEWAYS
)
cold_starts_within_target = Observed(
    "warmlane.cold_starts.within_target_ratio",
    "model",
    "Share of the newest starts that were warm in time (SC-006)",
    by=GATEWAYS,
)
fallback_active = Observed(
    "warmlane.fallback.active", "model cause", "1 while requests go to the degraded worker", by=GATEWAYS
)
fallback_running = Observed(
    "warmlane.fallback.running", "model cause", "How long the fallback has lasted", unit="s", by=GATEWAYS
)
queue_depth = Observed("warmlane.queue.depth", "queue", "Tasks that wait for a worker", by=GATEWAYS)
queue_limit = Observed("warmlane.queue.limit", "queue", "How many may wait", by=GATEWAYS)
queue_oldest_age = Observed(
    "warmlane.queue.oldest_age", "queue", "How long the next one has waited", unit="s", by=GATEWAYS
)
demand = Observed("warmlane.demand", "model", "Tasks that a lane runs, or that wait for one", by=GATEWAYS)
tasks_live = Observed("warmlane.tasks.live", "model status", "Tasks that have not ended", by=GATEWAYS)
degraded_worker_alive = Observed(
    "warmlane.degraded_worker.alive", "", "1 while a worker serves the degraded queue", by=GATEWAYS
)
slot_state = Observed("warmlane.slot.state", "slot state model", "1 for a slot's current state and model", by=GATEWAYS)
stream_refusing = Observed(
    "warmlane.stream.refusing", "stream", "1 while writes to the stream or bucket fail", by=GATEWAYS
)
storage_used = Observed("warmlane.storage.used", "", "What nats-server has stored", unit="By", by=GATEWAYS)
storage_limit = Observed("warmlane.storage.limit", "", "What nats-server may store", unit="By", by=GATEWAYS)
storage_room = Observed(
    "warmlane.storage.room", "", "What nats-server may still store, by its limit and its disk", unit="By", by=GATEWAYS
)
webhooks_pending = Observed("warmlane.webhooks.pending", "", "Deliveries that are still to be made", by=GATEWAYS)
webhooks_dead = Observed("warmlane.webhooks.dead", "", "Dead deliveries that are still kept", by=GATEWAYS)
webhooks_overdue = Observed(
    "warmlane.webhooks.overdue", "", "How long the most overdue delivery has been due", unit="s", by=GATEWAYS
)

# ── counted once, by the process that did it ─────────────────────────────────────────────────────────────────────────

requests_accepted = Counter("warmlane.requests.accepted", "model route", "Requests that became a task", by=GATEWAYS)
requests_overloaded = Counter(
    "warmlane.requests.overloaded",
    "model limit",
    "Answers 503 queue_overloaded, by the limit that was hit",
    by=GATEWAYS,
)
requests_refused = Counter("warmlane.requests.refused", "code", "Problem documents that were answered", by=GATEWAYS)
requests_not_logged = Counter(
    "warmlane.requests.not_logged", "", "Refused requests without a line in the access log", by=GATEWAYS
)
parameters_reported = Counter(
    "warmlane.parameters.reported",
    "model field",
    "Wrong fixed values that were replaced (enforcement: report)",
    by=GATEWAYS,
)
fallback_activations = Counter(
    "warmlane.fallback.activations", "model cause", "Fallback episodes that began", by=GATEWAYS
)
fallback_time = Counter(
    "warmlane.fallback.time", "model cause", "Time in fallback episodes that ended", unit="s", by=GATEWAYS
)
fallback_requests = Counter(
    "warmlane.fallback.requests", "model cause", "Requests that a fallback sent to the degraded worker", by=GATEWAYS
)
tasks_finished = Counter(
    "warmlane.tasks.finished", "model route outcome", "Tasks that ended: done, or a failure code", by=WHO_HOLDS_TASKS
)
task_duration = Histogram(
    "warmlane.task.duration", "model route outcome", "From accepted to the end", bounds_s=_LONG_S, by=WHO_HOLDS_TASKS
)
tasks_rerouted = Counter("warmlane.tasks.rerouted", "model", "Tasks that no lane took in time (FR-021 c)", by=GATEWAYS)
tasks_requeued = Counter("warmlane.tasks.requeued", "model", "Tasks whose worker was lost", by=GATEWAYS)
tasks_displaced = Counter(
    "warmlane.tasks.displaced",
    "model priority",
    "Tasks whose place on the full degraded queue a request of a higher class took, by their own class",
    by=GATEWAYS,
)
queue_timeouts = Counter(
    "warmlane.queue.timeouts", "model route", "Tasks that nobody took within the wait limit", by=WHO_HOLDS_TASKS
)
queue_wait = Histogram("warmlane.queue.wait", "model route", "From queued to claimed", bounds_s=_SHORT_S, by=WORKERS)
inference_duration = Histogram("warmlane.inference.duration", "model", "Inference alone", bounds_s=_LONG_S, by=WORKERS)
swap_duration = Histogram(
    "warmlane.swap.duration",
    "model part",
    "Parts of a swap: release, verify, load; of the load read and copy; and the first_step after it",
    bounds_s=_LONG_S,
    by=WORKERS,
)
releases = Counter("warmlane.releases", "slot outcome", "How slots were made empty before a load", by=WORKERS)
order_slices = Counter(
    "warmlane.order.slices",
    "cause",
    "Slices of a model that ended on the degraded worker, by what ended them",
    by=("degraded",),
)
hosts_distrusted = Counter(
    "warmlane.hosts.distrusted",
    "slot reason",
    "Distrust of a host: a fatal failure, tasks that failed in a row, a rest",
    by=WORKERS,
)
memory_after_cleanup = Gauge(
    "warmlane.memory.after_cleanup",
    "slot model kind",
    "What the pipeline host held after its last task",
    unit="By",
    by=WORKERS,
)
allocator_events = Counter(
    "warmlane.memory.allocator_events",
    "slot model event",
    "Allocations on the card that were retried, or failed",
    by=WORKERS,
)
memory_cleanups = Counter(
    "warmlane.memory.cleanups", "model outcome", "Memory lines that were logged (FR-009, SC-003)", by=WORKERS
)
lane_deaths = Counter("warmlane.lane.deaths", "model", "Lane processes that ended by themselves", by=SUPERVISORS)
consumers_made_anew = Counter(
    "warmlane.consumers.made_anew",
    "stream consumer",
    "Consumers that were gone, and that a gateway or worker made anew",
    by=WHO_HOLDS_TASKS,
)
webhook_attempts = Counter(
    "warmlane.webhooks.attempts", "outcome", "Attempts to reach a receiver, by what came of them", by=GATEWAYS
)
webhook_deliveries = Counter(
    "warmlane.webhooks.deliveries", "event outcome", "Deliveries that ended: delivered, or dead", by=GATEWAYS
)
records_missed = Counter(
    "warmlane.records.missed", "", "Records that the watch missed and the slow look found", by=GATEWAYS
)
unreadable = Counter("warmlane.unreadable", "kind", "Messages and entries that could not be read", by=EVERYBODY)

# ── reported by every process ────────────────────────────────────────────────────────────────────────────────────────

background_trouble = Observed(
    "warmlane.background.trouble", "task", "1 while a background task of the process cannot do its work", by=EVERYBODY
)
clock_skew = Observed("warmlane.clock.skew", "", "The nats-server's clock minus this machine's", unit="s", by=EVERYBODY)
nats_connected = Observed(
    "warmlane.nats.connected", "", "1 while the process is connected to nats-server", by=EVERYBODY
)
watch_restarts = Counter(
    "warmlane.watch.restarts", "bucket", "Times that a bucket had to be followed anew", by=EVERYBODY
)
streams_went_back = Counter(
    "warmlane.streams.went_back", "bucket", "Times that a bucket lost what it had stored", by=EVERYBODY
)
log_lines_lost = Counter(
    "warmlane.log.lines_lost", "reason", "Log lines that could not be written, by the error", by=EVERYBODY
)

CATALOGUE: Final[dict[str, Metric]] = ENTERED
"""Every metric above, by its name."""

# How a task can end, by the process that stores the end.
ENDED_BY_GATEWAYS: Final = tuple(
    code.value
    for code in (
        FailureCode.QUEUE_OVERLOADED,
        FailureCode.CANCELLED,
        FailureCode.WORKER_LOST,
        FailureCode.STORAGE_FAILED,  # a gateway stores images, a worker the video
    )
)
ENDED_BY_WORKERS: Final = (
    "done",
    *(code.value for code in FailureCode if code not in (FailureCode.CANCELLED, FailureCode.WORKER_LOST)),
)


def task_ended(task: GenerationTask) -> None:
    """This process has just stored the end of *task*."""
    outcome = task.status.value if task.error is None else task.error.code.value
    tasks_finished.add(task.model, task.route, outcome)
    if task.finished_at is None:
        return
    task_duration.record((task.finished_at - task.created_at).total_seconds(), task.model, task.route, outcome)
    is_overloaded = task.error is not None and task.error.code is FailureCode.QUEUE_OVERLOADED
    if is_overloaded and task.finished_at >= task.deadline_at:
        queue_timeouts.add(task.model, task.route)


def task_claimed(task: GenerationTask) -> None:
    """This process has just claimed *task*."""
    if task.claimed_at is not None:
        queue_wait.record((task.claimed_at - task.queued_at).total_seconds(), task.model, task.route)


def memory_read(held: MemoryReading, *, slot: str, model: str, outcome: str) -> None:
    """A memory line was written. *held* is what it shows: 0 where the process that held the memory is gone."""
    memory_cleanups.add(model, outcome)
    memory_after_cleanup.set(held.rss_bytes, slot, model, "rss")
    figures = {
        "rss_peak": held.rss_peak_bytes,
        "cuda_allocated": held.cuda_allocated_bytes,
        "cuda_reserved": held.cuda_reserved_bytes,
        "cuda_peak_allocated": held.cuda_peak_allocated_bytes,
        "cuda_peak_reserved": held.cuda_peak_reserved_bytes,
        "cuda_inactive_split": held.cuda_inactive_split_bytes,
        "device_used": held.device_used_bytes,
        "device_free": held.device_free_bytes,
    }
    for kind, figure in figures.items():
        if figure is not None:
            memory_after_cleanup.set(figure, slot, model, kind)
    for event, count in (("retry", held.cuda_alloc_retries), ("oom", held.cuda_ooms)):
        # on a CPU as well: the series has to show 0 before the first event comes
        allocator_events.add(slot, model, event, by=count or 0)


def begin_tasks(models: Iterable[str], route: str, outcomes: Iterable[str]) -> None:
    """Sets to 0 the counts of tasks on *route* that this process may end with one of *outcomes*, so that the first one
    shows. Other processes count the other outcomes: a zero from this process would contradict them."""
    for model in models:
        queue_timeouts.begin(model, route)
        for outcome in outcomes:
            tasks_finished.begin(model, route, outcome)
