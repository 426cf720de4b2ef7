"""`/admin` over real HTTP: what operators see, and why a task was routed as it was."""

import asyncio
import json
import os
import pty
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from contracts.lanes import ColdStart, LaneState, Leadership, SlotState, VideoPipelineSlot
from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DEGRADED,
    DEGRADED_MAX_MSGS,
    LANES,
    LEADER,
    LEADER_KEY,
    SLOTS,
    bucket_stream,
    lane_stream,
)
from ops.machine.processes import warmlane_command
from tests.integration.test_http_generate import problem
from tests.kit.behind import js_of
from tests.kit.gateway import System, report_lane
from tests.kit.support import clean_environment, eventually


@pytest.fixture
async def system(bare_system: System) -> System:
    """A gateway whose lanes, switches, slots and queues are in their initial state."""
    for bucket in (LANES, CONTROL, SLOTS):
        for key in await keys(bare_system, bucket):
            entry = await bare_system.link.entries.get(bucket, key)
            if entry is not None and entry.value is not None:
                await bare_system.link.entries.delete(bucket, key, revision=entry.revision)
    await js_of(bare_system.link).purge_stream(lane_stream("anisora"))

    async def clean() -> bool:
        lanes = await admin(bare_system, "lanes")
        return not lanes["slots"] and not lanes["ignored_control"] and not any(m["lanes"] for m in lanes["models"])

    await eventually(clean)
    return bare_system


async def keys(system: System, bucket: str) -> list[str]:
    info = await js_of(system.link).stream_info(bucket_stream(bucket), subjects_filter=f"$KV.{bucket}.>")
    return [subject.removeprefix(f"$KV.{bucket}.") for subject in info.state.subjects or {}]


async def admin(system: System, what: str) -> dict[str, Any]:
    response = await system.http.get(f"/admin/{what}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def model_of(system: System, model: str = "anisora") -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in (await admin(system, "lanes"))["models"] if each["model"] == model)
    return found


async def test_lanes_and_where_requests_go(system: System) -> None:
    nothing = await model_of(system)
    assert (nothing["mode"], nothing["ready"], nothing["lanes"], nothing["wanted"]) == ("auto", False, [], 1)
    assert (nothing["route"]["outcome"], nothing["route"]["rule"]) == ("degraded: capacity", 4)
    await report_lane(system.link, "anisora", LaneState.QUOTA_DENIED, worker="anisora-1")

    async def denied() -> bool:
        return bool((await model_of(system))["route"]["rule"] == 3)

    await eventually(denied)
    await report_lane(system.link, "anisora", LaneState.WARM)

    async def warm() -> dict[str, Any] | None:
        model = await model_of(system)
        return model if model["ready"] else None

    model = await eventually(warm)
    assert model is not None
    assert (model["route"]["outcome"], model["route"]["rule"]) == ("lane", 2)
    assert [(lane["worker"], lane["state"]) for lane in model["lanes"]] == [
        ("anisora-0", "warm"),
        ("anisora-1", "quota_denied"),
    ]
    lane = model["lanes"][0]
    assert set(lane) == {
        "worker",
        "slot",
        "state",
        "detail",
        "health_age_s",
        "silent",
        "since",
        "pid",
        "started_at",
        "warm_after_s",
    }
    assert lane["slot"] == "cpu-0"
    lanes = await admin(system, "lanes")
    assert lanes["judged_at"] == lanes["now"]


async def test_slots_and_ignored_switches_are_shown(system: System) -> None:
    slot = VideoPipelineSlot(
        slot="cpu-2", worker="degraded-0", pid=7, model="phr00t", state=SlotState.RESIDENT, since=datetime.now(UTC)
    )
    await system.link.entries.put(SLOTS, "cpu-2", msgspec.json.encode(slot))
    await system.link.entries.put(CONTROL, "lanes.anisora", b"off")

    async def shown() -> dict[str, Any] | None:
        lanes = await admin(system, "lanes")
        return lanes if lanes["slots"] and lanes["ignored_control"] else None

    lanes = await eventually(shown)
    assert lanes is not None
    assert [(each["slot"], each["model"], each["state"]) for each in lanes["slots"]] == [
        ("cpu-2", "phr00t", "resident")
    ]
    assert [(each["key"], each["value"]) for each in lanes["ignored_control"]] == [("lanes.anisora", "off")]
    assert (await model_of(system))["mode"] == "auto"


async def test_the_queues_as_the_server_counts_them(system: System) -> None:
    await system.fill()
    await system.lane_is(LaneState.WARM)
    task = await system.submit()
    waiting = {queue["stream"]: queue for queue in (await admin(system, "queue"))["queues"]}
    assert set(waiting) == {"LANE_ANISORA", "LANE_PHR00T", DEGRADED}
    assert (waiting[DEGRADED]["messages"], waiting[DEGRADED]["max_msgs"]) == (DEGRADED_MAX_MSGS, DEGRADED_MAX_MSGS)
    assert waiting[DEGRADED]["wait_limit_s"] == 30
    assert waiting["LANE_ANISORA"]["messages"] == 1
    assert waiting["LANE_ANISORA"]["oldest_age_s"] >= 0
    assert waiting["LANE_PHR00T"]["oldest_age_s"] is None
    assert waiting["LANE_ANISORA"]["running"] == []
    await system.claim(task["id"])

    async def running() -> list[dict[str, Any]]:
        queues = (await admin(system, "queue"))["queues"]
        found: list[dict[str, Any]] = next(queue for queue in queues if queue["stream"] == "LANE_ANISORA")["running"]
        return found

    assert [(each["id"], each["worker"]) for each in await eventually(running)] == [(task["id"], "by-hand")]


async def test_who_leads_the_degraded_queue(system: System) -> None:
    assert (await admin(system, "queue"))["leader"] is None
    now = datetime.now(UTC)
    leadership = Leadership(worker="degraded-0", owner="a-nonce", slot="cpu-2", pid=7, since=now)
    await system.link.entries.put(LEADER, LEADER_KEY, msgspec.json.encode(leadership))

    async def leader() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await admin(system, "queue"))["leader"]
        return found

    shown = await eventually(leader)
    assert shown is not None
    assert (shown["worker"], shown["slot"], shown["pid"]) == ("degraded-0", "cpu-2", 7)
    assert "owner" not in shown


