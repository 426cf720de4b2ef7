"""The panel on an open gateway that knows where traces are shown: images from the clipboard and too large ones, a
trace's link, failed tasks, a quarantine, and the first key, which closes the gateway."""

import io
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import msgspec
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Browser, Locator, Route, expect

from contracts import lifecycle
from contracts.lanes import ColdStart
from contracts.tasks import encode_task
from contracts.topology import COLD_STARTS, SLOTS, TASKS
from tests.integration.test_http_operate import SWAP, waiting
from tests.kit.collector import Collector
from tests.kit.gateway import GatewayProcess, provisioned_gateway, warm_lanes
from tests.kit.panel import Panel, chromium, panel_in
from tests.kit.patient import connected
from tests.kit.records import quarantined_slot, video_of
from tests.kit.support import BOUND_S, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
WARM: Final = "AniSora V3.2"
JAEGER: Final = "http://127.0.0.1:16686"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    collector = Collector()
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    with provisioned_gateway(folder, "anisora", options=("--jaeger-url", JAEGER), **traced) as process:
        yield process
    collector.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def panel(browser: Browser, gateway: GatewayProcess) -> AsyncIterator[Panel]:
    link = await connected(gateway.nats.url)
    await warm_lanes(link, gateway, models=["anisora"])  # a report counts for a minute
    await link.close()
    async with panel_in(browser, gateway.url) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as client:
        yield client


async def test_an_image_from_the_clipboard_goes_with_the_request(panel: Panel, http: httpx.AsyncClient) -> None:
    content = io.BytesIO()
    Image.new("RGB", (40, 24), "teal").save(content, "PNG")
    await panel.open()
    await panel.choose(WARM)
    await panel.paste("boat.png", "image/png", content.getvalue())
    await expect(panel.page.get_by_role("img", name="Preview of boat.png")).to_be_visible()
    await panel.send("from the clipboard")
    await expect(panel.accepted).to_have_count(1)
    [task] = (await http.get("/tasks")).json()["tasks"]
    image = task["parameters"]["image"]
    assert (image["width"], image["height"], image["bytes"]) == (40, 24, len(content.getvalue()))


async def test_an_image_that_is_too_large_is_refused_before_it_is_read(panel: Panel, http: httpx.AsyncClient) -> None:
    """The page judges by bytes and by pixels, and names the image's size and the limit."""
    settings = (await http.get("/settings")).json()
    [limits] = [each["constraints"]["image"] for each in settings["models"] if each["title"] == WARM]
    await panel.open()
    await panel.choose(WARM)
    await panel.drop_bytes("vast.png", "image/png", limits["max_bytes"] + 1)
    said = panel.page.locator("#field-image").locator("xpath=ancestor::div[contains(@class, 'field')][1]")
    await expect(said.locator(".error")).to_contain_text("are accepted. Choose a smaller file.")
    side = int(limits["max_pixels"] ** 0.5) + 2
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "PNG")
    await panel.drop("wide.png", "image/png", content.getvalue())
    await expect(said.locator(".error")).to_contain_text("pixels; at most")


