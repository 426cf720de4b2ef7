"""Bytes of other processes are read or refused: none raise another error, and no refusal shows their content."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.lanes import (
    ColdStart,
    FallbackEpisode,
    LaneHeartbeat,
    LaneState,
    Leadership,
    SlotState,
    VideoPipelineSlot,
    decode_cold_start,
    decode_episode,
    decode_heartbeat,
    decode_leadership,
    decode_slot,
)
from contracts.tasks import (
    GenerationTask,
    ReplacedParameter,
    UnreadableTask,
    decode_task,
    decode_task_of,
    encode_task,
)
from contracts.wire import ENTRY_MAX_BYTES, RECORD_MAX_BYTES, Unreadable
from ops.telemetry.unreadable import KNOWN_MAX, Unreadables
from tests.kit.records import NOW, TASK_ID, pending_task

SECRET = "zebra7319"
Decode = Callable[[bytes], Any]
GOOD: dict[Decode, Any] = {
    decode_task: pending_task(),
    decode_heartbeat: LaneHeartbeat(
        model="anisora",
        worker="anisora-0",
        state=LaneState.WARM,
        health_age_s=0.5,
        slot="cpu-0",
        pid=7,
        started_at=NOW,
    ),
    decode_episode: FallbackEpisode(model="anisora", cause="capacity", since=NOW),
    decode_cold_start: ColdStart(model="anisora", worker="anisora-0", started_at=NOW, ended_at=NOW, seconds=1.0),
    decode_slot: VideoPipelineSlot(
        slot="cpu-0", worker="w", pid=7, model=None, state=SlotState.EMPTY, since=NOW, detail=""
    ),
    decode_leadership: Leadership(worker="w", owner="o", slot="cpu-0", pid=7, since=NOW),
}
EVERY = pytest.mark.parametrize("decode", GOOD, ids=lambda decode: decode.__name__)


def good(decode: Decode) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(msgspec.json.encode(GOOD[decode]))
    return fields


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@EVERY
def test_any_bytes_are_read_or_refused(decode: Decode) -> None:
    whole = msgspec.json.encode(GOOD[decode])

    @given(st.binary(max_size=200) | st.integers(0, len(whole)).map(lambda end: whole[:end]))
    def read(data: bytes) -> None:
        with contextlib.suppress(Unreadable):
            assert decode(data) == GOOD[decode]

    read()


@EVERY
def test_any_value_of_any_field_is_read_or_refused(decode: Decode) -> None:
    fields = good(decode)
    moments = st.datetimes().map(str) | st.datetimes(timezones=st.just(UTC)).map(str)

    @given(st.sampled_from(sorted(fields)), JSON | moments | st.floats().map(str))
    def read(name: str, value: Any) -> None:
        data = json.dumps(fields | {name: value}, ensure_ascii=False).encode(errors="surrogatepass")
        with contextlib.suppress(Unreadable):
            decode(data)

    read()


@EVERY
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda fields: b"", id="empty"),
        pytest.param(lambda fields: b"\0\xff" * 99, id="garbage"),
        pytest.param(lambda fields: b"[]", id="array"),
        pytest.param(lambda fields: json.dumps(fields)[:-9].encode(), id="cut"),
        pytest.param(lambda fields: json.dumps(fields).encode().replace(b'"', b'"\xff', 1), id="bad-utf-8-in-a-key"),
        pytest.param(lambda fields: json.dumps(fields).encode().replace(b': "', b': "\xff'), id="bad-utf-8-in-a-text"),
        pytest.param(
            lambda fields: json.dumps(fields).encode()[:-1] + b',"x":' + b"[" * 9_999 + b"]" * 9_999 + b"}", id="deep"
        ),
        pytest.param(
            lambda fields: json.dumps(fields | {"x": SECRET * (RECORD_MAX_BYTES // 9 + 1)}).encode(), id="large"
        ),
        pytest.param(lambda fields: json.dumps(dict(list(fields.items())[1:])).encode(), id="a-field-is-missing"),
    ],
)
def test_spoilt(decode: Decode, spoil: Callable[[dict[str, Any]], bytes]) -> None:
    with pytest.raises(Unreadable) as refusal:
        decode(spoil(good(decode)))
    assert SECRET not in str(refusal.value)
    assert refusal.value.__cause__ is None  # its text would show what came


@EVERY
def test_what_a_later_version_adds_is_ignored(decode: Decode) -> None:
    assert decode(json.dumps(good(decode) | {"added_later": {"deep": [1, SECRET]}}).encode()) == GOOD[decode]


def test_the_bound_of_an_entry_is_exact() -> None:
    whole = msgspec.json.encode(GOOD[decode_slot])
    assert decode_slot(whole + b" " * (ENTRY_MAX_BYTES - len(whole))) == GOOD[decode_slot]
    with pytest.raises(Unreadable, match=f"{ENTRY_MAX_BYTES + 1} bytes, more than {ENTRY_MAX_BYTES}"):
        decode_slot(whole + b" " * (ENTRY_MAX_BYTES + 1 - len(whole)))


@pytest.mark.parametrize(
    ("decode", "changes", "place"),
    [
        (decode_task, {"status": SECRET}, "$.status"),
        (decode_task, {"status": f"` - at `$.{SECRET}`"}, ""),
        (decode_task, {"route": SECRET}, "$.route"),
        (decode_task, {"id": f"../../{SECRET}"}, "$.id"),
        (decode_task, {"id": ""}, "$.id"),
        (decode_task, {"id": f"{TASK_ID}\n"}, "$.id"),
        (decode_task, {"id": "a.b"}, "$.id"),
        (decode_task, {"id": "x" * 129}, "$.id"),
        (decode_task, {"model": "*"}, "$.model"),
        (decode_task, {"model": "a.>"}, "$.model"),
        (decode_task, {"model": "../x"}, "$.model"),
        (decode_task, {"epoch": -1}, "$.epoch"),
        (decode_task, {"epoch": 10**30}, "$.epoch"),
        (decode_task, {"attempt": 10**7}, "$.attempt"),
        (decode_task, {"created_at": "2026-01-01T00:00:00"}, "$.created_at"),
        (decode_task, {"created_at": "0001-01-01T00:00:00Z"}, "$.created_at"),
        (decode_task, {"deadline_at": "9999-12-31T23:59:59Z"}, "$.deadline_at"),
        (decode_task, {"lease_expires_at": "9999-12-31T23:59:59Z"}, "$.lease_expires_at"),
        (decode_task, {"timeline": [{"at": "2026-01-01T00:00:00", "event": "x"}]}, "$.timeline[0].at"),
        (
            decode_task,
            {"decision": {"at": "0001-01-01T00:00:00Z", "forced_degraded": False, "lanes": [], "outcome": ""}},
            "$.at",
        ),
        (
            decode_task,
            {
                "decision": {
                    "at": "2026-01-01T00:00:00Z",
                    "forced_degraded": False,
                    "lanes": [],
                    "outcome": "",
                    "health_timeout_s": 1e300,
                }
            },
            "$.decision.health_timeout_s",
        ),
        (decode_heartbeat, {"state": SECRET}, "$.state"),
        (decode_heartbeat, {"health_age_s": 1e300}, "$.health_age_s"),
        (decode_heartbeat, {"started_at": "2026-01-01T00:00:00"}, "$.started_at"),
        (decode_episode, {"until": "9999-12-31T23:59:59Z"}, "$.until"),
        (decode_episode, {"cause": SECRET}, "$.cause"),
        (decode_cold_start, {"ended_at": "2026-01-01T00:00:00"}, "$.ended_at"),
        (decode_slot, {"state": SECRET}, "$.state"),
        (decode_leadership, {"since": "0001-01-01T00:00:00Z"}, "$.since"),
    ],
)
def test_hostile_values(decode: Decode, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(Unreadable) as refusal:
        decode(json.dumps(good(decode) | changes).encode())
    assert place in str(refusal.value)
    assert SECRET not in str(refusal.value)


def with_image(sha256: str) -> bytes:
    fields = good(decode_task)
    image = {"sha256": sha256, "media_type": "image/png", "bytes": 1, "width": 1, "height": 1}
    fields["parameters"]["image"] = image
    return json.dumps(fields).encode()


def with_video(**changes: Any) -> bytes:
    video = {"path": f"videos/{TASK_ID}.0.mp4", "bytes": 1, "sha256": "ab", "width": 1, "height": 1}
    return json.dumps(good(decode_task) | {"video": video | {"frames": 1, "fps": 1} | changes}).encode()


def with_thumbnail(path: str, sha256: str = "ab" * 32) -> bytes:
    return with_video(thumbnail={"path": path, "bytes": 1, "sha256": sha256})


def test_paths_stay_in_the_store_and_with_their_task() -> None:
    assert decode_task(with_image("ab" * 32)).image_path == f"images/{TASK_ID}.{'ab' * 8}"
    assert decode_task(with_video()).video is not None
    assert decode_task(with_thumbnail(f"thumbnails/{TASK_ID}.0.webp")).video is not None
    for data in (
        with_image("/../../../etc/x"),
        with_image("AB" * 32),
        with_video(path="/etc/passwd"),
        with_video(path=f"videos/{TASK_ID}.0/../../x"),
        with_video(path=f"videos/{TASK_ID}../x"),
        with_video(path="videos/01890a5d-ac96-774b-bcce-b302099a8058.0.mp4"),  # of another task
        with_video(path=f"images/{TASK_ID}.0.mp4"),
        with_video(sha256='"\r\nSet-Cookie: x'),  # it becomes an ETag
        with_thumbnail("/etc/passwd"),
        with_thumbnail(f"thumbnails/{TASK_ID}.0/../../x"),
        with_thumbnail(f"videos/{TASK_ID}.0.mp4"),
        with_thumbnail(f"thumbnails/{TASK_ID}.0.webp", '"\r\nSet-Cookie: x'),
    ):
        with pytest.raises(UnreadableTask):
            decode_task(data)


def test_a_task_of_another_id_is_refused() -> None:
    data = encode_task(pending_task())
    assert decode_task_of(TASK_ID, data) == pending_task()
    with pytest.raises(UnreadableTask, match="another task's"):
        decode_task_of("other", data)


def test_an_unreadable_message_is_counted_and_logged_once_without_its_content() -> None:
    unreadables = Unreadables()
    with capture_logs() as lines:
        try:
            decode_task(json.dumps(good(decode_task) | {"status": SECRET, "prompt": SECRET}).encode())
        except UnreadableTask as error:
            unreadables.report("record", "a-key", error, revision=7)
            unreadables.report("record", "a-key", error, revision=7)  # read again
            unreadables.report("record", "a-key", error, revision=8)
            unreadables.report("task", "lane.anisora.x" + "y" * 9_999, error)
            unreadables.report("task", "lane.anisora.x" + "y" * 9_999, error)  # a message has no revision: another one
    assert [line["count"] for line in lines] == [1, 2, 3, 4]
    assert (lines[0]["kind"], lines[0]["where"], lines[0]["revision"]) == ("record", "a-key", 7)
    assert lines[0]["reason"] == "Invalid enum value - at `$.status`"
    assert all(len(str(line)) < 600 for line in lines)
    assert SECRET not in str(lines)


def test_the_memory_of_unreadable_messages_is_bounded() -> None:
    unreadables = Unreadables()
    with capture_logs():
        for number in range(2 * KNOWN_MAX):
            unreadables.report("record", f"key-{number}", "x", revision=1)
    assert len(unreadables._known) == KNOWN_MAX


def test_a_task_with_a_warning_and_versions_that_know_of_none() -> None:
    """docs/operate/rollback.md, a deploy that is taken back: an older version drops the warning, and keeps the rest."""
    warned = replace(pending_task(), replaced=(ReplacedParameter(field="steps", used=8, got=20),))
    assert decode_task(encode_task(warned)) == warned
    known = [
        (field.name, field.type) if field.required else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(GenerationTask)
        if field.name != "replaced"
    ]
    older = msgspec.defstruct("GenerationTask", known, frozen=True, kw_only=True)
    written_back = msgspec.json.encode(msgspec.json.decode(encode_task(warned), type=older))
    assert b"replaced" not in written_back
    assert decode_task(written_back) == pending_task()


# Never add one: what an older version wrote has to stay readable, so a new field needs a default.
REQUIRED: dict[Decode, str] = {
    decode_task: "id model parameters request_sha256 status route epoch created_at queued_at deadline_at",
    decode_heartbeat: "model worker state health_age_s slot pid started_at",
    decode_episode: "model cause since",
    decode_cold_start: "model worker started_at ended_at seconds",
    decode_slot: "slot worker pid model state since",
    decode_leadership: "worker owner slot pid since",
}


@EVERY
def test_what_an_older_version_wrote_is_read(decode: Decode) -> None:
    named = REQUIRED[decode].split()
    assert decode(json.dumps({name: good(decode)[name] for name in named}).encode()) is not None


def test_times_in_other_zones_are_accepted() -> None:
    task = decode_task(json.dumps(good(decode_task) | {"created_at": "2026-01-01T00:00:00+05:30"}).encode())
    assert task.created_at == datetime(2025, 12, 31, 18, 30, tzinfo=UTC)
