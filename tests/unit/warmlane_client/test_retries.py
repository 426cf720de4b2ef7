"""When a client tries again, numbered as in `Tries.pause_after`."""

import pytest

from tests.unit.warmlane_client.scripted import Run, document, lost, problem, reply
from warmlane_client import ForeignAnswer, GatewayBusy, GatewayUnreachable, Patience, VideoRequest, WarmlaneError
from warmlane_client.core.calls import answered, submit
from warmlane_client.core.effects import Call, NoReply, Reply

GET = Call(method="GET", path="/settings")
POST = Call(method="POST", path="/tasks/t-1/resubmit")
OK = reply(200, {})
PROXY = reply(503, b"<html>", retry_after="4")


@pytest.mark.parametrize(
    ("call", "failures", "pauses"),
    [
        pytest.param(GET, [problem(429, "rate_limited", retry_after_s=59.0)], [59.0], id="1"),
        pytest.param(POST, [problem(429, "rate_limited", retry_after_s=1.5)], [1.5], id="1-also-a-post"),
        pytest.param(POST, [problem(429, "rate_limited")] * 5, [1.0] * 5, id="1-without-a-time"),
        pytest.param(GET, [lost(), lost(), lost()], [0.2, 0.4, 0.8], id="2"),
        pytest.param(GET, [problem(503, "transport_unavailable"), lost()], [0.2, 0.4], id="2-unknown"),
        pytest.param(GET, [problem(503, "queue_overloaded", retry_after_s=12.5)], [12.5], id="3"),
        pytest.param(GET, [problem(503, "storage_full")] * 3, [1.0, 2.0, 4.0], id="3-without-a-time"),
        pytest.param(GET, [problem(429, "too_many_tasks", retry_after_s=5.0)], [5.0], id="3-bounds-of-a-caller"),
        pytest.param(GET, [PROXY], [4.0], id="3-of-a-proxy"),
        pytest.param(POST, [problem(503, "queue_overloaded", retry_after_s=1.0)], [1.0], id="3-was-not-accepted"),
    ],
)
def test_what_is_tried_again(call: Call, failures: list[Reply | NoReply], pauses: list[float]) -> None:
    run = Run([*failures, OK])
    assert run.of(answered(call, Patience())).status == 200
    assert run.pauses == pauses


@pytest.mark.parametrize(
    ("call", "failures", "kind"),
    [
        pytest.param(GET, [problem(429, "rate_limited", retry_after_s=61.0)], GatewayBusy, id="1-too-far-off"),
        pytest.param(GET, [problem(429, "rate_limited")] * 20, GatewayBusy, id="1-too-often"),
        pytest.param(GET, [lost()] * 4, GatewayUnreachable, id="2-too-often"),
        pytest.param(POST, [lost()], GatewayUnreachable, id="2-may-have-arrived"),
        pytest.param(POST, [problem(503, "transport_unavailable")], GatewayBusy, id="2-may-be-accepted"),
        pytest.param(GET, [lost("CERTIFICATE_VERIFY_FAILED")], GatewayUnreachable, id="2-stays-wrong"),
        pytest.param(GET, [problem(503, "queue_overloaded", retry_after_s=121.0)], GatewayBusy, id="3-too-far-off"),
        pytest.param(
            GET, [problem(503, "queue_overloaded", retry_after_s=50.0)] * 3, GatewayBusy, id="3-longer-than-in-all"
        ),
        pytest.param(GET, [problem(422, "validation_failed")], WarmlaneError, id="stays-wrong"),
        pytest.param(GET, [reply(502, b"<html>")], ForeignAnswer, id="no-gateway"),
        pytest.param(GET, [reply(301, b"")], ForeignAnswer, id="elsewhere"),
    ],
)
def test_what_is_raised(call: Call, failures: list[Reply | NoReply], kind: type[WarmlaneError]) -> None:
    with pytest.raises(kind):
        Run(failures).of(answered(call, Patience()))


def test_patience_may_be_none_at_all() -> None:
    run = Run([problem(503, "queue_overloaded", retry_after_s=0.0)])
    with pytest.raises(GatewayBusy):
        run.of(answered(GET, Patience(busy_s=0.0)))


def test_a_gateway_that_is_started_again_is_waited_for_while_a_task_is_followed() -> None:
    away: list[Reply | NoReply] = [lost(), reply(502, b"<html>"), problem(503, "shutting_down"), *[lost()] * 20]
    run = Run([*away, OK])
    run.of(answered(GET, Patience(lost_s=60.0), while_lost=True))
    assert run.pauses[:5] == [0.2, 0.4, 0.8, 1.6, 2.0]
    with pytest.raises(GatewayUnreachable):
        Run([lost()] * 40).of(answered(GET, Patience(lost_s=60.0), while_lost=True))


def test_a_submit_is_sent_again_under_the_key_that_was_made_for_it() -> None:
    run = Run([lost(), problem(503, "transport_unavailable", outcome="unknown"), reply(202, document(), etag='"1"')])
    task = run.of(submit(VideoRequest(model="m", prompt="p"), Patience(), idempotency_key=None, hold=False))
    keys = {headers["Idempotency-Key"] for headers in run.headers()}
    assert (task.id, task.revision, len(keys), len(keys.pop())) == ("t-1", '"1"', 1, 36)
    assert {headers["Prefer"] for headers in run.headers()} == {"respond-async"}


def test_a_held_submit_waits_longer_than_the_gateway_does() -> None:
    run = Run([reply(202, document())])
    run.of(submit({"model": "m", "prompt": "p"}, Patience(), idempotency_key="mine", hold=True))
    assert run.headers() == [{"Idempotency-Key": "mine"}]
    assert run.asked[0].call.reply_timeout_s > 30