async def test_a_decision_is_explained_and_derived_again(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    on_lane = await system.submit()
    await system.lane_is(LaneState.UNHEALTHY)
    degraded = await system.submit()
    answer = await admin(system, f"tasks/{on_lane['id']}/explain")
    assert (answer["route"], answer["fired"]["rule"], answer["agrees"]) == ("lane", 2, True)
    assert answer["derived"] == answer["fired"]
    assert [(lane["worker"], lane["state"]) for lane in answer["decision"]["lanes"]] == [("anisora-0", "warm")]
    assert (answer["now"]["outcome"], answer["now"]["rule"]) == ("degraded: capacity", 4)
    answer = await admin(system, f"tasks/{degraded['id']}/explain")
    assert (answer["route"], answer["fired"]["rule"], answer["agrees"]) == ("degraded", 4, True)
    assert [lane["state"] for lane in answer["decision"]["lanes"]] == ["unhealthy"]


async def test_a_switch_that_somebody_else_has_set_meanwhile(system: System) -> None:
    url, http = "/admin/lanes/anisora/mode", system.http

    async def put(mode: str, **headers: str) -> httpx.Response:
        return await http.put(
            url, json={"mode": mode}, headers={name.replace("_", "-"): it for name, it in headers.items()}
        )

    seen = (await http.get(url)).headers["etag"]
    assert (await http.get(url, headers={"if-none-match": seen})).status_code == 304
    set_ = await put("degraded", if_match=seen)
    assert (set_.status_code, set_.json()["mode"]) == (200, "degraded")
    assert (await http.get(url)).headers["etag"] == set_.headers["etag"] != seen
    for headers in ({"if_match": seen}, {"if_match": f"W/{set_.headers['etag']}"}, {"if_none_match": "*"}):
        late = await put("auto", **headers)
        assert (late.status_code, problem(late)["code"]) == (412, "precondition_failed"), headers
    assert (await http.get(url)).json()["mode"] == "degraded"
    for again in ({}, {"if_match": "*"}):
        assert (await put("auto", **again)).status_code == 200
    # a value from `nats kv put` counts as well, even one that gateways ignore
    await system.link.entries.put(CONTROL, "lanes.anisora", b"off")

    async def reported() -> str | None:
        lanes = await admin(system, "lanes")
        return (await http.get(url)).headers["etag"] if lanes["ignored_control"] else None

    ignored = await eventually(reported)
    assert ignored is not None
    assert (await put("auto", if_match=ignored)).status_code == 200
    # a deleted key counts as one that was never set
    entry = await system.link.entries.get(CONTROL, "lanes.anisora")
    assert entry is not None
    await system.link.entries.delete(CONTROL, "lanes.anisora", revision=entry.revision)

    async def deleted() -> str | None:
        now = (await http.get(url)).headers["etag"]
        return now if now != f'"{entry.revision}"' else None

    gone = await eventually(deleted)
    assert gone is not None
    assert (await put("auto", if_match=gone)).status_code == 200


async def test_a_decision_of_a_model_that_was_switched_off(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    assert (await system.http.put("/admin/lanes/anisora/mode", json={"mode": "degraded"})).status_code == 200
    answer = await admin(system, f"tasks/{(await system.submit())['id']}/explain")
    assert (answer["fired"]["rule"], answer["fired"]["outcome"], answer["agrees"]) == (1, "degraded: manual", True)
    assert answer["decision"]["forced_degraded"] is True


async def test_cold_starts_with_their_share(system: System) -> None:
    now = datetime.now(UTC)
    for seconds in (9.5, 4.0, None, 601.0):
        start = ColdStart(
            model="anisora",
            worker="anisora-0",
            started_at=now,
            ended_at=now,
            seconds=seconds,
            detail="" if seconds else "?",
        )
        await system.link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start))
        now += timedelta(seconds=1)

    async def known() -> dict[str, Any] | None:
        answer = await admin(system, "cold_starts")
        return answer if len(answer["starts"]) == 4 else None

    answer = await eventually(known)
    assert answer is not None
    assert (answer["target_s"], answer["share"]) == (600, 0.5)
    assert [start["seconds"] for start in answer["starts"]] == [601.0, None, 4.0, 9.5]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"mode": "off"}', 422, "validation_failed"),
        (b'{"mode": null}', 422, "validation_failed"),
        (b"{}", 422, "validation_failed"),
        (b'{"mode": "auto", "for": "ever"}', 422, "validation_failed"),
        (b'"auto"', 400, "malformed_body"),
        (b"{", 400, "malformed_body"),
    ],
)
async def test_a_wrong_switch_is_refused_and_changes_nothing(
    system: System, body: bytes, status: int, code: str
) -> None:
    before = (await js_of(system.link).stream_info(bucket_stream(CONTROL))).state.last_seq
    headers = {"content-type": "application/json"}
    response = await system.http.put("/admin/lanes/anisora/mode", content=body, headers=headers)
    assert (response.status_code, problem(response)["code"]) == (status, code)
    assert (await js_of(system.link).stream_info(bucket_stream(CONTROL))).state.last_seq == before


