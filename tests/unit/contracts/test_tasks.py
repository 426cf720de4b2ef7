import json
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from msgspec.structs import replace

from contracts.memory import SwapReceipt
from contracts.tasks import (
    FailureCode,
    GenerationTask,
    ImageReference,
    TaskStatus,
    UnreadableTask,
    decode_task,
    encode_task,
    keyed_task_id,
    seed_of,
)
from tests.kit.records import pending_task as task

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IMAGE = ImageReference(sha256="0123456789abcdef" * 4, media_type="image/png", bytes=9, width=3, height=2)


PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    NoneType: st.none(),
}


def within(meta: Meta) -> st.SearchStrategy[Any]:
    """Any value that *meta* allows, as far as records use it."""
    if meta.tz:
        return st.datetimes(datetime(2000, 1, 1), datetime(2199, 12, 31), timezones=st.just(UTC))
    if meta.pattern is not None:
        return st.from_regex(meta.pattern)
    if meta.max_length is not None:
        return TEXT
    if isinstance(meta.le, int):
        return st.integers(meta.ge, meta.le)  # type: ignore[arg-type]  # both are whole then
    return st.floats(meta.ge, meta.le)


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of *kind*, as far as records use types."""
    if get_origin(kind) is Annotated and get_origin(get_args(kind)[0]) is dict:
        key, value = get_args(get_args(kind)[0])
        return st.dictionaries(any_of(key), any_of(value), max_size=get_args(kind)[1].max_length)
    if get_origin(kind) is Annotated:
        return within(get_args(kind)[1])
    if kind in PLAIN:
        return PLAIN[kind]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(any_of(get_args(kind)[0]), max_size=3).map(tuple)
    if get_origin(kind) in (Union, UnionType):
        return st.one_of(*map(any_of, get_args(kind)))
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return st.builds(kind, **{name: any_of(hint) for name, hint in get_type_hints(kind, include_extras=True).items()})


@given(any_of(GenerationTask))
def test_a_record_comes_back_as_it_was_stored(record: GenerationTask) -> None:
    if record.video is not None:
        thumbnail = record.video.thumbnail
        if thumbnail is not None:
            thumbnail = replace(thumbnail, path=record.thumbnail_path)
        record = replace(record, video=replace(record.video, path=record.video_path, thumbnail=thumbnail))
    assert decode_task(encode_task(record)) == record


def test_a_receipt_without_parts_of_the_load_is_read() -> None:
    """Older versions did not measure them: unknown, not nothing."""
    receipt = SwapReceipt(
        slot="cpu-0", released_model=None, loaded_model="phr00t", how="unloaded", probe="rss", load_s=0.5, read_s=0.25
    )
    record = json.loads(encode_task(replace(task(), swap=receipt)))
    for part in ("read_s", "copy_s", "first_step_s"):
        del record["swap"][part]
    assert decode_task(json.dumps(record).encode()).swap == replace(receipt, read_s=None)


def test_a_record_of_a_newer_version_is_read() -> None:
    """Unknown fields are refused on HTTP and ignored on NATS (design §9), at every level."""
    stored = json.loads(encode_task(task()))
    stored["tariff"] = {"a": [1]}
    stored["parameters"]["motion"] = 0.5
    assert decode_task(json.dumps(stored).encode()) == task()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(encode_task(task())[:-1], id="cut"),
        pytest.param(encode_task(task()) + b"x", id="with-more-behind"),
        pytest.param(encode_task(task()).replace(b"a red fox", b"a \xff"), id="bad-utf-8-in-a-text"),
        pytest.param(encode_task(task()).replace(b'"anisora"', b'"\xc3("'), id="bad-utf-8-in-the-model"),
        pytest.param(encode_task(task()).replace(b'"pending"', b'"waiting"'), id="unknown-status"),
        pytest.param(encode_task(task()).replace(b'"epoch":0', b'"epoch":"0"'), id="epoch-as-text"),
        pytest.param(encode_task(task()).replace(b'"created_at":"2026', b'"created_at":"year'), id="no-time"),
        pytest.param(b'{"x":' + b"[" * 200_000, id="nested-in-an-unknown-field"),
    ],
)
def test_bytes_that_are_not_a_record_are_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableTask):
        decode_task(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_record_or_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableTask):
        decode_task(data)


@given(st.binary(min_size=1, max_size=4), st.integers(0))
def test_a_damaged_record_is_a_record_or_unreadable(damage: bytes, place: int) -> None:
    stored = encode_task(task())
    place %= len(stored)
    damaged = stored[:place] + damage + stored[place + len(damage) :]
    try:
        decode_task(damaged)
    except UnreadableTask:
        return


KEYS = st.tuples(TEXT, TEXT, st.integers(0, 5))


@given(KEYS, KEYS)
def test_keyed_ids_are_equal_for_equal_keys_only(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    assert (keyed_task_id(*one) == keyed_task_id(*other)) is (one == other)


@given(KEYS)
def test_a_keyed_id_is_a_uuid_of_the_form_for_hashes(key: tuple[str, str, int]) -> None:
    made = UUID(keyed_task_id(*key))
    assert made.version == 8
    assert made.variant == "specified in RFC 4122"


def test_keyed_ids_are_stable() -> None:
    """A client may retry across a deployment: the same key must still give the same id."""
    assert keyed_task_id("anonymous", "order-17") == "5d6c2221-1ff4-8bf9-93b8-94f3f5b1f2d4"
    assert keyed_task_id("anonymous", "order-17", 1) == "7c2c3761-7493-8b5f-8181-795a075cb717"


def test_caller_and_key_do_not_run_together() -> None:
    assert keyed_task_id("ab", "c") != keyed_task_id("a", "bc")
    assert keyed_task_id('a","b', "c") != keyed_task_id("a", 'b","c')


@given(TEXT, st.integers(1, 2**32))
def test_a_seed_is_derived_from_the_id(task_id: str, span: int) -> None:
    assert 0 <= seed_of(task_id, span) < span
    assert seed_of(task_id, span) == seed_of(task_id, span)


def test_places_of_a_task() -> None:
    it = task(epoch=3)
    assert it.message_id == f"{it.id}.3"
    assert it.video_path == f"videos/{it.id}.3.mp4"
    assert it.image_path is None
    with_image = task(parameters=msgspec.structs.replace(it.parameters, image=IMAGE))
    assert with_image.image_path == f"images/{it.id}.0123456789abcdef"


def test_ends_and_codes() -> None:
    assert [status.value for status in TaskStatus] == ["pending", "processing", "done", "failed"]
    assert [status for status in TaskStatus if status.is_terminal] == [TaskStatus.DONE, TaskStatus.FAILED]
    known: set[Any] = {
        "queue_overloaded",
        "cancelled",
        "out_of_memory",
        "inference_failed",
        "inference_timeout",
        "worker_lost",
        "invalid_input",
        "storage_failed",
    }
    assert {code.value for code in FailureCode} >= known


def test_times_keep_their_microseconds() -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
    stored = decode_task(encode_task(task(created_at=moment)))
    assert stored.created_at - moment == timedelta(0)
    assert stored.created_at.tzinfo is not None
