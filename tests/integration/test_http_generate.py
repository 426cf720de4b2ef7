"""`POST /generate` over real HTTP: what the gateway accepts and refuses, and that a refusal leaves nothing behind."""

import asyncio
import base64
import contextlib
import io
import json
import socket
from datetime import datetime
from typing import Any

import httpx
import pytest
from PIL import Image

from contracts.generation.request import validate
from contracts.settings import Catalog
from contracts.tasks import decode_task, encode_task, keyed_task_id
from contracts.topology import TASKS, bucket_stream, lane_stream, work_subject
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.gateway import MODELS, GatewayProcess
from tests.kit.records import pending_task

GOOD = {"model": "anisora", "prompt": "a red fox"}


def png(width: int = 32, height: int = 32) -> str:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


async def stored(link: NatsLink) -> tuple[int, ...]:
    """The last sequence of every stream that a request could touch. Equal values mean that nothing was written."""
    names = [*(lane_stream(model) for model in MODELS), "DEGRADED", bucket_stream(TASKS)]
    return tuple([(await js_of(link).stream_info(name)).state.last_seq for name in names])


def problem(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == response.status_code
    assert body["type"] == f"urn:warmlane:problem:{body['code']}"
    return body


async def test_a_model_goes_by_its_names_in_any_case(http: httpx.AsyncClient) -> None:
    models = (await http.get("/settings")).json()["models"]
    for model in models:
        assert model["aliases"]
        for name in (model["name"].upper(), *(alias.title() for alias in model["aliases"])):
            answer = await http.post("/generate", json=GOOD | {"model": name})
            assert (answer.status_code, answer.json()["model"]) == (202, model["name"]), name


async def test_a_condition_or_a_query_that_makes_no_sense_is_refused(
    http: httpx.AsyncClient, gateway_link: NatsLink
) -> None:
    before = await stored(gateway_link)
    answer = await http.post("/generate", json=GOOD, headers={"if-match": "*"})
    assert (answer.status_code, problem(answer)["code"]) == (412, "precondition_failed")
    answer = await http.post("/generate?wait=3", json=GOOD)
    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_query")
    assert "'wait': no such query parameter; this path takes none" in answer.json()["detail"]
    assert await stored(gateway_link) == before
    assert (await http.post("/generate", json=GOOD, headers={"if-none-match": "*"})).status_code == 202


async def test_an_accepted_request_is_queued_and_recorded(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    response = await http.post("/generate", json={"model": "anisora-v3.2", "prompt": "a red fox", "cfg": 1})
    assert response.status_code == 202
    task = response.json()
    assert response.headers["location"] == f"/tasks/{task['id']}"
    assert (task["model"], task["status"], task["route"]) == ("anisora", "pending", "lane")
    assert task["parameters"]["steps"] == 8
    message = await js_of(gateway_link).get_last_msg(lane_stream("anisora"), f"lane.anisora.{task['id']}")
    assert json.loads(message.data or b"")["id"] == task["id"]
    entry = await gateway_link.entries.get(TASKS, task["id"])
    assert entry is not None
    assert entry.value == message.data
    again = await http.get(response.headers["location"])
    assert again.json() == task


BAD_BODIES = {
    "steps 7": (GOOD | {"steps": 7}, [("/steps", "fixed_value")]),
    "steps 8.0": (GOOD | {"steps": 8.0}, [("/steps", "wrong_type")]),
    "steps text": (GOOD | {"steps": "8"}, [("/steps", "wrong_type")]),
    "steps true": (GOOD | {"steps": True}, [("/steps", "wrong_type")]),
    "steps null": (GOOD | {"steps": None}, [("/steps", "wrong_type")]),
    "phr00t cfg": ({"model": "phr00t", "prompt": "x", "cfg": 1.5}, [("/cfg", "fixed_value")]),
    "unknown model": (GOOD | {"model": "sora"}, [("/model", "unknown_model")]),
    "unknown alias, with the fixed fields": (
        {"model": "rapid-aio-2", "prompt": "x", "steps": 4, "cfg": 1.0},
        [("/model", "unknown_model")],
    ),
    "unknown alias, with wrong ones": (
        {"model": "anisora-v4", "prompt": "x", "steps": 4, "cfg": 9},
        [("/model", "unknown_model")],
    ),
    "no prompt": ({"model": "anisora"}, [("/prompt", "missing")]),
    "empty prompt": (GOOD | {"prompt": ""}, [("/prompt", "length")]),
    "huge prompt": (GOOD | {"prompt": "x" * 100_000}, [("/prompt", "length")]),
    "odd size": (GOOD | {"width": 100}, [("/width", "not_a_multiple")]),
    "odd frames": (GOOD | {"num_frames": 16}, [("/num_frames", "not_a_multiple")]),
    "each side at its limit": (
        GOOD | {"width": 256, "height": 256, "num_frames": 81},
        [("/num_frames", "too_large")],
    ),
    "seed": (GOOD | {"seed": 2**32}, [("/seed", "out_of_range")]),
    "unknown field": (GOOD | {"num_inference_steps": 8}, [("/num_inference_steps", "unknown_field")]),
    "image of nothing": (
        GOOD | {"image": "data:image/png;base64," + base64.b64encode(b"GIF89a").decode()},
        [("/image", "bad_image")],
    ),
    "image for a text model": ({"model": "phr00t", "prompt": "x", "image": png()}, [("/image", "image_unsupported")]),
    "several": (
        {"fps": 0, "model": "anisora", "steps": 4, "zoom": 1, "prompt": ""},
        [("/prompt", "length"), ("/fps", "out_of_range"), ("/steps", "fixed_value"), ("/zoom", "unknown_field")],
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_wrong_request_is_422_and_nothing_is_written(
    name: str, http: httpx.AsyncClient, gateway_link: NatsLink
) -> None:
    body, expected = BAD_BODIES[name]
    before = await stored(gateway_link)
    response = await http.post("/generate", json=body)
    assert response.status_code == 422
    found = problem(response)
    assert [(error["pointer"], error["code"]) for error in found["errors"]] == expected
    assert (await http.post("/generate", json=body)).content == response.content  # deterministic
    assert await stored(gateway_link) == before


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        pytest.param(b'{"model":', {}, 400, "malformed_body", id="cut"),
        pytest.param(b'{"prompt":"\xff"}', {}, 400, "malformed_body", id="utf-8"),
        pytest.param(b'{"cfg":NaN}', {}, 400, "malformed_body", id="nan"),
        pytest.param(b'{"prompt":"\\ud800"}', {}, 400, "malformed_body", id="surrogate"),
        pytest.param(b'{"steps":8,"steps":8}', {}, 400, "malformed_body", id="duplicate-key"),
        pytest.param(b"[]", {}, 400, "malformed_body", id="array"),
        pytest.param(b"", {}, 400, "malformed_body", id="empty"),
        pytest.param(b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type", id="text"),
        pytest.param(b"{}", {"content-encoding": "gzip"}, 415, "unsupported_media_type", id="gzip"),
        pytest.param(b"\x1f\x8b", {"content-encoding": "GZIP"}, 415, "unsupported_media_type", id="gzipped"),
        pytest.param(b"{}", {"idempotency-key": "two words"}, 400, "invalid_query", id="key"),
        pytest.param(b"x" * (12 * 1024 * 1024 + 1), {}, 413, "body_too_large", id="large"),
        pytest.param(
            b"x" * (12 * 1024 * 1024 + 1), {"content-type": "text/plain"}, 413, "body_too_large", id="413-before-415"
        ),
    ],
)
async def test_a_body_that_is_no_request(
    content: bytes, headers: dict[str, str], status: int, code: str, http: httpx.AsyncClient, gateway_link: NatsLink
) -> None:
    before = await stored(gateway_link)
    response = await http.post("/generate", content=content, headers={"content-type": "application/json"} | headers)
    assert (response.status_code, problem(response)["code"]) == (status, code)
    assert await stored(gateway_link) == before


NESTED = b'{"a":[' + b'{"b":1},' * 1_500_000 + b"1]}"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(NESTED, id="objects"),
        pytest.param(b'{"image": "AAAA", "prompt": "' + b"x" * 200_000 + b'"}', id="prompt"),
        pytest.param(json.dumps({f"field{number}": 1 for number in range(20_000)}).encode(), id="fields"),
    ],
)
async def test_what_is_not_the_image_is_bounded_before_it_is_parsed(content: bytes, http: httpx.AsyncClient) -> None:
    """12 MB of small objects once took 584 MB and 2.5 to 5.9 s, during which the gateway answered no client."""
    response = await http.post("/generate", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, problem(response)["code"]) == (413, "body_too_large")
    assert " bytes beside the image; at most 131072 are allowed" in response.json()["detail"]


def test_a_body_without_a_declared_length_is_not_read_on(gateway: GatewayProcess) -> None:
    """The gateway closes the connection of a client that goes on sending."""
    head = b"POST /generate HTTP/1.1\r\nHost: [::1]\r\n"
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    sent_bytes = 0
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            while sent_bytes < 200 << 20:
                connection.sendall(chunk)
                sent_bytes += 1 << 20
    assert sent_bytes < 60 << 20


async def test_one_key_one_task(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    """100 equal posts with one Idempotency-Key make one task, one message, one record."""
    before = (await js_of(gateway_link).stream_info(lane_stream("phr00t"))).state.messages
    body = {"model": "phr00t", "prompt": "once"}
    responses = await asyncio.gather(
        *(http.post("/generate", json=body, headers={"idempotency-key": "the-key"}) for _ in range(100))
    )
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert len({response.json()["parameters"]["seed"] for response in responses}) == 1
    assert (await js_of(gateway_link).stream_info(lane_stream("phr00t"))).state.messages == before + 1
    other = await http.post("/generate", json=body | {"prompt": "twice"}, headers={"idempotency-key": "the-key"})
    assert (other.status_code, problem(other)["code"]) == (422, "idempotency_key_reused")


async def test_the_class_of_a_request_is_that_of_its_task(http: httpx.AsyncClient, gateway_link: NatsLink) -> None:
    """The class is that of the body, or of the header if the body names none. The message carries it, and a repeat does
    not change it."""
    for fields, headers, expected in (
        ({}, {}, "standard"),
        ({"priority": "interactive"}, {"priority": "background"}, "interactive"),
        ({}, {"priority": "u=1, background"}, "background"),
    ):
        task = (await http.post("/generate", json=GOOD | fields, headers=headers)).json()
        assert task["priority"] == expected
        assert (await http.get(f"/tasks/{task['id']}")).json()["priority"] == expected
        message = await js_of(gateway_link).get_last_msg(lane_stream("anisora"), f"lane.anisora.{task['id']}")
        assert message.data is not None
        assert decode_task(message.data).priority == expected
    wrong = await http.post("/generate", json=GOOD | {"priority": "urgent"})
    assert [error["pointer"] for error in problem(wrong)["errors"]] == ["/priority"]
    key = {"idempotency-key": "of-a-class"}
    first = (await http.post("/generate", json=GOOD | {"priority": "background"}, headers=key)).json()
    again = (await http.post("/generate", json=GOOD | {"priority": "interactive"}, headers=key)).json()
    assert (again["id"], again["priority"]) == (first["id"], "background")


async def test_equal_bodies_without_a_key_are_two_tasks_with_two_seeds(http: httpx.AsyncClient) -> None:
    first, second = [(await http.post("/generate", json=GOOD)).json() for _ in range(2)]
    assert first["id"] != second["id"]
    assert first["parameters"]["seed"] != second["parameters"]["seed"]


async def test_a_key_that_was_published_but_never_recorded_leads_to_the_queued_task(
    http: httpx.AsyncClient, gateway_link: NatsLink, catalog: Catalog
) -> None:
    """A gateway died between the publish and the record: the retry takes time, seed and body from the message."""
    accepted = validate(GOOD, catalog)
    queued = pending_task(
        keyed_task_id("anonymous", "half-done"),
        parameters=accepted.parameters(seed=4242),
        request_sha256=accepted.fingerprint,
    )
    subject = work_subject("lane", "anisora", queued.id)
    await gateway_link.messages.publish(subject, encode_task(queued), message_id=queued.message_id)
    other = await http.post("/generate", json=GOOD | {"fps": 8}, headers={"idempotency-key": "half-done"})
    assert (other.status_code, problem(other)["code"]) == (422, "idempotency_key_reused")
    response = await http.post("/generate", json=GOOD, headers={"idempotency-key": "half-done"})
    assert response.status_code == 202
    task = response.json()
    assert (task["id"], task["parameters"]["seed"]) == (queued.id, 4242)
    assert datetime.fromisoformat(task["queued_at"]) == queued.queued_at


async def test_an_image_is_stored_before_the_answer(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    response = await http.post("/generate", json=GOOD | {"image": png()})
    assert response.status_code == 202
    image = response.json()["parameters"]["image"]
    assert (image["width"], image["height"], image["media_type"]) == (32, 32, "image/png")
    (path,) = gateway.artifacts.glob(f"images/{response.json()['id']}.*")
    assert path.stat().st_size == image["bytes"]


@pytest.mark.parametrize(("prefer", "applied"), [("respond-async", True), ("return=minimal", False)])
async def test_a_warm_lane_answers_at_once_in_any_case(prefer: str, applied: bool, http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json=GOOD, headers={"prefer": prefer})
    assert (response.status_code, response.json()["route"]) == (202, "lane")
    assert response.headers.get("preference-applied") == ("respond-async" if applied else None)
