"""Subjects, streams, consumers and buckets, as data (design §3). `ops/nats/provisioning.py` makes the server match.

Names are stable: operators type them.
"""

import re
from typing import Final, Literal

from msgspec import Struct

DEGRADED_MAX_MSGS: Final = 25
DEGRADED_MAX_AGE_S: Final = 30.0
# A lane looks at this many of the oldest messages of its queue before it chooses one.
LANE_LOOK_MAX: Final = 100
DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0

WORK_CONSUMER: Final = "worker"
TASKS: Final = "tasks"
LANES: Final = "lanes"
LANES_TTL_S: Final = 600.0
CONTROL: Final = "control"
SLOTS: Final = "slots"
SLOTS_REFRESH_S: Final = 60.0
# A worker that has not written its entry again for this long is gone. A quarantine stands until an operator lifts it.
SLOTS_SHOWN_S: Final = 180.0
LEADER: Final = "leader"
LEADER_KEY: Final = "degraded"
WEBHOOKS_LEADER_KEY: Final = "webhooks"
LEADER_TTL_S: Final = 3.0
LEADER_REFRESH_S: Final = 1.0
FALLBACKS: Final = "fallbacks"
COLD_STARTS: Final = "cold_starts"
KEYS: Final = "keys"
WEBHOOKS: Final = "webhooks"
DELIVERIES: Final = "deliveries"
# A delivery outlives the record that it follows from, or it would be made a second time. It also outlives the longest
# pause between two attempts, a day and a tenth.
DELIVERIES_TTL_MIN_S: Final = 3 * DAY_S
# Streams of earlier versions. This version neither writes nor reads them (ADR 0037), and `warmlane provision` removes
# them.
RETIRED: Final = ("DEADLINES",)
DEGRADED: Final = "DEGRADED"
LANE_PREFIX: Final = "LANE_"
WAITING_SUBJECTS: Final = "waiting.*"
REFUSING_SUBJECTS: Final = "refusing.*"

_SAFE_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class ConsumerSpec(Struct, frozen=True, kw_only=True):
    """A durable pull consumer with explicit acks. It has no max_deliver: a finite one would leave messages behind."""

    name: str
    description: str
    filter_subject: str
    ack_wait_s: float
    max_ack_pending: int = 1000


class StreamSpec(Struct, frozen=True, kw_only=True):
    """A file stream."""

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: Literal["workqueue", "limits"] = "workqueue"
    discard: Literal["new", "old"] = "new"
    max_msgs: int = -1
    max_age_s: float = 0.0
    duplicate_window_s: float = 120.0
    consumers: tuple[ConsumerSpec, ...] = ()


class BucketSpec(Struct, frozen=True, kw_only=True):
    """A key-value bucket, which is the stream `KV_<name>`."""

    name: str
    description: str
    history: int = 1
    ttl_s: float = 0.0
    marker_ttl_s: float = 0.0


