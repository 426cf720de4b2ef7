"""docs/operate/rollback.md: of two gateways on one server, one replaces wrong fixed values and one refuses them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from contracts.generation.request import validate
from contracts.settings import load_settings
from contracts.tasks import ReplacedParameter, decode_task, encode_task, keyed_task_id
from contracts.topology import TASKS, work_stream, work_subject
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.integration.test_http_generate import problem, stored
from tests.kit.behind import js_of
from tests.kit.gateway import MODELS, GatewayProcess, warm_lanes
from tests.kit.records import pending_task
from tests.kit.support import KEEP_S, reporting_file

SECRET = "zebra7319"
WRONG: dict[str, dict[str, Any]] = {"anisora": {"steps": 20}, "phr00t": {"steps": 8, "cfg": 2.5}}
FIXED: dict[str, dict[str, Any]] = {"anisora": {"steps": 8}, "phr00t": {"steps": 4, "cfg": 1.0}}


class Pair(Struct):
    """The same server behind two gateways: *report* replaces, *reject* refuses."""

    reporting: GatewayProcess
    settings: Path
    report: httpx.AsyncClient
    reject: httpx.AsyncClient
    link: NatsLink

    def logged(self) -> list[dict[str, Any]]:
        """The log lines that report replaced values."""
        lines = [json.loads(line) for line in self.reporting.log().splitlines() if '"parameters_reported"' in line]
        return [{key: line[key] for key in ("task_id", "caller", "model", "fields")} for line in lines]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    reporting = GatewayProcess(tmp_path_factory.mktemp("report"))
    rejecting = GatewayProcess(tmp_path_factory.mktemp("reject"), beside=reporting)
    with contextlib.ExitStack() as leave:
        leave.callback(reporting.nats.stop)
        reporting.nats.start()

        async def prepare() -> None:
            link = await NatsLink.connect(reporting.nats.url, name="test")
            await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
            await link.close()

        asyncio.run(prepare())
        leave.callback(reporting.stop)
        settings = reporting_file(reporting.folder, *MODELS)
        reporting.start("--keep", f"{KEEP_S:g}s", "--settings", str(settings))
        leave.callback(rejecting.stop)
        rejecting.start("--keep", f"{KEEP_S:g}s")
        yield reporting, rejecting


@pytest.fixture
async def pair(gateways: tuple[GatewayProcess, GatewayProcess]) -> AsyncIterator[Pair]:
    reporting, rejecting = gateways
    async with contextlib.AsyncExitStack() as leave:
        link = await NatsLink.connect(reporting.nats.url, name="test")
        leave.push_async_callback(link.close)
        await warm_lanes(link, reporting, rejecting)
        report, reject = [
            await leave.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=60))
            for gateway in (reporting, rejecting)
        ]
        yield Pair(reporting, reporting.folder / "settings.json", report, reject, link)


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": f"a {SECRET}"} | fields


@pytest.mark.parametrize("model", MODELS)
async def test_report_accepts_with_the_fixed_value_and_a_warning_and_reject_does_not(model: str, pair: Pair) -> None:
    sent = body(model, **WRONG[model])
    before = await stored(pair.link)
    refused = await pair.reject.post("/generate", json=sent)
    assert (refused.status_code, problem(refused)["code"]) == (422, "validation_failed")
    assert {error["code"] for error in refused.json()["errors"]} == {"fixed_value"}
    assert await stored(pair.link) == before

    accepted = await pair.report.post("/generate", json=sent)
    assert accepted.status_code == 202
    task = accepted.json()
    assert FIXED[model].items() <= task["parameters"].items()
    assert [(each["pointer"], each["code"], each["expected"], each["got"]) for each in task["warnings"]] == [
        (f"/{name}", "fixed_value_replaced", FIXED[model][name], got) for name, got in WRONG[model].items()
    ]
    queued = await js_of(pair.link).get_last_msg(work_stream("lane", model), work_subject("lane", model, task["id"]))
    assert FIXED[model].items() <= json.loads(queued.data or b"")["parameters"].items()
    for gateway in (pair.report, pair.reject):  # a later reader sees it as well
        assert (await gateway.get(f"/tasks/{task['id']}")).json() == task
    assert pair.logged()[-1] == {
        "task_id": task["id"],
        "caller": "anonymous",
        "model": model,
        "fields": {name: {"got": got, "used": FIXED[model][name]} for name, got in WRONG[model].items()},
    }


async def test_everything_else_is_judged_as_before(pair: Pair) -> None:
    sent = body("anisora", steps=20, cfg=9, num_inference_steps=20, width=50)
    wrong = {
        (error["pointer"], error["code"]) for error in (await pair.reject.post("/generate", json=sent)).json()["errors"]
    }
    before = await stored(pair.link)
    refused = await pair.report.post("/generate", json=sent)
    assert refused.status_code == 422
    assert {(error["pointer"], error["code"]) for error in problem(refused)["errors"]} == wrong - {
        ("/steps", "fixed_value")
    }
    assert await stored(pair.link) == before
    right = (await pair.report.post("/generate", json=body("anisora", steps=8))).json()
    assert right["warnings"] == []


async def test_one_key_one_task_whatever_the_switch(pair: Pair) -> None:
    """This holds before the switch, after it, and after the way back. A task is counted once."""

    async def post(gateway: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
        return await gateway.post("/generate", json=body("phr00t", **fields), headers={"idempotency-key": key})

    # a request that was right before is the same task afterwards, in every spelling
    first = (await post(pair.reject, "right")).json()
    for again in (await post(pair.report, "right", steps=4), await post(pair.reject, "right", cfg=1)):
        assert again.json() == first

    # a request that was refused before, and left nothing behind, is a task afterwards
    assert (await post(pair.reject, "wrong", steps=20)).status_code == 422
    before = len(pair.logged())
    answers = await asyncio.gather(*(post(pair.report, "wrong", steps=20) for _ in range(20)))
    [task_id] = {answer.json()["id"] for answer in answers}
    assert {answer.json()["warnings"][0]["got"] for answer in answers} == {20}
    assert [line["task_id"] for line in pair.logged()[before:]] == [task_id]

    # another wrong value is another request, and so is the right one: no client gets a task that conceals that
    for other in ({"steps": 21}, {"steps": 4}, {}, {"steps": 20, "cfg": 2}):
        assert problem(await post(pair.report, "wrong", **other))["code"] == "idempotency_key_reused"
    assert problem(await post(pair.report, "right", steps=20))["code"] == "idempotency_key_reused"

    # back again: only the body decides, as SC-002 says; the task stays
    assert problem(await post(pair.reject, "wrong", steps=20))["code"] == "validation_failed"
    assert (await pair.reject.get(f"/tasks/{task_id}")).json()["warnings"][0]["got"] == 20


async def test_what_another_gateway_has_queued_is_not_counted_again(pair: Pair) -> None:
    """That gateway published and counted, and died before it recorded the task."""
    sent = body("anisora", steps=20)
    accepted = validate(sent, load_settings(pair.settings).catalog("tiny"))
    queued = pending_task(
        keyed_task_id("anonymous", "half-done"),
        parameters=accepted.parameters(seed=7),
        request_sha256=accepted.fingerprint,
        replaced=accepted.replaced,
    )
    subject = work_subject("lane", "anisora", queued.id)
    await pair.link.messages.publish(subject, encode_task(queued), message_id=queued.message_id)
    before = pair.logged()
    answer = await pair.report.post("/generate", json=sent, headers={"idempotency-key": "half-done"})
    assert (answer.json()["id"], answer.json()["warnings"][0]["got"]) == (queued.id, 20)
    assert pair.logged() == before


async def test_clients_can_see_the_switch(pair: Pair) -> None:
    for gateway, word in ((pair.report, "report"), (pair.reject, "reject")):
        assert {each["enforcement"] for each in (await gateway.get("/settings")).json()["models"]} == {word}
    assert '"fixed_values_not_enforced"' in pair.reporting.log()


async def test_no_prompt_is_logged(pair: Pair) -> None:
    await pair.report.post("/generate", json=body("anisora", steps=20))
    assert pair.logged()
    assert SECRET not in pair.reporting.log()


async def test_records_of_other_versions(pair: Pair) -> None:
    """A version that knows no warnings wrote the first record; one that knows more fields wrote the second."""
    older = json.loads(encode_task(pending_task("01890a5d-ac96-774b-bcce-b302099a8101")))
    del older["replaced"]
    newer = json.loads(
        encode_task(
            replace(
                pending_task("01890a5d-ac96-774b-bcce-b302099a8102"),
                replaced=(ReplacedParameter(field="steps", used=8, got=9),),
            )
        )
    )
    newer |= {"added_later": {"deep": [1]}}
    for record, count in ((older, 0), (newer, 1)):
        await pair.link.entries.create(TASKS, record["id"], msgspec.json.encode(record))
        # long overdue: a gateway that reads it ends it, and so rewrites it
        shown = (await pair.reject.get(f"/tasks/{record['id']}")).json()
        assert len(shown["warnings"]) == count
        entry = await pair.link.entries.get(TASKS, record["id"])
        assert entry is not None
        assert len(decode_task(entry.value or b"").replaced) == count
