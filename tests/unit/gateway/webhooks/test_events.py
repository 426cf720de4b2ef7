"""Which deliveries a task is owed, by its record and its caller's endpoints."""

import json
from datetime import timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, VideoFile
from contracts.webhooks import (
    DEFAULT_EVENTS,
    PAYLOAD_MAX_BYTES,
    TaskWebhook,
    WebhookEndpoint,
    WebhookEvent,
    requests_id,
)
from gateway.rules.webhook_events import deliveries
from tests.kit.records import NOW, pending_task

LATER = NOW + timedelta(minutes=5)
URL = "https://example.com/hook"


def endpoint(name: str = "ep_1", *, url: str | None = URL, **changes: Any) -> WebhookEndpoint:
    whole = WebhookEndpoint(
        id=name,
        caller="anonymous",
        url=url,
        events=tuple(event.value for event in DEFAULT_EVENTS),
        secrets=(),
        made_at=NOW - timedelta(hours=1),
        since=NOW - timedelta(hours=1),
    )
    return replace(whole, **changes)


def claimed(task: GenerationTask) -> GenerationTask:
    return lifecycle.claim(task, owner="o", worker="w", lease_s=20, now=NOW)


def done(task: GenerationTask) -> GenerationTask:
    video = VideoFile(path=task.video_path, bytes=9, sha256="0" * 64, width=96, height=64, frames=17, fps=16)
    return lifecycle.finish(claimed(task), video=video, memory=None, now=LATER)


def owed(task: GenerationTask, *endpoints: WebhookEndpoint) -> list[tuple[str, str]]:
    return [(each.event, each.endpoint) for each in deliveries(task, endpoints, LATER)]


def test_nothing_is_owed_before_a_worker_has_the_task() -> None:
    assert owed(pending_task(), endpoint()) == []


def test_each_event_is_owed_once_it_has_happened() -> None:
    assert owed(claimed(pending_task()), endpoint()) == [("task.claimed", "ep_1")]
    assert owed(done(pending_task()), endpoint()) == [("task.claimed", "ep_1"), ("task.done", "ep_1")]
    failed = lifecycle.fail(pending_task(), code=FailureCode.QUEUE_OVERLOADED, message="full", now=LATER)
    assert owed(failed, endpoint()) == [("task.failed", "ep_1")]


def test_a_request_that_was_refused_is_told_to_nobody() -> None:
    held = pending_task(promised=False)
    refused = lifecycle.fail(held, code=FailureCode.QUEUE_OVERLOADED, message="full", now=LATER)
    assert owed(refused, endpoint()) == []
    assert owed(lifecycle.withdraw(held, now=LATER), endpoint()) == []
    assert owed(done(held), endpoint()) == [("task.claimed", "ep_1"), ("task.done", "ep_1")]
    # a caller that is held when the task is cancelled is answered with the task, and has its id
    cancelled = lifecycle.fail(held, code=FailureCode.CANCELLED, message="x", now=LATER)
    assert owed(cancelled, endpoint()) == [("task.failed", "ep_1")]


def test_an_endpoint_gets_the_events_that_it_asked_for_since_it_was_there() -> None:
    task = done(pending_task())
    assert owed(task, endpoint(events=("task.done",))) == [("task.done", "ep_1")]
    assert owed(task, endpoint(since=LATER + timedelta(seconds=1))) == []
    assert owed(task, endpoint(disabled_at=NOW)) == []
    assert owed(task, endpoint(url=None)) == []


def test_the_address_of_a_request_is_told_with_the_secrets_of_its_caller() -> None:
    task = done(pending_task(webhook=TaskWebhook(url=URL, events=("task.done",))))
    assert owed(task) == [("task.done", requests_id("anonymous"))]
    assert owed(task, endpoint(url="https://example.com/other")) == [
        ("task.claimed", "ep_1"),
        ("task.done", "ep_1"),
        ("task.done", requests_id("anonymous")),
    ]


def test_an_address_that_is_registered_and_named_is_told_once() -> None:
    task = done(pending_task(webhook=TaskWebhook(url=URL, events=("task.done",))))
    assert owed(task, endpoint(events=("task.failed",))) == [("task.done", "ep_1")]
    assert owed(task, endpoint(events=("task.done",))) == [("task.done", "ep_1")]


def test_the_address_of_a_request_that_was_told_is_told_no_more_by_what_is_registered_or_removed_since() -> None:
    task = done(pending_task(webhook=TaskWebhook(url=URL, events=("task.done",))))

    def told(event: WebhookEvent, url: str) -> bool:
        return (event, url) == (WebhookEvent.DONE, URL)

    late = endpoint(since=LATER + timedelta(hours=1))
    for known in ((), (late,), (endpoint("ep_2", url="https://b.example/"), late)):
        found = [each.endpoint for each in deliveries(task, known, LATER, told=told)]
        assert found == [each.id for each in known if each.id == "ep_2" for _ in range(2)]
    # an endpoint that takes the event is owed it, even if its address was notified for the request
    assert [each.event for each in deliveries(task, [endpoint()], LATER, told=told)] == ["task.claimed", "task.done"]


def test_a_receiver_is_told_the_labels() -> None:
    (delivery,) = deliveries(claimed(pending_task(labels={"shot": "7"})), [endpoint()], NOW)
    assert json.loads(delivery.payload)["data"]["labels"] == {"shot": "7"}


def test_the_same_deliveries_come_out_however_often_one_asks() -> None:
    task = done(pending_task())
    first = [each.id for each in deliveries(task, [endpoint()], NOW)]
    assert first == [each.id for each in deliveries(task, [endpoint()], LATER)]
    assert len(set(first)) == 2


def test_the_body_names_the_task_and_holds_neither_prompt_nor_a_long_text() -> None:
    task = pending_task()
    failed = lifecycle.fail(claimed(task), code=FailureCode.INFERENCE_FAILED, message="ä" * 100_000, now=LATER)
    (first, last) = deliveries(failed, [endpoint()], LATER)
    body = msgspec.json.decode(last.payload)
    assert (body["type"], body["data"]["id"], body["data"]["status"]) == ("task.failed", task.id, "failed")
    assert body["data"]["error"]["code"] == "inference_failed"
    assert len(last.payload.encode()) < PAYLOAD_MAX_BYTES
    assert task.parameters.prompt not in first.payload + last.payload.replace("ä", "")
    assert WebhookEvent(body["type"]) is WebhookEvent.FAILED