async def asked(http: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    """The answer to a request for anisora, which comes at once even if its lane was last heard a minute ago."""
    body = {"model": "anisora"} | fields
    return await http.post("/generate", json=body, headers={"prefer": "respond-async"})


async def cancelled(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """Submits a task and cancels it at once."""
    accepted = await asked(http, **fields)
    task: dict[str, Any] = (await http.delete(accepted.json()["links"]["self"])).json()
    return task


async def test_an_operator_sends_a_failed_task_again_after_a_word_of_what_follows(
    panel: Panel, http: httpx.AsyncClient
) -> None:
    failed = await cancelled(http, prompt="a paper boat", seed=7)
    await panel.open("operate")
    await panel.page.get_by_role("button", name="Show failed tasks").click()
    await panel.page.get_by_role("link", name="a paper boat").first.click()
    await panel.page.get_by_role("button", name="Send again").click()
    dialog = panel.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("A new task is made")
    await dialog.get_by_role("button", name="Not now").click()
    assert (await http.get("/tasks")).json()["tasks"][0]["id"] == failed["id"]
    await panel.page.get_by_role("button", name="Send again").click()
    assert await panel.barriers() == []
    await dialog.get_by_role("button", name="Send again").click()
    await expect(panel.page.locator(".detail")).to_contain_text("Waiting")
    again, before = (await http.get("/tasks")).json()["tasks"][:2]
    assert (before["id"], before["status"]) == (failed["id"], "failed")
    assert again["parameters"] == before["parameters"]


async def test_a_task_that_cannot_be_read_is_asked_for_again(panel: Panel, http: httpx.AsyncClient) -> None:
    task = await cancelled(http, prompt="a paper boat")  # so that no event brings it
    problem = {"title": "Away", "status": 503, "code": "transport_unavailable", "detail": "the store is away"}

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json=problem, content_type="application/problem+json")

    await panel.page.route(f"**/tasks/{task['id']}", refuse)
    await panel.page.route("**/tasks?*", refuse)
    await panel.open(f"watch/{task['id']}")
    detail = panel.page.locator(".detail")
    await expect(detail.get_by_role("alert")).to_contain_text("the store is away")
    await panel.page.unroute(f"**/tasks/{task['id']}")
    await detail.get_by_role("button", name="Try again").click()
    await expect(detail).to_contain_text("It was cancelled.")


async def test_a_trace_is_linked_to_where_it_is_shown(panel: Panel, http: httpx.AsyncClient) -> None:
    accepted = await asked(http, prompt="a traced boat")
    task = accepted.json()
    await panel.open(f"watch/{task['id']}")
    assert task["trace_id"]
    link = panel.page.get_by_role("link", name=task["trace_id"])
    await expect(link).to_have_attribute("href", f"{JAEGER}/trace/{task['trace_id']}")


async def test_an_operator_sees_what_waits_what_happened_and_why(
    panel: Panel, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    """The panel shows the shared queue, the last hour, a fallback with its cause, a change of model, a cold start, and
    a decision."""
    body = {"model": "phr00t", "prompt": "a lantern"}
    waits = (await http.post("/generate", json=body, headers={"prefer": "respond-async"})).json()
    now = datetime.now(UTC)
    swapped = waiting(route="degraded", queued_at=now - timedelta(seconds=5))
    swapped = lifecycle.claim(swapped, owner="o", worker="degraded-0", lease_s=60, now=now)
    swapped = lifecycle.finish(swapped, video=video_of(swapped, b"x"), memory=None, swap=SWAP, now=now)
    start = ColdStart(model="anisora", worker="anisora-7", started_at=now, ended_at=now, seconds=12.0)
    link = await connected(gateway.nats.url)
    await link.entries.create(TASKS, swapped.id, encode_task(swapped))
    await link.entries.put(COLD_STARTS, "anisora", msgspec.json.encode(start))
    await link.close()
    await panel.open("operate")

    def part(name: str) -> Locator:
        return panel.page.get_by_role("region", name=name, exact=True)

    await expect(part("The shared queue")).to_contain_text(re.compile(r"Place \d+: phr00t, standard, for \d"))
    await expect(part("The shared queue")).to_contain_text("Nobody serves it now")
    await expect(part("The last hour")).to_contain_text("Longest wait 5 s")
    await expect(part("Fallbacks").get_by_role("img", name="phr00t: no warm lane")).to_be_visible()
    await part("Fallbacks").get_by_text("as a table").click()
    await expect(part("Fallbacks").get_by_role("row", name="phr00t")).to_contain_text("lasts")
    await expect(part("Changes of model")).to_contain_text("phr00t \N{RIGHTWARDS ARROW} anisora")
    await expect(part("Cold starts").get_by_role("row", name="anisora-7")).to_contain_text("12 s")
    assert await panel.barriers() == []
    await panel.open(f"watch/{waits['id']}")
    reasons = panel.page.locator(".detail section", has_text="Why it went there")
    await expect(reasons).to_contain_text("Rule 4: ")
    await expect(reasons).to_contain_text("Worked out again from the stored inputs: the same.")
    await http.delete(waits["links"]["self"])


async def test_a_quarantine_is_lifted_after_a_word_of_what_follows(panel: Panel, gateway: GatewayProcess) -> None:
    link = await connected(gateway.nats.url)
    await link.entries.put(SLOTS, "cpu-2", msgspec.json.encode(quarantined_slot("cpu-2")))
    await panel.open("operate")
    shown = panel.page.get_by_role("listitem").filter(has_text="cpu-2")
    await expect(shown).to_contain_text("12 MB too much")
    await shown.get_by_role("button", name="Lift the quarantine").click()
    dialog = panel.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("may load a model on cpu-2 again, after it has measured")
    await dialog.get_by_role("button", name="Lift the quarantine").click()

    async def is_empty() -> bool:
        stored = await link.entries.get(SLOTS, "cpu-2")
        return stored is not None and msgspec.json.decode(stored.value or b"")["state"] == "empty"

    await eventually(is_empty)
    await expect(shown.get_by_role("button", name="Lift the quarantine")).to_have_count(0)
    await link.close()


async def test_tabs_that_nobody_sees_leave_a_browser_its_connections(
    browser: Browser, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    """A browser has six connections for all its tabs. A tab that is visible again has missed nothing."""
    async with panel_in(browser, gateway.url) as first:
        await first.open("watch")
        await expect(first.page.get_by_text("Live")).to_be_visible()
        await first.be("hidden")
        for _ in range(6):
            other = Panel(await first.page.context.new_page(), gateway.url)
            await other.open("watch")
            await expect(other.page.get_by_text("Live")).to_be_visible()
            await other.be("hidden")
        accepted = await asked(http, prompt="while nobody looked")
        assert accepted.status_code == 202
        missed = first.page.locator(".task-card", has_text="while nobody looked")
        assert await missed.count() == 0
        await first.be("visible")
        await expect(missed).to_be_visible()


async def test_the_first_key_closes_the_gateway_and_this_page_goes_on(panel: Panel, http: httpx.AsyncClient) -> None:
    await panel.open("operate")
    await panel.page.get_by_label("Caller").fill("owner")
    await panel.page.get_by_role("button", name="Make a key").click()
    dialog = panel.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("It is the first key, and it closes this gateway")
    await dialog.get_by_role("button", name="Make a key").click()
    await expect(dialog).to_contain_text("it is shown only once")
    secret = (await dialog.locator("pre").inner_text()).strip()

    async def is_closed() -> bool:
        return (await http.get("/tasks")).status_code == 401

    await eventually(is_closed)
    await dialog.get_by_role("button", name="Close").click()
    await panel.go("Watch")
    await expect(panel.page.locator(".task-card").first).to_be_visible()
    answer = await http.get("/tasks", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200
    assert all(secret not in address for address in panel.asked)
