"""How a task is followed: by its event stream, numbered as in `TaskWait.until_ended`, and by polls."""

from typing import Any

import pytest

from tests.kit.event_source import EventSource
from tests.unit.warmlane_client.scripted import Run, document, event, lost, piece, problem, reply, stream
from warmlane_client import GatewayUnreachable, NotThere, Patience, Task, Wait, WaitTimedOut
from warmlane_client.core.effects import Call, Flow, NoReply, Piece, Reply
from warmlane_client.core.events import EventReader
from warmlane_client.core.following import TaskWait

DONE = reply(200, document("done"), etag='"9"')


def follow(how: Wait | None = None, *, lost_s: float = 60.0) -> Flow[Task]:
    return TaskWait(Task.of(document()), how or Wait(), Patience(lost_s=lost_s)).until_ended()


def test_a_stream_is_read_to_the_end_of_the_task() -> None:
    run = Run([stream(), piece(event("pending", 1)), piece(event("processing", 2) + event("done", 3))])
    assert run.of(follow()).revision == '"3"'
    assert run.reported == ["pending", "processing", "done"]
    assert run.paths() == ["/tasks/t-1/events"]


@pytest.mark.parametrize("end", [piece(None), lost("reset")], ids=["ended", "reset"])
def test_1_a_stream_that_breaks_is_opened_again_from_its_last_event(end: Piece | NoReply) -> None:
    run = Run([stream(), piece(event("processing", 2)), end, stream(), piece(event("done", 3))])
    assert run.of(follow()).status == "done"
    assert [headers.get("Last-Event-ID") for headers in run.headers()] == [None, "2"]
    assert run.reported == ["pending", "processing", "done"]


def test_1_what_is_known_already_is_not_told_again() -> None:
    run = Run([stream(), piece(event("pending", 1)), piece(None), stream(), piece(event("pending", 1)), lost()])
    with pytest.raises(IndexError):
        run.of(follow())
    assert run.reported == ["pending"]


@pytest.mark.parametrize(
    "refusals",
    [
        [reply(501, b"<html>")],
        [reply(200, b"{}", content_type="application/json")],
        [reply(204)],
        [problem(429, "too_many_streams", retry_after_s=5.0)],
        [stream(), piece(None), stream(), piece(b": still there\n\n"), lost("silent"), stream(), piece(None)],
    ],
    ids=["refused", "no stream", "ended before", "full", "mute"],
)
def test_2_where_no_stream_comes_through_the_task_is_polled(refusals: list[Reply | Piece | NoReply]) -> None:
    run = Run([*refusals, DONE])
    assert run.of(follow()).status == "done"
    assert run.asked[-1].call.params == {"wait": "20"}


def test_3_a_gateway_that_is_started_again_is_waited_for() -> None:
    away: list[Reply | NoReply | Piece] = [lost("refused"), reply(502, b"<html>"), problem(503, "shutting_down")] * 5
    run = Run([stream(), piece(event("processing", 2)), lost("reset"), *away, stream(), piece(event("done", 3))])
    assert run.of(follow()).status == "done"
    assert run.headers()[-1]["Last-Event-ID"] == "2"


def test_3_but_not_for_ever() -> None:
    run = Run([lost()] * 60)
    with pytest.raises(GatewayUnreachable):
        run.of(follow(lost_s=60.0))
    assert 60 <= run.now_s < 63


def test_a_task_that_is_gone_is_an_error() -> None:
    with pytest.raises(NotThere):
        Run([problem(404, "task_not_found")]).of(follow())


def test_a_limited_wait_ends_in_time() -> None:
    """A stream says something every 15 s only, so the last stretch is polled."""
    beat = [Piece(content=b":\n\n", at_s=15.0)] * 3
    slow = reply(304)
    run = Run([stream(), piece(event("pending", 1)), *beat, *[_after(slow, 15.0)]])
    with pytest.raises(WaitTimedOut) as raised:
        run.of(follow(Wait(timeout_s=60.0)))
    assert raised.value.task.status == "pending"
    assert run.asked[-1].call.params == {"wait": "15"}
    assert run.now_s == 60.0


def test_a_limited_wait_waits_no_longer_for_a_gateway_that_is_away() -> None:
    run = Run([lost()] * 20)
    with pytest.raises(GatewayUnreachable):
        run.of(follow(Wait(timeout_s=10.0)))
    assert run.now_s < 13


def test_a_task_that_does_not_move_is_told_of() -> None:
    run = Run([stream(), *[Piece(content=b":\n\n", at_s=15.0)] * 5, piece(event("done", 2))])
    run.of(follow(Wait(idle_s=20.0)))
    assert run.idle == 2


def test_polls_name_the_last_revision_and_ask_for_a_place_anew() -> None:
    waiting: dict[str, Any] = {"queue": {"position": 2, "expected_wait_s": None}}
    outcomes: list[Reply | NoReply | Piece] = [
        reply(200, document(**waiting), etag='"1-2"'),
        reply(304),
        reply(200, document(queue={"position": 1, "expected_wait_s": None}), etag='"1-1"'),
        lost(),
        DONE,
    ]
    run = Run(outcomes)
    run.of(follow(Wait(stream=False)))
    asked = [(dict(each.call.params)["wait"], each.call.headers.get("If-None-Match")) for each in run.asked]
    assert asked == [("20", None), ("1", '"1-2"'), ("0", None), ("1", '"1-1"'), ("1", '"1-1"')]


def test_the_place_of_a_task_is_polled_for_who_shows_it_and_the_rest_is_streamed() -> None:
    waiting = document(queue={"position": 1, "expected_wait_s": None})
    running = reply(200, document("processing"), etag='"2"')
    run = Run(
        [stream(), piece(event("pending", 1, queue=waiting["queue"])), running, stream(), piece(event("done", 3))]
    )
    assert run.of(follow(Wait(fresh_places=True))).status == "done"
    assert run.paths() == ["/tasks/t-1/events", "/tasks/t-1", "/tasks/t-1/events"]


def test_a_task_that_has_ended_is_not_asked_for() -> None:
    run = Run([])
    ended = Task.of(document("failed", error={"code": "cancelled", "message": ""}))
    assert run.of(TaskWait(ended, Wait(), Patience()).until_ended()) == ended
    assert run.reported == ["failed"]


STREAM = (
    b"\xef\xbb\xbfretry: 2000\n\n: a comment\n\nevent: task\ndata: one\ndata:two\nid: 7\n\n"
    b"data: \xc3\xa9\r\n\r\nid\nevent: x\rdata\r\rdata: not complete\n"
).removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_events_are_read_as_a_browser_reads_them(size: int) -> None:
    """The reader of the tests is written by the HTML standard, and knows nothing of this one."""
    reader, browser = EventReader(), EventSource()
    for at in range(0, len(STREAM), size):
        cut = STREAM[at : at + size]
        mine = [(each.name, each.data, each.last_id) for each in reader.read(cut)]
        assert mine == [(each.name, each.data, each.last_id) for each in browser.read(cut)]
    assert reader.last_id == browser.last_id == ""


def _after(answer: Reply, seconds: float) -> Reply:
    return Reply(status=answer.status, url=answer.url, at_s=seconds)


def test_a_call_waits_for_its_answer_by_itself() -> None:
    assert Call(method="GET", path="/").reply_timeout_s == 30
