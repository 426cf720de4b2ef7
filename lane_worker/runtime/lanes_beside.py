"""The other lanes of a model, read when they matter: with a watch, every lane would receive all heartbeats."""

from datetime import timedelta

import structlog

from contracts.lanes import LaneHeartbeat, LaneReport
from contracts.topology import LANES, bucket_stream, bucket_subject
from ops.nats.bucket import Bucket, Versioned
from ops.nats.buckets import HEARTBEATS
from ops.nats.link import NatsLink

log = structlog.get_logger("lanes_beside")


async def lane_reports(link: NatsLink, model: str) -> list[LaneReport]:
    """The last report of each lane of *model*; one that cannot be read is left out. Raises TransportUnavailable."""
    prefix = f"{bucket_subject(LANES, model)}."
    subjects = await link.streams.subjects(bucket_stream(LANES), f"{prefix}*")
    bucket = Bucket(link, HEARTBEATS)
    entries = [await bucket.get(f"{model}.{subject.removeprefix(prefix)}") for subject in subjects]
    return [report for report in map(_report, entries) if report is not None]


def _report(entry: Versioned[LaneHeartbeat] | None) -> LaneReport | None:
    if entry is None or entry.value is None:
        return None
    heartbeat = entry.value
    return LaneReport(
        model=heartbeat.model,
        worker=heartbeat.worker,
        state=heartbeat.state,
        healthy_at=entry.time - timedelta(seconds=heartbeat.health_age_s),
    )
