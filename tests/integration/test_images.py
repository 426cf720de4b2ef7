"""Images as files, by reference and by address: a real gateway, and image hosts that may misbehave."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.settings import load_settings
from tests.kit.gateway import MODELS, GatewayProcess, provisioned_gateway
from tests.kit.keyed import by, make
from tests.kit.patient import connected
from tests.kit.receivers import Answer, Received, receiving
from tests.kit.samples import data_uri, picture
from tests.kit.support import BOUND_S, eventually

GOOD = {"model": "anisora", "prompt": "8", "seed": 7}
ASYNC = {"prefer": "respond-async"}
PNG, JPEG, WEBP = picture("PNG"), picture("JPEG"), picture("WEBP")
LIMITS = load_settings().catalog("tiny").models["anisora"].constraints.image


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    options = ("--images-allow-host", "127.0.0.0/8", "--images-allow-host", "localhost")
    with provisioned_gateway(tmp_path_factory.mktemp("images"), *MODELS, options=options) as process:
        yield process


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def errors(answer: httpx.Response) -> list[tuple[str, str]]:
    assert problem(answer) == (422, "validation_failed"), answer.text
    return [(error["pointer"], error["code"]) for error in answer.json()["errors"]]


def stored(gateway: GatewayProcess, task: dict[str, Any]) -> bytes:
    (path,) = gateway.artifacts.glob(f"images/{task['id']}.*")
    return path.read_bytes()


async def submit(http: httpx.AsyncClient, image: Any, **headers: str) -> httpx.Response:
    return await http.post("/generate", json=GOOD | {"image": image}, headers=ASYNC | headers)


async def upload(http: httpx.AsyncClient, content: bytes = PNG, media_type: str = "image/png") -> dict[str, Any]:
    answer = await http.post("/images", content=content, headers={"content-type": media_type})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


# As a file


async def test_a_form_is_the_same_request_as_json(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    fields = {"model": "anisora", "prompt": "8", "seed": "7"}
    key = {"idempotency-key": "form"}
    sent = await http.post("/generate", data=fields, files={"image": ("x.png", PNG)}, headers=ASYNC | key)
    assert sent.status_code == 202, sent.text
    task = sent.json()
    assert (task["parameters"]["prompt"], task["parameters"]["seed"]) == ("8", 7)
    assert stored(gateway, task) == PNG
    # the same key with a data URI is the same request, so the same task
    assert (await submit(http, data_uri(PNG), **key)).json()["id"] == task["id"]


async def test_a_form_is_refused_as_json_is(http: httpx.AsyncClient) -> None:
    wrong = {"model": "anisora", "steps": "4", "cfg": "many", "zoom": "1", "num_frames": "17.0"}
    form = await http.post("/generate", data=wrong, files={"image": ("x.png", b"GIF89a")})
    same = {"model": "anisora", "steps": 4, "cfg": "many", "zoom": 1, "num_frames": 17.0}
    json = await http.post("/generate", json=same | {"image": data_uri(b"GIF89a")})
    assert errors(form) == errors(json)
    assert form.content == json.content


def part(name: str, content: bytes, *, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


FORM = {"content-type": "multipart/form-data; boundary=b"}
END = b"--b--\r\n"


async def test_a_form_in_which_no_file_was_chosen_is_a_request_without_an_image(http: httpx.AsyncClient) -> None:
    """Browsers send such a form, even for a model that takes no image."""
    chosen = part("image", b"", more='; filename=""\r\nContent-Type: application/octet-stream')
    body = part("model", b"phr00t") + part("prompt", b"x") + chosen + END
    answer = await http.post("/generate", content=body, headers=ASYNC | FORM)
    assert answer.status_code == 202, answer.text
    assert answer.json()["parameters"]["image"] is None


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        pytest.param(b"", FORM, (400, "malformed_body"), id="empty"),
        pytest.param(part("model", b"anisora"), FORM, (400, "malformed_body"), id="cut-off"),
        pytest.param(part("a", b"1") + part("a", b"2") + END, FORM, (400, "malformed_body"), id="twice"),
        pytest.param(part("prompt", b"\xff") + END, FORM, (400, "malformed_body"), id="not-utf-8"),
        pytest.param(b'{"model":"anisora"}', FORM, (400, "malformed_body"), id="json"),
        pytest.param(END, {"content-type": "multipart/form-data"}, (400, "malformed_body"), id="no-boundary"),
        pytest.param(
            b"".join(part(f"f{n}", b"") for n in range(70)) + END, FORM, (400, "malformed_body"), id="many-parts"
        ),
        pytest.param(part("prompt", b"x" * 200_000) + END, FORM, (413, "body_too_large"), id="long-text"),
        pytest.param(
            b"".join(part(f"{n}" + "x" * 3_000, b"") for n in range(60)) + END,
            FORM,
            (413, "body_too_large"),
            id="long-names",
        ),
        pytest.param(
            part("image", b"x" * 13_000_000, more='; filename="x"') + END, FORM, (413, "body_too_large"), id="13-MB"
        ),
        pytest.param(END, FORM | {"content-encoding": "gzip"}, (415, "unsupported_media_type"), id="gzip"),
        pytest.param(END, {"content-type": "text/plain"}, (415, "unsupported_media_type"), id="text"),
    ],
)
async def test_a_form_that_cannot_be_read(
    body: bytes, headers: dict[str, str], expected: tuple[int, str], http: httpx.AsyncClient
) -> None:
    assert problem(await http.post("/generate", content=body, headers=headers)) == expected


async def test_a_file_that_is_too_large_is_refused_with_all_else_that_is_wrong(http: httpx.AsyncClient) -> None:
    too_large = part("image", PNG + b"x" * LIMITS.max_bytes, more='; filename="x.png"')
    answer = await http.post("/generate", content=too_large + part("model", b"anisora") + END, headers=FORM)
    assert errors(answer) == [("/prompt", "missing"), ("/image", "bad_image")]


# By reference


async def test_an_upload_is_used_in_many_requests_and_each_task_keeps_its_own(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    image = await upload(http)
    assert image["id"].startswith("img_")
    assert (image["bytes"], image["sha256"]) == (len(PNG), hashlib.sha256(PNG).hexdigest())
    assert (image["width"], image["height"], image["media_type"]) == (33, 21, "image/png")
    answers = [await submit(http, {"ref": image["id"]}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert (await http.delete(f"/images/{image['id']}")).status_code == 204
    # removed for new requests, but not for tasks that have it
    assert [stored(gateway, answer.json()) for answer in answers] == [PNG] * 3
    assert errors(await submit(http, {"ref": image["id"]})) == [("/image/ref", "image_not_found")]


async def test_the_same_bytes_have_the_same_reference_in_either_form(http: httpx.AsyncClient) -> None:
    image = await upload(http, JPEG, "image/jpeg")
    form = await http.post("/images", files={"image": ("photo.jpg", JPEG, "image/jpeg")})
    assert form.status_code == 201
    assert form.headers["location"] == f"/images/{image['id']}"
    assert form.json() == image
    assert (await http.get(form.headers["location"])).json() == image
    assert (await http.head(form.headers["location"])).status_code == 200


async def test_a_repeated_request_needs_its_image_no_more(http: httpx.AsyncClient) -> None:
    image, key = await upload(http, WEBP, "image/webp"), {"idempotency-key": "by-reference"}
    task = (await submit(http, {"ref": image["id"]}, **key)).json()
    await http.delete(f"/images/{image['id']}")
    assert (await submit(http, {"ref": image["id"]}, **key)).json()["id"] == task["id"]
    other = await submit(http, data_uri(PNG), **key)
    assert problem(other) == (422, "idempotency_key_reused")


async def test_a_task_is_submitted_again_without_the_upload(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    image = await upload(http)
    task = (await submit(http, {"ref": image["id"]})).json()
    await http.delete(f"/images/{image['id']}")
    await http.delete(f"/tasks/{task['id']}")
    again = await http.post(f"/tasks/{task['id']}/resubmit", json={})
    assert again.status_code == 202, again.text
    assert stored(gateway, again.json()) == PNG


async def test_whoever_repeats_a_request_stores_the_image_that_a_dead_gateway_did_not(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    """As after a kill between the queue message and the image. Meanwhile the worker waits for the image."""
    key = {"idempotency-key": "lost"}
    image = await upload(http)
    task = (await submit(http, {"ref": image["id"]}, **key)).json()
    (path,) = gateway.artifacts.glob(f"images/{task['id']}.*")
    path.unlink()
    assert (await submit(http, {"ref": image["id"]}, **key)).json()["id"] == task["id"]
    assert path.read_bytes() == PNG


@pytest.mark.parametrize("ref", ["img_" + "0" * 32, "img_1", "", "../../nats", "x" * 5_000])
async def test_a_reference_that_leads_nowhere(ref: str, http: httpx.AsyncClient) -> None:
    assert errors(await submit(http, {"ref": ref})) == [("/image/ref", "image_not_found")]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_a_path_that_leads_nowhere(method: str, http: httpx.AsyncClient) -> None:
    for ref in ("img_" + "0" * 32, "x", "..%2fx"):
        assert (await http.request(method, f"/images/{ref}")).status_code == 404


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        pytest.param(PNG, "image/jpeg", (422, "validation_failed"), id="declared-as-another"),
        pytest.param(b"GIF89a", "image/png", (422, "validation_failed"), id="no-image"),
        pytest.param(PNG[:40], "image/png", (422, "validation_failed"), id="cut-short"),
        pytest.param(PNG, "image/gif", (415, "unsupported_media_type"), id="gif"),
        pytest.param(b"GIF89a", "application/octet-stream", (422, "validation_failed"), id="no-image-and-not-said"),
        pytest.param(PNG + b"x" * LIMITS.max_bytes, "image/png", (413, "body_too_large"), id="too-large"),
        pytest.param(part("other", PNG) + END, FORM["content-type"], (413, "body_too_large"), id="no-room-for-other"),
        pytest.param(part("image", b"x") + END, FORM["content-type"], (422, "validation_failed"), id="text"),
        pytest.param(END, FORM["content-type"], (422, "validation_failed"), id="empty-form"),
    ],
)
async def test_what_is_no_upload(
    content: bytes, media_type: str, expected: tuple[int, str], http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    if "other" in str(content[:60]):
        content = content.replace(PNG, b"x" * 2_000)
    before = sorted(gateway.artifacts.glob("uploads/*"))
    answer = await http.post("/images", content=content, headers={"content-type": media_type})
    assert problem(answer) == expected
    assert sorted(gateway.artifacts.glob("uploads/*")) == before


# By address


def serving(content: bytes, *head: str, length: bool = True) -> Answer:
    """A host that answers with *content*."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [*head, *([f"Content-Length: {len(content)}"] if length else [])]
        writer.write("".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines, "")).encode() + content)

    return answer


