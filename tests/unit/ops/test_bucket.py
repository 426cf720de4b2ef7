"""One entry of a typed bucket: decoded when it is asked for, and one that cannot be read is reported once."""

import msgspec
from structlog.testing import capture_logs

from contracts.lanes import ColdStart
from contracts.tasks import encode_task
from ops.nats.bucket import Versioned
from ops.nats.buckets import RECORDS, STARTS
from ops.nats.entry import Entry
from tests.kit.records import NOW, processing_task

START = ColdStart(model="anisora", worker="a-0", started_at=NOW, ended_at=NOW, seconds=1.0)


def test_an_entry_says_what_its_bytes_hold() -> None:
    raw = msgspec.json.encode(START)
    entry = Versioned(STARTS, Entry("anisora", raw, 7, NOW))
    assert (entry.key, entry.value, entry.raw, entry.revision, entry.time) == ("anisora", START, raw, 7, NOW)
    assert not entry.is_deleted


def test_a_deletion_marker_is_no_value_and_no_news_of_damage() -> None:
    with capture_logs() as logged:
        entry = Versioned(STARTS, Entry("anisora", None, 7, NOW))
        assert entry.is_deleted
        assert entry.value is None
    assert logged == []


def test_what_cannot_be_read_is_reported_when_it_is_asked_for_and_once() -> None:
    with capture_logs() as logged:
        entry = Versioned(STARTS, Entry("unreadable-once", b"\xff", 7, NOW))
        assert logged == []  # a reader that knows the revision already does not pay for it
        assert entry.value is None
        assert entry.value is None
    assert not entry.is_deleted
    assert [(line["kind"], line["where"], line["revision"]) for line in logged] == [
        ("cold_start", "unreadable-once", 7)
    ]


def test_a_record_of_another_task_cannot_be_read_and_commands_pass_it_over_in_silence() -> None:
    raw = encode_task(processing_task())
    with capture_logs() as logged:
        assert Versioned(RECORDS, Entry("mine", raw, 7, NOW), reports=False).value is None
    assert logged == []
