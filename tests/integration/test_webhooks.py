"""Webhooks of a real gateway: registered, signed, delivered, retried, given up and redelivered."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from contracts import lifecycle
from contracts.progress import StepsDone
from contracts.tasks import encode_task
from contracts.topology import DELIVERIES, TASKS, WEBHOOKS
from tests.kit.gateway import System
from tests.kit.receivers import Received, Receiver, answering, receiving, silent
from tests.kit.support import eventually
from tests.kit.webhooks import OPTIONS, deliveries, delivery, finish, gateway, register, run, submit, system

__all__ = ["gateway", "system"]  # fixtures


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


async def test_an_endpoint_is_told_what_becomes_of_a_task_and_can_check_who_says_so(
    system: System, receiver: Receiver
) -> None:
    _, secret = await register(system, receiver.url)
    task_id = await run(system)
    came = await receiver.gets(task_id, "task.claimed", "task.done")
    for each in came:
        body = each.verified(secret)
        assert each.headers["content-type"] == "application/json"
        assert body["data"]["id"] == task_id
    done = next(each.json for each in came if each.type == "task.done")
    assert done["data"]["status"] == "done"
    assert done["data"]["links"] == {"self": f"/tasks/{task_id}", "video": f"/tasks/{task_id}/video"}
    with pytest.raises(WebhookVerificationError):
        came[0].verified("whsec_" + "A" * 43 + "=")
    failed_id = await submit(system)
    await system.http.delete(f"/tasks/{failed_id}")
    (failed,) = await receiver.gets(failed_id, "task.failed")
    assert failed.json["data"]["error"]["code"] == "cancelled"


async def test_a_request_names_an_address_of_its_own(system: System, receiver: Receiver) -> None:
    task_id = await run(system, webhook={"url": receiver.url, "events": ["task.done"]})
    (done,) = await receiver.gets(task_id, "task.done")
    secret = (await system.http.get("/webhooks/secret")).json()["secret"]
    assert done.verified(secret)["type"] == "task.done"
    assert (await system.http.get(f"/tasks/{task_id}")).json()["webhook"] == {
        "url": receiver.url,
        "events": ["task.done"],
    }
    # a registered endpoint has its own secret, and gets the event once
    _, own = await register(system, receiver.url, "task.done")
    again = await run(system, webhook={"url": receiver.url, "events": ["task.done"]})
    (came,) = await receiver.gets(again, "task.done")
    came.verified(own)
    ids = [each["id"] for each in await deliveries(system) if each["task_id"] == again]
    assert len(ids) == 1


async def test_an_address_of_a_request_is_told_once_whatever_is_registered_or_removed_later(
    system: System, receiver: Receiver
) -> None:
    async def told() -> str:
        """Runs a task whose request names the address; by its end all earlier deliveries are made."""
        task_id = await run(system, webhook={"url": receiver.url, "events": ["task.done"]})
        await receiver.gets(task_id, "task.done")
        return task_id

    ids = [await told()]
    endpoint, _ = await register(system, receiver.url, "task.done")
    ids.append(await told())
    assert (await system.http.delete(f"/webhooks/{endpoint}")).status_code == 204
    ids.append(await told())
    await register(system, receiver.url, "task.done")
    ids.append(await told())
    system.gateway.kill()
    await asyncio.to_thread(system.gateway.start, *OPTIONS)  # it looks at every record again
    ids.append(await told())
    made = [each["task_id"] for each in await deliveries(system)]
    assert [made.count(each) for each in ids] == [1] * len(ids)


async def test_progress_is_told_where_it_is_asked_for(system: System, receiver: Receiver) -> None:
    await register(system, receiver.url, "task.progress", "task.done")
    task_id = await submit(system)
    await system.claim(task_id)
    task, revision = await system.record(task_id)
    moved = lifecycle.renew(task, progress=StepsDone(step=3, steps=8), lease_s=60, now=datetime.now(UTC))
    await system.link.entries.update(TASKS, task_id, encode_task(moved), revision=revision)

    async def came() -> bool:
        return "task.progress" in receiver.types(task_id)

    await eventually(came)
    (received,) = receiver.of(task_id)
    assert received.json["data"]["progress"] == {"step": 3, "steps": 8, "eta_s": None}
    await finish(system, task_id)
    await receiver.gets(task_id, "task.progress", "task.done")


async def test_both_secrets_sign_while_a_receiver_changes_over(system: System, receiver: Receiver) -> None:
    endpoint, before = await register(system, receiver.url, "task.done")
    after = (await system.http.post(f"/webhooks/{endpoint}/rotate")).json()["secret"]
    assert (await system.http.get(f"/webhooks/{endpoint}")).json()["secrets"] == 2
    (came,) = await receiver.gets(await run(system), "task.done")
    assert came.verified(before) == came.verified(after)
    last = (await system.http.post(f"/webhooks/{endpoint}/rotate", params={"overlap_s": 0})).json()["secret"]

    async def one_signs() -> bool:
        return bool((await system.http.get(f"/webhooks/{endpoint}")).json()["secrets"] == 1)

    await eventually(one_signs)
    (came,) = await receiver.gets(await run(system), "task.done")
    came.verified(last)
    with pytest.raises(WebhookVerificationError):
        came.verified(after)


async def test_what_failed_is_tried_again_under_the_same_id(system: System) -> None:
    seen: list[dict[str, Any]] = []

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        """The second attempt waits until the test has seen what became of the first one."""
        if len(host.of(received.task_id)) == 1:
            await answering(500)(received, writer)
        else:
            seen.append(await delivery(system, received.id, "pending", attempts=1))
            await answering(204)(received, writer)

    async with receiving(answer) as host:
        _, secret = await register(system, host.url, "task.done")
        task_id = await run(system)
        (first, *_) = await host.gets(task_id, "task.done")
        known = await delivery(system, first.id, "delivered")
        assert (known["attempts"], [each["last"]["status"] for each in seen]) == (2, [500])
        first, second = host.of(task_id)
        assert (first.id, first.body) == (second.id, second.body)
        second.verified(secret)


async def test_a_receiver_that_is_gone_is_disabled_and_a_good_test_enables_it(system: System) -> None:
    async with receiving(answering(410)) as receiver:
        endpoint, _ = await register(system, receiver.url, "task.done")
        (came,) = await receiver.gets(await run(system), "task.done")
        await delivery(system, came.id, "dead")
        shown = (await system.http.get(f"/webhooks/{endpoint}")).json()
        assert (shown["disabled_at"] is not None, shown["disabled_why"]) == (True, "it answered 410 Gone")
        receiver.answer = answering(200)
        tested = (await system.http.post(f"/webhooks/{endpoint}/test")).json()
        assert (tested["delivered"], tested["status"]) == (True, 200)
        assert receiver.received[-1].type == "webhook.test"

        async def enabled() -> bool:
            return (await system.http.get(f"/webhooks/{endpoint}")).json()["disabled_at"] is None

        await eventually(enabled)
        await receiver.gets(await run(system), "task.done")
        # a dead delivery comes back on request
        again = await system.http.post(f"/webhooks/deliveries/{came.id}/redeliver")
        assert again.json()["status"] == "pending"
        await delivery(system, came.id, "delivered", attempts=1)
        assert [each.id for each in receiver.received].count(came.id) == 2


async def test_redirects_are_no_success_and_are_not_followed(system: System, receiver: Receiver) -> None:
    async with receiving(answering(302, location=receiver.url, retry_after="3600")) as redirecting:
        await register(system, redirecting.url, "task.done")
        (came,) = await redirecting.gets(await run(system), "task.done")
        known = await delivery(system, came.id, "pending", attempts=1)
        assert known["last"]["status"] == 302
    assert receiver.connections == 0


async def test_a_receiver_may_ask_for_time(system: System) -> None:
    async with receiving(answering(503, retry_after="3600")) as receiver:
        await register(system, receiver.url, "task.done")
        (came,) = await receiver.gets(await run(system), "task.done")
        known = await delivery(system, came.id, "pending", attempts=1)
        waits_s = datetime.fromisoformat(known["next_at"]) - datetime.fromisoformat(known["last"]["at"])
        assert 3_590 < waits_s.total_seconds() < 3_601


async def test_receivers_that_never_answer_delay_neither_tasks_nor_other_receivers(
    system: System, receiver: Receiver
) -> None:
    async with receiving(silent) as deaf:
        await register(system, deaf.url, "task.done")
        await register(system, receiver.url, "task.done")
        ids = [await run(system) for _ in range(6)]
        for task_id in ids:
            await receiver.gets(task_id, "task.done")
        assert not [each for each in await deliveries(system, status="delivered") if each["url"] == deaf.url]


async def test_what_cannot_be_delivered_to_is_refused_at_once(system: System) -> None:
    for url in ("http://10.0.0.1/hook", "https://169.254.169.254/latest", "https://[::ffff:127.0.0.1]/", "ftp://x/"):
        answer = await system.http.post("/webhooks", json={"url": url})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), url
        assert answer.json()["errors"][0]["pointer"] == "/url"
        body = {"model": "anisora", "prompt": "x", "webhook": {"url": url}}
        answer = await system.http.post("/generate", json=body)
        assert answer.status_code == 422, url
        assert answer.json()["errors"][0]["pointer"] == "/webhook/url"
    answer = await system.http.post("/webhooks", json={"url": "http://127.0.0.1:9/", "events": ["task.exploded"]})
    assert answer.json()["errors"][0]["code"] == "unknown_event"


async def test_a_field_that_no_endpoint_has_is_named(system: System) -> None:
    answer = await system.http.post("/webhooks", json={"url": "http://127.0.0.1:9/", "secret": "x", "a/b": 1})
    assert answer.status_code == 422
    found = [(each["pointer"], each["code"], each["message"]) for each in answer.json()["errors"]]
    assert found == [
        (pointer, "unknown_field", f"{name}: no such field; the fields are url, events")
        for pointer, name in (("/a~1b", "a/b"), ("/secret", "secret"))
    ]


async def test_neither_secrets_nor_addresses_end_in_a_log_and_the_server_stores_no_secret(
    system: System, receiver: Receiver
) -> None:
    endpoint, secret = await register(system, f"{receiver.url}?token=hidden", "task.done")
    await receiver.gets(await run(system), "task.done")
    stored = await system.link.entries.get(WEBHOOKS, endpoint)
    assert stored is not None
    assert stored.value is not None
    plain = secret.removeprefix("whsec_")
    assert plain not in stored.value.decode()
    assert plain not in system.gateway.log()
    assert "token=hidden" not in system.gateway.log()
    assert oct((system.gateway.data_dir / "webhooks.key").stat().st_mode)[-3:] == "600"


async def test_a_removed_endpoint_gets_nothing_more(system: System) -> None:
    async with receiving(answering(500, retry_after="60")) as receiver:
        endpoint, _ = await register(system, receiver.url, "task.done")
        (came,) = await receiver.gets(await run(system), "task.done")
        await delivery(system, came.id, "pending", attempts=1)
        assert (await system.http.delete(f"/webhooks/{endpoint}")).status_code == 204
        known = await delivery(system, came.id, "dead")
        assert known["last"]["error"] == "the endpoint was removed"
        assert (await system.http.get(f"/webhooks/{endpoint}")).status_code == 404
        assert len(receiver.of(came.task_id)) == 1


async def test_what_is_far_off_to_a_removed_endpoint_is_given_up_now(system: System) -> None:
    """This holds even if a gateway takes over that did not hear of the removal."""
    async with receiving(answering(503, retry_after="3600")) as receiver:
        for has_gateway in (True, False):
            endpoint, _ = await register(system, receiver.url, "task.done")
            (came,) = await receiver.gets(await run(system), "task.done")
            await delivery(system, came.id, "pending", attempts=1)
            if has_gateway:
                assert (await system.http.delete(f"/webhooks/{endpoint}")).status_code == 204
            else:
                system.gateway.kill()
                entry = await system.link.entries.get(WEBHOOKS, endpoint)
                assert entry is not None
                await system.link.entries.delete(WEBHOOKS, endpoint, revision=entry.revision)
                await asyncio.to_thread(system.gateway.start, *OPTIONS)
            known = await delivery(system, came.id, "dead")
            assert (known["last"]["error"], known["next_at"]) == ("the endpoint was removed", None)
        assert len(receiver.received) == 2


async def test_a_delivery_that_was_lost_on_the_way_is_made_from_the_record(system: System, receiver: Receiver) -> None:
    """Only the record shows the gateway that takes over that a delivery is missing."""
    await register(system, receiver.url, "task.done")
    task_id = await run(system)
    (came,) = await receiver.gets(task_id, "task.done")
    await delivery(system, came.id, "delivered")
    entry = await system.link.entries.get(DELIVERIES, came.id)
    assert entry is not None
    system.gateway.kill()
    # the state that a gateway leaves if it dies between the end of a task and its delivery
    await system.link.streams.manager.purge_stream("KV_deliveries", subject=f"$KV.deliveries.{came.id}")
    await asyncio.to_thread(system.gateway.start, *OPTIONS)

    async def came_again() -> bool:
        return len(receiver.of(task_id)) == 2

    await eventually(came_again)
    assert {each.id for each in receiver.of(task_id)} == {came.id}
