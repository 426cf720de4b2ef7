"""`warmlane status`: what it draws from a gateway's answers."""

import json
from datetime import datetime
from typing import Any

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from contracts.api.admin import LanesView, QueuesView
from contracts.api.tasks import TaskView
from contracts.lanes import ColdStart, FallbackEpisode, LaneState, Leadership, SlotState, VideoPipelineSlot
from contracts.order import OrderState, OrderTally
from contracts.settings import Catalog
from contracts.tasks import Priority
from gateway.boards.lane_board import LaneBoard
from gateway.http.admin_views import (
    cold_starts_view,
    estimate_view,
    fallbacks_view,
    model_lanes,
    order_view,
    queue_view,
    running_view,
)
from gateway.http.views import view
from ops.commands.api.client import CommandClient
from ops.commands.options import JAEGER_VARIABLE
from ops.commands.status import Status, screen, span
from ops.commands.submit import Bar
from ops.nats.bucket import Versioned
from ops.nats.buckets import HEARTBEATS, SWITCHES
from ops.nats.entry import Entry
from ops.nats.streams import Depth
from tests.kit.records import NOW, after, lane_report, pending_task, processing_task
from tests.kit.samples import catalog

EPISODE = FallbackEpisode(model="phr00t", cause="quota", since=after(-200), until=after(-15), served=12)


def heartbeat(worker: str, state: LaneState, at: datetime, detail: str = "") -> Entry:
    report = lane_report(worker, state, detail=detail)
    return Entry(f"anisora.{worker}", msgspec.json.encode(report), 1, at)


def leadership() -> Leadership:
    tally = OrderTally(tasks=40, swaps=3, running_s=80, swapping_s=12, slice_ends={"time": 2, "none_waits": 1})
    state = OrderState(
        at=NOW, order="swap-aware", swap_share=0.2, slice_max_s=120, turn_share=0.2, loaded="phr00t", tally=tally
    )
    return Leadership(worker="degraded-0", owner="o", slot="cpu-9", pid=1, since=NOW, order=state)


def answers(running: Catalog, board: LaneBoard) -> dict[str, Any]:
    """The gateway's answers, made by its own views."""
    slot = VideoPipelineSlot(
        slot="cpu-9",
        worker="degraded-0",
        pid=1,
        model=None,
        state=SlotState.QUARANTINED,
        since=after(-9),
        detail="[held]",
    )
    start = ColdStart(model="anisora", worker="anisora-0", started_at=NOW, ended_at=after(-5), seconds=7.25)
    return {
        "lanes": LanesView(
            now=NOW,
            judged_at=after(-3),
            models=tuple(model_lanes(entry, board, NOW) for entry in running.models.values()),
            slots=(slot,),
            ignored_control=tuple(board.switches.ignored(running.models)),
        ),
        "queue": QueuesView(
            leader=None,
            order=order_view(leadership(), (pending_task(priority=Priority.BACKGROUND, queued_at=after(-3)),), NOW),
            queues=(
                queue_view(
                    "DEGRADED",
                    "degraded",
                    Depth(messages=7, max_msgs=25, max_age_s=30, oldest_at=after(-12)),
                    wait_limit_s=30,
                    waiting=(),
                    running=(running_view(processing_task(), 4.25),),
                    estimates=(estimate_view("anisora", 5, 31.5), estimate_view("phr00t", None, None)),
                    now=NOW,
                ),
            ),
        ),
        "fallbacks": fallbacks_view(
            [FallbackEpisode(model="anisora", cause="manual", since=after(-65), served=3), EPISODE]
        ),
        "cold_starts": cold_starts_view([start, msgspec.structs.replace(start, seconds=None, detail="no room")]),
    }


@pytest.fixture
def drawn() -> str:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    board.on_lane(Versioned(HEARTBEATS, heartbeat("anisora-0", LaneState.WARM, after(-2))))
    board.on_lane(Versioned(HEARTBEATS, heartbeat("anisora-1", LaneState.CRASH_LOOPING, after(-2), detail="exit [1]")))
    board.on_lane(Versioned(HEARTBEATS, heartbeat("anisora-2", LaneState.BUSY, after(-300))))
    for key, value in (("phr00t", b"offf"), ("gone", b"degraded"), ("gone-too", b"auto")):
        board.switches.on_entry(Versioned(SWITCHES, Entry(f"lanes.{key}", value, 1, NOW)))
    answer = json.loads(msgspec.json.encode(answers(catalog(), board)))
    console = Console(width=200)
    with console.capture() as captured:
        console.print(screen(msgspec.convert(answer, type=Status)))
    return captured.get()


