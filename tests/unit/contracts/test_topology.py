from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.topology import (
    DEGRADED,
    TASKS,
    StreamSpec,
    Topology,
    bucket_stream,
    bucket_subject,
    consumer_on,
    stream_of,
    topology,
    work_stream,
    work_subject,
)

TASK_ID = "019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55"
WANTED = topology(("anisora", "phr00t"), lane_queue_max_msgs=1000, keep_s=604_800)


def stream(name: str, wanted: Topology = WANTED) -> StreamSpec:
    [found] = [spec for spec in wanted.streams if spec.name == name]
    return found


def test_degraded_has_exactly_the_limits_of_the_specification() -> None:
    """FR-017, SC-008, SC-009: 25 messages, 30 seconds, and the 26th is refused."""
    spec = stream(DEGRADED)
    assert (spec.max_msgs, spec.max_age_s, spec.discard, spec.retention) == (25, 30.0, "new", "workqueue")
    assert spec.duplicate_window_s == 30.0
    assert spec.subjects == ("degraded.*.*",)


def test_the_stream_of_a_subject() -> None:
    """Every subject on which something is stored leads back to its stream."""
    for spec in WANTED.streams:
        assert {stream_of(subject) for subject in spec.subjects} == {spec.name}
        assert all(consumer_on(spec.name, consumer.name) == consumer for consumer in spec.consumers)
    assert {stream_of(bucket_subject(bucket.name, "a")) for bucket in WANTED.buckets} <= set(WANTED.names)
    with pytest.raises(ValueError, match="no stream takes"):
        stream_of("deadline.set.admit.a")


def test_a_stream_for_each_model() -> None:
    assert [spec.name for spec in WANTED.streams] == ["LANE_ANISORA", "LANE_PHR00T", DEGRADED]
    lane = stream("LANE_PHR00T")
    assert lane.subjects == ("lane.phr00t.*",)
    assert (lane.max_msgs, lane.discard, lane.retention) == (1000, "new", "workqueue")
    assert lane.max_age_s == 0  # FR-021 c is a deadline of the record: a lane's message must not vanish by itself
    assert stream("LANE_THIRD", topology(("third",), lane_queue_max_msgs=5, keep_s=1)).max_msgs == 5


def test_every_work_stream_has_the_one_consumer_of_its_workers() -> None:
    for spec in WANTED.streams:
        [consumer] = spec.consumers
        assert (consumer.name, consumer.filter_subject, consumer.ack_wait_s) == ("worker", spec.subjects[0], 5.0)


def test_buckets() -> None:
    buckets = {bucket.name: bucket for bucket in WANTED.buckets}
    first = ["tasks", "lanes", "slots", "leader", "control", "fallbacks", "cold_starts", "keys"]
    assert list(buckets) == [*first, "webhooks", "deliveries"]
    # or a delivery would be made a second time from its record, or be gone before its last attempt
    assert buckets["deliveries"].ttl_s >= buckets[TASKS].ttl_s + 86_400
    assert topology(("anisora",), lane_queue_max_msgs=1, keep_s=1).buckets[-1].ttl_s >= 2 * 86_400
    assert (buckets[TASKS].history, buckets[TASKS].ttl_s) == (4, 604_800)
    assert buckets["lanes"].ttl_s == 600
    assert buckets["leader"].marker_ttl_s == 60


@pytest.mark.parametrize("route", ["lane", "degraded"])
@pytest.mark.parametrize("model", ["anisora", "phr00t"])
def test_a_task_is_published_where_its_stream_listens(route: Literal["lane", "degraded"], model: str) -> None:
    subject = work_subject(route, model, TASK_ID)
    assert subject == f"{route}.{model}.{TASK_ID}"
    [listening] = [spec.name for spec in WANTED.streams for pattern in spec.subjects if matches(pattern, subject)]
    assert work_stream(route, model) == listening


def matches(pattern: str, subject: str) -> bool:
    """NATS's own rule, for the patterns used here."""
    wanted, given_ = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1] + ["*"] * max(1, len(given_) - len(wanted) + 1)
    return len(wanted) == len(given_) and all(part in ("*", name) for part, name in zip(wanted, given_, strict=True))


def test_bucket_names() -> None:
    assert bucket_subject(TASKS, TASK_ID) == f"$KV.tasks.{TASK_ID}"
    assert bucket_subject("lanes", "anisora.worker-1") == "$KV.lanes.anisora.worker-1"
    assert bucket_stream(TASKS) == "KV_tasks"


BAD = ["", " ", "a b", "a.b", "*", ">", "a*", "a>", "a\n", "\t", "ä", "$KV", "a/b", "a" * 129, "a\0"]


@pytest.mark.parametrize("text", BAD)
def test_an_id_that_would_mean_another_subject_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not usable in a subject"):
        work_subject("lane", "anisora", text)
    with pytest.raises(ValueError, match="not usable in a subject"):
        work_subject("degraded", text, TASK_ID)


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", ">"])
def test_a_key_that_would_mean_other_keys_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not usable in a subject"):
        bucket_subject(TASKS, key)


@given(st.text())
def test_any_id_gives_a_subject_of_three_parts_or_is_refused(task_id: str) -> None:
    try:
        subject = work_subject("lane", "anisora", task_id)
    except ValueError:
        return
    assert len(subject.split(".")) == 3
    assert not set(subject) & set("*> \t\r\n")