class Topology(Struct, frozen=True, kw_only=True):
    """All that the server must hold.

    *replicas* is how many servers of a cluster hold each stream and bucket; None leaves that to the server.
    """

    streams: tuple[StreamSpec, ...]
    buckets: tuple[BucketSpec, ...]
    replicas: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The streams, including those behind the buckets."""
        return (*(stream.name for stream in self.streams), *(bucket_stream(bucket.name) for bucket in self.buckets))


def topology(
    models: tuple[str, ...], *, lane_queue_max_msgs: int, keep_s: float, replicas: int | None = None
) -> Topology:
    """The streams and buckets for *models*; finished tasks are kept for *keep_s*."""
    lanes = tuple(
        StreamSpec(
            name=lane_stream(model),
            description=f"Tasks that wait for a warm lane of {model}.",
            subjects=(f"lane.{model}.*",),
            max_msgs=lane_queue_max_msgs,
            consumers=(consumer_on(lane_stream(model), WORK_CONSUMER),),
        )
        for model in models
    )
    degraded = StreamSpec(
        name=DEGRADED,
        description="Tasks of every model that wait for the degraded worker, 30 s at most.",
        subjects=("degraded.*.*",),
        # FR-017, the server's own limits. Never a marker TTL here: it wedges a full queue (design §10.3).
        max_msgs=DEGRADED_MAX_MSGS,
        max_age_s=DEGRADED_MAX_AGE_S,
        duplicate_window_s=30.0,
        consumers=(consumer_on(DEGRADED, WORK_CONSUMER),),
    )
    return Topology(
        streams=(*lanes, degraded),
        buckets=(
            # the record carries its own moves (`timeline`); each older revision that is kept costs as much again
            BucketSpec(name=TASKS, description="The record of every task, with its timeline.", history=4, ttl_s=keep_s),
            BucketSpec(name=LANES, description="What each lane last reported.", ttl_s=LANES_TTL_S),
            BucketSpec(name=SLOTS, description="What is resident on each card; removing a key lifts a quarantine."),
            BucketSpec(
                name=LEADER,
                description="The degraded worker that serves the degraded queue, the gateway that delivers webhooks.",
                marker_ttl_s=60.0,
            ),
            # a history, so that the last usable value is known when the newest one cannot be used
            BucketSpec(name=CONTROL, description="The operator's switch of each model: auto or degraded.", history=16),
            BucketSpec(
                name=FALLBACKS, description="When and why requests of a model went to the degraded worker.", history=64
            ),
            BucketSpec(name=COLD_STARTS, description="How long each lane took to become warm.", history=64),
            # no ttl: a key is in force until it is revoked, and the entry that is left of one tells a gateway that it
            # is not open
            BucketSpec(name=KEYS, description="The hashes of API keys, and what each may do.", history=4),
            BucketSpec(name=WEBHOOKS, description="The endpoints of webhooks, with their sealed secrets.", history=4),
            BucketSpec(
                name=DELIVERIES,
                description="Webhook deliveries: pending, delivered or dead.",
                ttl_s=deliveries_ttl_s(keep_s),
            ),
        ),
        replicas=replicas,
    )


def deliveries_ttl_s(keep_s: float) -> float:
    """How long a delivery is kept after its last change, where finished tasks are kept for *keep_s*."""
    return max(DELIVERIES_TTL_MIN_S, keep_s + DAY_S)


def consumer_on(stream: str, name: str) -> ConsumerSpec:
    """The consumer *name* of *stream*. A process that finds it missing makes it again from this."""
    # a model's name is in small letters
    model = stream.removeprefix(LANE_PREFIX).lower()
    subject = "degraded.*.*" if stream == DEGRADED else f"lane.{model}.*"
    whose = "the degraded worker takes" if stream == DEGRADED else f"the lanes of {model} take"
    description = f"Where {whose} the next task."
    return ConsumerSpec(name=name, description=description, filter_subject=subject, ack_wait_s=5.0)


def lane_stream(model: str) -> str:
    """The work stream of *model*'s lanes."""
    return f"{LANE_PREFIX}{model.upper()}"


def work_stream(route: Literal["lane", "degraded"], model: str) -> str:
    """The stream that carries a task of *model* placed on *route*."""
    return lane_stream(model) if route == "lane" else DEGRADED


def work_subject(route: Literal["lane", "degraded"], model: str, task_id: str) -> str:
    """The subject on which a task is published."""
    return f"{route}.{_token(model)}.{_token(task_id)}"


def is_work_subject(subject: str) -> bool:
    """Whether a message on *subject* goes to a work queue, whose length is limited."""
    return subject.startswith(("lane.", "degraded."))


def control_key(model: str) -> str:
    """The key of the operator's switch of *model* in KV `control`."""
    return f"lanes.{_token(model)}"


def demand_subject(model: str) -> str:
    """Where a gateway notifies evicted lanes of *model* that a request came. Not stored."""
    return f"demand.{_token(model)}"


def waiting_subject(task_id: str) -> str:
    """Where gateways ask each other whether a caller is held for a task (ADR 0011)."""
    return f"waiting.{_token(task_id)}"


def refusing_subject(stream: str) -> str:
    """Where a process reports that *stream* takes no writes. Not stored (ADR 0031)."""
    return f"refusing.{_token(stream)}"


def stream_of(subject: str) -> str:
    """The stream that stores a message on *subject*. Raises ValueError if none of Warmlane's streams does."""
    tokens = subject.split(".", 2)
    match tokens[0]:
        case "$KV":
            return bucket_stream(tokens[1])
        case "lane":
            return lane_stream(tokens[1])
        case "degraded":
            return DEGRADED
        case _:
            raise ValueError(f"no stream takes {subject!r}")


def bucket_subject(bucket: str, key: str) -> str:
    """The subject of *key* in *bucket*. Raises ValueError for a key that could mean another subject."""
    for token in key.split("."):
        _token(token)
    return f"$KV.{bucket}.{key}"


def lane_key(model: str, worker: str) -> str:
    """The key of a lane in KV `lanes`. Raises ValueError for a name that could mean another key."""
    return f"{_token(model)}.{_token(worker)}"


def bucket_stream(bucket: str) -> str:
    """The stream behind *bucket*."""
    return f"KV_{bucket}"


def is_token(text: str) -> bool:
    """Whether *text* can stand in a subject or a key, and means nothing but itself there."""
    return _SAFE_TOKEN.fullmatch(text) is not None


def _token(text: str) -> str:
    # a dot, star, angle bracket or blank in an id would change the meaning of the subject
    if not is_token(text):
        raise ValueError(f"not usable in a subject: {text[:128]!r}")
    return text