async def test_a_task_or_model_that_does_not_exist_is_404(system: System) -> None:
    async def code(call: httpx.Response) -> tuple[int, str]:
        return call.status_code, problem(call)["code"]

    http = system.http
    assert await code(await http.get("/admin/lanes/sora/mode")) == (404, "model_not_found")
    assert await code(await http.put("/admin/lanes/sora/mode", json={"mode": "auto"})) == (404, "model_not_found")
    assert await code(await http.put("/admin/lanes/anisora/mode", content=b"{}")) == (415, "unsupported_media_type")
    unknown = "01890a5d-ac96-774b-bcce-b302099a8057"
    assert await code(await http.get(f"/admin/tasks/{unknown}/explain")) == (404, "task_not_found")
    assert await code(await http.get("/admin/tasks/x/explain")) == (404, "task_not_found")


def status(system: System, *options: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """`warmlane status …`."""
    return subprocess.Popen(
        warmlane_command("status", *options, "--url", system.gateway.url),
        env=clean_environment() | {"COLUMNS": "200"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_the_command_prints_a_table_or_json(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    table, errors = await asyncio.to_thread(status(system).communicate, timeout=60)
    assert errors == ""
    for words in ("anisora-0", "warm", "lane (2)", "LANE_PHR00T", "of 25"):
        assert words in table
    printed, _ = await asyncio.to_thread(status(system, "--json").communicate, timeout=60)
    answer = json.loads(printed)
    assert set(answer) == {"lanes", "queue", "fallbacks", "cold_starts"}
    assert answer["lanes"]["models"][0]["lanes"][0]["worker"] == "anisora-0"
    assert set(answer["queue"]) == set(await admin(system, "queue"))


def read_until(terminal: int, words: bytes) -> None:
    """Returns when *words* are on the screen."""
    drawn = b""
    while words not in drawn:
        drawn += os.read(terminal, 65_536)


async def test_watching_ends_quietly_with_ctrl_c(system: System) -> None:
    await system.lane_is(LaneState.WARM)
    screen, terminal = pty.openpty()
    watching = status(system, "--watch", stdout=terminal)
    try:
        await asyncio.wait_for(asyncio.to_thread(read_until, screen, b"anisora-0"), timeout=60)
        watching.send_signal(signal.SIGINT)
        _, errors = await asyncio.to_thread(watching.communicate, timeout=60)
    finally:
        watching.kill()
        os.close(terminal)
        os.close(screen)
    assert (watching.returncode, errors) == (0, "")
