"""What a gateway reports of lanes, queues, slots and fallbacks when its metrics are read (FR-013, FR-015).

Everything comes from the boards, in memory: reading the metrics costs no call to NATS.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, get_args

import msgspec
from msgspec import Struct

from contracts.api.problems import OverloadLimit
from contracts.lanes import FallbackCause, FallbackEpisode, LaneState
from contracts.settings import Catalog, ModelEntry
from contracts.tasks import GenerationTask, Priority, TaskStatus
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS, lane_stream
from contracts.webhooks import KEPT_EVENTS
from gateway.boards.cold_starts import TARGET_S, ColdStarts, share_within
from gateway.boards.delivery_board import DeliveryBoard
from gateway.boards.lane_board import LaneBoard
from gateway.boards.leader_board import LeaderBoard
from gateway.boards.slot_board import SlotBoard
from gateway.boards.storage import Storage, StorageWatch
from gateway.boards.work_queues import WorkQueue, WorkQueues
from gateway.placing.fallbacks import Fallbacks
from gateway.rules.demand import demand
from gateway.rules.webhook_retries import OUTCOMES
from ops.nats.write_health import Refusals
from ops.telemetry import metrics
from ops.telemetry.instruments import Observed, Readings, Source

CAUSES: Final[tuple[FallbackCause, ...]] = ("manual", "quota", "capacity")


class Known(Struct, frozen=True, kw_only=True):
    """The boards that the figures are read from."""

    catalog: Catalog
    lanes: LaneBoard
    leader: LeaderBoard
    slots: SlotBoard
    fallbacks: Fallbacks
    cold_starts: ColdStarts
    work_queues: WorkQueues
    refusals: Refusals
    streams_wanted: Collection[str]
    storage: StorageWatch
    deliveries: DeliveryBoard


def gauges(known: Known) -> Mapping[Observed, Source]:
    """The sources of every figure that is the same at all gateways."""
    lanes, fallbacks, queues, server = _Lanes(known), _Fallbacks(known), _Queues(known), _Server(known)
    webhooks = _Webhooks(known.deliveries)
    return {
        metrics.lanes: lanes.states,
        metrics.lanes_wanted: lanes.wanted,
        metrics.lanes_ready: lanes.ready,
        metrics.lane_silence: lanes.silence,
        metrics.cold_starts_within_target: lanes.cold_starts_within_target,
        metrics.degraded_worker_alive: lanes.degraded_worker_alive,
        metrics.slot_state: lanes.slot_state,
        metrics.fallback_active: fallbacks.active,
        metrics.fallback_running: fallbacks.running,
        metrics.queue_depth: queues.depth,
        metrics.queue_limit: queues.limit,
        metrics.queue_oldest_age: queues.oldest_age,
        metrics.demand: queues.demand,
        metrics.tasks_live: queues.tasks_live,
        metrics.stream_refusing: server.refusing,
        metrics.storage_used: server.storage_used,
        metrics.storage_limit: server.storage_limit,
        metrics.storage_room: server.storage_room,
        metrics.webhooks_pending: webhooks.pending,
        metrics.webhooks_dead: webhooks.dead,
        metrics.webhooks_overdue: webhooks.overdue,
    }


def begin(models: Mapping[str, ModelEntry]) -> None:
    """Sets the counters of a gateway to 0 at its start, so that the first event shows as a rise."""
    for model, entry in models.items():
        for route in ("lane", "degraded"):
            metrics.requests_accepted.begin(model, route)
        for limit in get_args(OverloadLimit):
            metrics.requests_overloaded.begin(model, limit)
        for cause in CAUSES:
            metrics.fallback_activations.begin(model, cause)
            metrics.fallback_time.begin(model, cause)
            metrics.fallback_requests.begin(model, cause)
        for outcome in ("warm", "gave_up"):
            metrics.cold_starts.begin(model, outcome)
        for field, limits in msgspec.structs.asdict(entry.constraints).items():
            if getattr(limits, "fixed", None) is not None:
                metrics.parameters_reported.begin(model, field)
        metrics.tasks_rerouted.begin(model)
        metrics.tasks_requeued.begin(model)
        for priority in Priority:
            metrics.tasks_displaced.begin(model, priority.value)
    for route in ("lane", "degraded"):
        metrics.begin_tasks(models, route, metrics.ENDED_BY_GATEWAYS)
    metrics.records_missed.begin()
    for outcome in OUTCOMES:
        metrics.webhook_attempts.begin(outcome)
    for event in KEPT_EVENTS:
        for end in ("delivered", "dead"):
            metrics.webhook_deliveries.begin(event.value, end)


class _Lanes:
    """Figures of the workers: lanes, the degraded worker, and their slots."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._models = known.catalog.models

    def states(self) -> Readings:
        now = datetime.now(UTC)
        for model in self._models:
            states, _ = self._known.lanes.states(model, now)
            for state in LaneState:
                yield states.count(state), (model, state.value)

    def wanted(self) -> Readings:
        return [(entry.lanes, (model,)) for model, entry in self._models.items()]

    def ready(self) -> Readings:
        now = datetime.now(UTC)
        return [(self._known.lanes.ready_count(model, now), (model,)) for model in self._models]

    def silence(self) -> Readings:
        now = datetime.now(UTC)
        for model in self._models:
            for report in self._known.lanes.reports(model):
                yield max(0.0, (now - report.healthy_at).total_seconds()), (model, report.worker)

    def cold_starts_within_target(self) -> Readings:
        every = self._known.cold_starts.newest_first()
        for model in self._models:
            share = share_within([start for start in every if start.model == model], TARGET_S)
            if share is not None:
                yield share, (model,)

    def degraded_worker_alive(self) -> Readings:
        return [(1.0 if self._known.leader.is_alive(datetime.now(UTC)) else 0.0, ())]

    def slot_state(self) -> Readings:
        slots = self._known.slots.slots(datetime.now(UTC))
        return [(1.0, (slot.slot, slot.state.value, slot.model or "")) for slot in slots]