async def test_an_image_is_fetched_before_the_answer_and_the_task_holds_it(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    async with receiving(serving(PNG, "Content-Type: image/png")) as host:
        key = {"idempotency-key": "by-address"}
        answer = await submit(http, {"url": f"http://localhost:{host.port}/x.png?sig=secret7319"}, **key)
        assert answer.status_code == 202, answer.text
        assert stored(gateway, answer.json()) == PNG
        assert host.received[0].target == "/x.png?sig=secret7319"
        assert "authorization" not in host.received[0].headers
        # the same request again is the same task, and fetches nothing
        again = await submit(http, {"url": f"http://localhost:{host.port}/x.png?sig=secret7319"}, **key)
        assert again.json()["id"] == answer.json()["id"]
        assert host.connections == 1
    log = gateway.log()
    assert '"image_fetched"' in log
    assert "secret7319" not in log


async def test_another_image_at_the_same_address_is_not_put_in_the_place_of_the_first(
    http: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    key = {"idempotency-key": "changes"}
    async with receiving(serving(PNG)) as host:
        task = (await submit(http, {"url": host.url}, **key)).json()
        (path,) = gateway.artifacts.glob(f"images/{task['id']}.*")
        path.unlink()  # as after a kill of the first gateway
        host.answer = serving(JPEG)
        assert (await submit(http, {"url": host.url}, **key)).json()["id"] == task["id"]
        assert not path.exists()
        host.answer = serving(PNG)
        assert (await submit(http, {"url": host.url}, **key)).json()["id"] == task["id"]
        assert path.read_bytes() == PNG


async def test_what_the_rest_of_a_request_is_refused_for_costs_no_fetch(http: httpx.AsyncClient) -> None:
    async with receiving(serving(PNG)) as host:
        answer = await http.post("/generate", json=GOOD | {"steps": 4, "image": {"url": host.url}})
        assert errors(answer) == [("/steps", "fixed_value")]
        assert host.connections == 0


async def test_a_host_that_nobody_allowed_is_not_asked(http: httpx.AsyncClient) -> None:
    answer = await submit(http, {"url": "https://example.com/x.png"})
    assert errors(answer) == [("/image/url", "url_not_allowed")]
    assert "--images-allow-host" in answer.json()["errors"][0]["message"]


# Images of other callers, and a gateway whose operator allowed nothing. These tests come last: from the first key on
# the gateway asks for keys.


async def test_an_image_is_its_callers_alone(http: httpx.AsyncClient, gateway: GatewayProcess) -> None:
    link = await connected(gateway.nats.url)
    ann, bob = await make(link, "ann", "submit", "read"), await make(link, "bob", "submit", "read")
    operator = await make(link, "root", "admin")
    await link.close()

    async def all_are_known() -> bool:  # the gateway hears of the keys one after another
        return (await http.get("/tasks", headers=by(operator))).status_code == 200 and await closed()

    async def closed() -> bool:
        return (await http.get("/tasks")).status_code == 401

    await eventually(all_are_known)
    png = {"content-type": "image/png"}
    image = (await http.post("/images", content=PNG, headers=png | by(ann))).json()["id"]
    others = (await http.post("/images", content=PNG, headers=png | by(bob))).json()["id"]
    assert image != others
    for stranger in (bob, operator):
        for method in ("GET", "DELETE"):
            answer = await http.request(method, f"/images/{image}", headers=by(stranger))
            assert problem(answer) == (404, "image_not_found")
            nowhere = await http.request(method, f"/images/img_{'0' * 32}", headers=by(stranger))
            # the answer does not distinguish another caller's image from a missing one
            assert {**nowhere.json(), "instance": None} == {**answer.json(), "instance": None}
        assert errors(await submit(http, {"ref": image}, **by(stranger))) == [("/image/ref", "image_not_found")]
    assert (await submit(http, {"ref": image}, **by(ann))).status_code == 202
    assert (await http.post("/images", content=PNG, headers=png)).status_code == 401


async def test_a_gateway_whose_operator_said_nothing_fetches_nothing(gateway: GatewayProcess, tmp_path: Path) -> None:
    silent_one = GatewayProcess(tmp_path, beside=gateway)
    silent_one.start()
    link = await connected(gateway.nats.url)
    key = await make(link, "cat", "submit", "read")
    await link.close()
    try:
        async with receiving(serving(PNG)) as host, httpx.AsyncClient(base_url=silent_one.url, timeout=BOUND_S) as http:

            async def is_let_in() -> bool:
                return (await http.get("/tasks", headers=by(key))).status_code == 200

            await eventually(is_let_in)
            answer = await submit(http, {"url": host.url}, **by(key))
            assert errors(answer) == [("/image/url", "url_not_allowed")]
            assert "POST /images" in answer.json()["errors"][0]["message"]
            assert host.connections == 0
    finally:
        silent_one.stop()