@pytest.mark.parametrize(
    "words",
    [
        ["anisora", "auto", "lane (2)", "anisora-0", "warm", "2.0 s"],
        ["anisora-1", "crash_looping", "exit [1]"],
        ["anisora-2", "silent, was busy", "5 min"],
        ["phr00t", "degraded: capacity (4)", "none"],
        ["no degraded worker leads"],
        ["cut off"],
        ["ignored in control: lanes.phr00t = 'offf'", "use auto or degraded"],
        ["ignored in control: lanes.gone = 'degraded'", "nats kv del control lanes.gone"],
        ["DEGRADED", "7 of 25", "12.0 s", "anisora on anisora-0", "about 4.2 s left", "anisora 31.5 s"],
        ["swap-aware", "phr00t", "0.07", "13%", "none_waits 1", "background: 1 for anisora, 3.0 s"],
        ["at most 20% in swaps", "time 2"],
        ["slices of 2 min"],
        ["cpu-9", "degraded-0", "quarantined", "[held]"],
        ["anisora", "manual", "1 min 5 s, goes on", "3"],
        ["phr00t", "quota", "3 min 5 s", "12"],
        ["anisora-0", "7.2 s"],
        ["gave up", "no room"],
        ["50.0% of 2 warm within 10 min (SC-006)"],
    ],
)
def test_the_screen(drawn: str, words: list[str]) -> None:
    assert any(all(word in line for word in words) for line in drawn.splitlines()), drawn


def test_an_order_that_nobody_has_said_and_one_without_a_task_are_drawn() -> None:
    silent = structs.replace(leadership(), order=None)
    assert order_view(silent, (), NOW) is None
    assert order_view(None, (), NOW) is None
    state = leadership().order
    assert state is not None
    fresh = structs.replace(leadership(), order=structs.replace(state, tally=OrderTally(), order="fifo"))
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    answer = msgspec.convert(json.loads(msgspec.json.encode(answers(catalog(), board))), type=Status)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(
            screen(structs.replace(answer, queue=structs.replace(answer.queue, order=order_view(fresh, (), NOW))))
        )
    (line,) = [line for line in captured.get().splitlines() if line.startswith("fifo")]
    assert line.split("  ")[0] == "fifo"
    assert all(words in line for words in ("no task yet", "none yet", "nobody"))
    assert "in swaps" not in captured.get().replace("time in swaps", "")


def test_a_switch_back_of_a_model_that_is_gone_is_no_news(drawn: str) -> None:
    assert "gone-too" not in drawn


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("jaeger_url", [None, "http://jaeger:16686/"])
def test_the_trace_of_a_running_task_is_a_link_where_jaeger_is_known(jaeger_url: str | None) -> None:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    answer = json.loads(msgspec.json.encode(answers(catalog(), board)))
    answer["queue"]["queues"][0]["running"][0]["trace_id"] = TRACE_ID
    console = Console(width=200, force_terminal=True, legacy_windows=False)
    with console.capture() as captured:
        console.print(screen(msgspec.convert(answer, type=Status), jaeger_url))
    assert f"trace {TRACE_ID}" in captured.get()
    assert (f";http://jaeger:16686/trace/{TRACE_ID}\x1b" in captured.get()) is (jaeger_url is not None)


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        (None, None, f"trace {TRACE_ID}\n"),
        (None, "http://known", f"trace http://known/trace/{TRACE_ID}\n"),
        ("http://asked", "http://known", f"trace http://asked/trace/{TRACE_ID}\n"),
    ],
)
def test_submit_prints_the_trace_of_its_task(
    asked: str | None,
    environment: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(JAEGER_VARIABLE, raising=False)
    if environment is not None:
        monkeypatch.setenv(JAEGER_VARIABLE, environment)
    answer = msgspec.json.encode(view(processing_task(), None, NOW))
    task = msgspec.structs.replace(msgspec.json.decode(answer, type=TaskView), trace_id=TRACE_ID)
    with Bar(asked) as bar, CommandClient("http://gateway") as client:
        bar.accepted(client, task)
        bar.accepted(client, msgspec.structs.replace(task, trace_id=None))  # which is not traced
    assert [line for line in capsys.readouterr().err.splitlines(keepends=True) if "trace" in line] == [expected]


def test_nothing_happened_yet() -> None:
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    answer = json.loads(msgspec.json.encode(answers(catalog(), board)))
    answer |= {"fallbacks": {"current": [], "past": []}, "cold_starts": {"target_s": 600, "share": None, "starts": []}}
    console = Console(width=200)
    with console.capture() as captured:
        console.print(screen(msgspec.convert(answer, type=Status)))
    assert "no fallback yet" in captured.get()
    assert "no cold start yet" in captured.get()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (4.24, "4.2 s"), (59.94, "59.9 s"), (60, "1 min"), (185.4, "3 min 5 s"), (7620, "2 h 7 min")],
)
def test_times_are_printed_as_people_read_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