class _Fallbacks:
    """Figures of the running fallback, by model and cause."""

    def __init__(self, known: Known) -> None:
        self._fallbacks = known.fallbacks
        self._models = known.catalog.models

    def active(self) -> Readings:
        for model, cause, episode in self._running(datetime.now(UTC)):
            yield 0.0 if episode is None else 1.0, (model, cause)

    def running(self) -> Readings:
        now = datetime.now(UTC)
        for model, cause, episode in self._running(now):
            lasted_s = 0.0 if episode is None else max(0.0, (now - episode.since).total_seconds())
            yield lasted_s, (model, cause)

    def _running(self, now: datetime) -> Iterator[tuple[str, FallbackCause, FallbackEpisode | None]]:
        for model in self._models:
            newest = self._fallbacks.as_of(model, now)[-1:]
            for cause in CAUSES:
                running = [episode for episode in newest if episode.until is None and episode.cause == cause]
                yield model, cause, running[0] if running else None


class _Queues:
    """Figures of the tasks that wait and run."""

    def __init__(self, known: Known) -> None:
        self._queues = known.work_queues
        self._models = known.catalog.models
        self._lane_queue_max_msgs = known.catalog.lane_queue_max_msgs

    def depth(self) -> Readings:
        return [(len(queue.waiting), (name,)) for name, queue in self._named()]

    def limit(self) -> Readings:
        for name, _ in self._named():
            yield DEGRADED_MAX_MSGS if name == DEGRADED else self._lane_queue_max_msgs, (name,)

    def oldest_age(self) -> Readings:
        now = datetime.now(UTC)
        for name, queue in self._named():
            ages_s = [(now - task.queued_at).total_seconds() for task in queue.waiting[:1]]
            yield max(0.0, *ages_s) if ages_s else 0.0, (name,)

    def tasks_live(self) -> Readings:
        live = self._live()
        for model in self._models:
            for status in (TaskStatus.PENDING, TaskStatus.PROCESSING):
                yield sum(task.model == model and task.status is status for task in live), (model, status.value)

    def demand(self) -> Readings:
        now, live = datetime.now(UTC), self._live()
        return [(demand(model, live, now=now), (model,)) for model in self._models]

    def _live(self) -> list[GenerationTask]:
        return [task for _, queue in self._named() for task in (*queue.waiting, *queue.running)]

    def _named(self) -> Iterator[tuple[str, WorkQueue]]:
        for model in self._models:
            yield lane_stream(model), self._queues.of("lane", model)
        yield DEGRADED, self._queues.of("degraded", "")


class _Webhooks:
    """Figures of the deliveries to receivers."""

    def __init__(self, deliveries: DeliveryBoard) -> None:
        self._deliveries = deliveries

    def pending(self) -> Readings:
        return [(self._deliveries.count("pending"), ())]

    def dead(self) -> Readings:
        return [(self._deliveries.count("dead"), ())]

    def overdue(self) -> Readings:
        return [(self._deliveries.most_overdue_s(datetime.now(UTC)), ())]


class _Server:
    """Figures of nats-server, as far as a gateway sees it."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def refusing(self) -> Readings:
        refusing = self._known.refusals.now(time.monotonic())
        return [(float(name in refusing), (name,)) for name in self._known.streams_wanted]

    def storage_used(self) -> Readings:
        return self._storage(lambda storage: storage.used_bytes)

    def storage_limit(self) -> Readings:
        return self._storage(lambda storage: storage.limit_bytes)

    def storage_room(self) -> Readings:
        return self._storage(lambda storage: storage.room_bytes)

    def _storage(self, figure: Callable[[Storage], int]) -> Readings:
        storage = self._known.storage.known
        return [] if storage is None else [(figure(storage), ())]
