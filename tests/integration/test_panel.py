"""The panel in a real browser, on a real gateway without workers: what a user sends stays where the gateway put it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Route, expect

from contracts.lanes import LaneState
from contracts.topology import DEGRADED, DEGRADED_MAX_MSGS
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, report_lane
from tests.kit.panel import DESK, PHONE, Panel, chromium, panel_in
from tests.kit.panel_stage import Stage, error_of, open_all, png
from tests.kit.patient import connected
from tests.kit.played import claimed
from tests.kit.support import BOUND_S, KEEP_S, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
WARM: Final = "AniSora V3.2"
SHARED: Final = "Phr00t Rapid AIO"
TIMES: Final = "\N{MULTIPLICATION SIGN}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def stage(gateway: GatewayProcess) -> AsyncIterator[Stage]:
    link = await connected(gateway.nats.url)
    await js_of(link).purge_stream(DEGRADED)
    await report_lane(link, "anisora", LaneState.WARM)
    await report_lane(link, "phr00t", LaneState.DRAINING)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=BOUND_S) as http:

        async def is_ready() -> bool:
            models = (await http.get("/readyz")).json()["models"]
            return bool(models["anisora"]["warm"] and not models["phr00t"]["warm"])

        await eventually(is_ready)
        found = Stage(gateway, link, http)
        found.earlier = {task["id"] for task in await found.tasks()}
        yield found
        for task in await found.tasks():
            await http.delete(f"/tasks/{task['id']}")
    await link.close()


@pytest_asyncio.fixture(loop_scope="module")
async def panel(browser: Browser, stage: Stage) -> AsyncIterator[Panel]:
    async with panel_in(browser, stage.gateway.url) as found:
        yield found


async def test_every_fields_refusal_stands_at_the_field(panel: Panel, stage: Stage) -> None:
    """Refusals have the gateway's own words, for every number and text that the settings name."""
    (model,) = [each for each in (await stage.http.get("/settings")).json()["models"] if each["title"] == WARM]
    limits = model["constraints"]
    await panel.open()
    await panel.choose(WARM)
    await open_all(panel)
    wrong: dict[str, Any] = {"model": model["name"]}
    for name, field in limits.items():
        if isinstance(field, dict) and "max_chars" in field:
            wrong[name] = "x" * (field["max_chars"] + 1)
        elif isinstance(field, dict) and field.get("maximum") is not None:
            wrong[name] = int(field["maximum"]) + 1
        else:
            continue
        await panel.page.locator(f"#field-{name}").fill(str(wrong[name]))
    await panel.page.get_by_role("button", name="Make the video").click()

    refused = (await stage.http.post("/generate", json=wrong)).json()
    assert len(refused["errors"]) >= 8
    for error in refused["errors"]:
        name = error["pointer"].removeprefix("/")
        control = panel.page.locator(f"#field-{name}")
        await expect(error_of(control)).to_have_text(error["message"].removeprefix(f"{name}: "))
        await expect(control).to_have_attribute("aria-invalid", "true")
    await expect(panel.page.get_by_role("alert")).to_contain_text(f"{len(refused['errors'])} fields need a change")
    await expect(panel.prompt).to_be_focused()  # the first wrong field
    assert await stage.tasks() == []

    await panel.page.get_by_role("button", name="Start afresh").click()
    await panel.send("right this time")
    await expect(panel.accepted).to_have_count(1)
    assert await panel.page.locator(".error").count() == 0


async def test_a_fixed_parameter_is_shown_with_its_reason(panel: Panel, stage: Stage) -> None:
    await panel.open()
    for model in (await stage.http.get("/settings")).json()["models"]:
        await panel.choose(model["title"])
        for name, field in model["constraints"].items():
            if isinstance(field, dict) and field.get("fixed") is not None:
                shown = panel.page.locator(f"output#field-{name}")
                await expect(shown).to_have_text(f"{field['fixed']:g} (fixed)")
                described = await shown.get_attribute("aria-describedby")
                assert await panel.page.locator(f"#{described}").inner_text() or field["reason"]


async def test_an_image_by_drop_and_its_refusals_before_it_is_sent(panel: Panel, stage: Stage) -> None:
    await panel.open()
    await panel.choose(WARM)
    for name, media_type, content, words in (
        ("cat.gif", "image/gif", b"GIF89a", "image/gif is not accepted"),
        ("cat.png", "image/png", b"no picture at all", "cannot read it as an image"),
    ):
        await panel.drop(name, media_type, content)
        await expect(error_of(panel.page.locator("#field-image"))).to_contain_text(words)
    await panel.send("a boat drifts away")
    assert await stage.tasks() == []  # the page itself refused

    await panel.drop("boat.png", "image/png", png())
    await expect(panel.page.get_by_role("img", name="Preview of boat.png")).to_be_visible()
    await expect(panel.page.get_by_text(f"boat.png: 48 {TIMES} 32")).to_be_visible()
    await panel.send("a boat drifts away")
    await expect(panel.accepted).to_have_count(1)
    (task,) = await stage.tasks()
    image = task["parameters"]["image"]
    assert (image["media_type"], image["width"], image["height"], image["bytes"]) == ("image/png", 48, 32, len(png()))


async def test_an_image_is_judged_anew_by_the_model_that_is_chosen(browser: Browser, stage: Stage) -> None:
    """The page does not send a model an image that the model would refuse. If another model accepts the image, the user
    need not choose it again."""
    settings = (await stage.http.get("/settings")).json()
    limits = {model["title"]: model["constraints"] for model in settings["models"]}
    limits[SHARED]["image"] = limits[WARM]["image"] | {"media_types": ["image/webp"]}
    async with panel_in(browser, stage.gateway.url) as panel:
        await panel.page.route("**/settings", lambda route: route.fulfill(json=settings))
        await panel.open()
        preview = panel.page.get_by_role("img", name="Preview of boat.png")
        refused = error_of(panel.page.locator("#field-image"))
        await panel.choose(SHARED)
        await panel.drop("boat.png", "image/png", png())
        await expect(refused).to_contain_text("image/png is not accepted")
        await panel.choose(WARM)
        await expect(preview).to_be_visible()
        await panel.choose(SHARED)
        await expect(refused).to_contain_text("image/png is not accepted")
        await panel.send("a boat drifts away")
        assert await stage.tasks() == []
        await panel.choose(WARM)
        await expect(preview).to_be_visible()
        await panel.send("a boat drifts away")
        await expect(panel.accepted).to_have_count(1)


async def test_the_form_says_anew_which_model_is_warm(panel: Panel, stage: Stage) -> None:
    """A page that stays open does so when the form comes back, and when the tab is visible again."""
    warm = panel.page.locator("label.model", has_text=WARM)
    await panel.open()
    await expect(warm).to_contain_text("Warm: starts at once")
    await panel.go("Watch")
    await stage.becomes("anisora", LaneState.DRAINING)
    await panel.go("Make")
    await expect(warm).to_contain_text("No worker is ready for it now")
    await panel.be("hidden")
    await stage.becomes("anisora", LaneState.WARM)
    await panel.be("visible")
    await expect(warm).to_contain_text("Warm: starts at once")


async def test_a_task_that_is_looked_at_is_heard_too(panel: Panel, stage: Stage) -> None:
    """This holds after a reload too, when the page no longer knows that it sent the task."""
    await panel.open("watch")
    first, second = [await stage.submit(model="phr00t", prompt=prompt) for prompt in ("a kite", "a lantern")]
    await panel.open(f"watch/{second['id']}")
    spoken = panel.page.locator("[aria-live=polite]")
    await expect(spoken).to_contain_text("a lantern: Held Place 2 in the queue")
    await stage.http.delete(first["links"]["self"])
    await expect(spoken).to_contain_text("a lantern: Held Place 1 in the queue")
    await stage.http.delete(second["links"]["self"])
    await expect(spoken).to_contain_text("a lantern: Failed")


async def test_a_held_request_shows_its_place_live(panel: Panel, stage: Stage) -> None:
    await panel.open()
    await panel.choose(SHARED)
    first = await stage.submit(model="phr00t")  # it waits for 30 s at most, and a page may take long
    await panel.send("a paper lantern")
    await expect(panel.sent.first).to_contain_text("Held")
    await expect(panel.sent.first).to_contain_text("Place 2 in the queue")
    await stage.http.delete(first["links"]["self"])
    await expect(panel.sent.first).to_contain_text("Place 1 in the queue")
    spoken = panel.page.locator("[aria-live=polite]")
    await expect(spoken).to_contain_text("Place 1 in the queue")

    await panel.sent.first.get_by_role("button", name="Cancel").click()
    await expect(panel.page.get_by_role("dialog")).to_contain_text("no video is made")
    await panel.page.get_by_role("button", name="Cancel the task").click()
    await expect(panel.sent.first).to_contain_text("It was cancelled.")


async def test_a_full_queue_refuses_with_a_countdown_and_is_asked_again(panel: Panel, stage: Stage) -> None:
    await panel.open()
    await panel.choose(SHARED)
    await panel.prompt.fill("one too many")
    waiting = [await stage.submit(model="phr00t") for _ in range(DEGRADED_MAX_MSGS)]  # each waits for 30 s at most
    await panel.send("one too many")
    refused = panel.sent.first
    await expect(refused).to_contain_text("Refused for now")
    await expect(refused.locator(".countdown")).to_contain_text("asks you to wait for")
    await expect(refused.get_by_role("button", name="Send again")).to_be_disabled()
    await refused.get_by_label("Send again by itself").check()
    await stage.http.delete(waiting[0]["links"]["self"])
    await expect(panel.sent.first).to_contain_text("Held")
    assert "one too many" in [task["parameters"]["prompt"] for task in await stage.tasks()]


async def test_the_switch_moves_routing(panel: Panel, stage: Stage) -> None:
    await panel.open("operate")
    lanes = panel.page.get_by_role("region", name="anisora", exact=True)
    await expect(lanes).to_contain_text("a warm lane")
    await lanes.get_by_role("button", name="Send to the shared worker").click()
    dialog = panel.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("From now on no new request for anisora goes to its lanes")
    await panel.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert (await stage.submit())["route"] == "lane"
    await lanes.get_by_role("button", name="Send to the shared worker").click()
    await dialog.get_by_role("button", name="Send to the shared worker").click()
    await expect(lanes).to_contain_text("New requests go to the shared worker")
    await expect(lanes).to_contain_text("Held off its lanes by an operator")
    assert (await stage.submit())["route"] == "degraded"
    await expect(panel.page.get_by_text("1 of 25 places taken").first).to_be_visible()
    await lanes.get_by_role("button", name="Send to lanes again").click()
    await dialog.get_by_role("button", name="Send to lanes again").click()
    await expect(lanes).to_contain_text("a warm lane")
    assert (await stage.submit())["route"] == "lane"


async def test_the_list_is_live_and_filtered_and_older_ones_come_on_demand(panel: Panel, stage: Stage) -> None:
    for n in range(55):
        ended = await stage.submit(prompt=f"number {n}.")
        await stage.http.delete(ended["links"]["self"])
    await panel.open("watch")
    cards = panel.page.locator(".task-card")
    await expect(cards).to_have_count(50)
    await expect(cards.first).to_contain_text("number 54.")
    await panel.page.get_by_role("button", name="Show older ones").click()
    await expect(cards.filter(has_text="number 0.")).to_be_visible()
    await expect(panel.page.get_by_text("That is all of them.")).to_be_visible()
    await panel.page.get_by_role("button", name="Running").click()
    await expect(panel.page.get_by_text("No task matches")).to_be_visible()
    for n in range(2):
        task = await stage.submit(prompt="to be claimed")
        await claimed(stage.link, task["id"])
        await expect(cards).to_have_count(n + 1)
    await expect(cards.first).to_contain_text("to be claimed")
    streams = [each for each in panel.asked if each.endswith("/tasks/events")]
    assert len(streams) == 1  # for the whole page


async def test_a_thousand_tasks_are_drawn(panel: Panel, stage: Stage) -> None:
    """Pages of a thousand tasks, all modelled on a real one from the gateway."""
    example = await stage.submit(prompt="one of many")

    async def many(route: Route) -> None:
        cursor = route.request.url.partition("cursor=")[2]
        first = int(cursor or 0)
        tasks = []
        for n in range(first, first + 50):
            minute, second = divmod(999 - n, 60)
            moment = f"2026-01-01T00:{minute:02d}:{second:02d}Z"
            tasks.append(example | {"id": f"{example['id'][:-4]}{n:04d}", "created_at": moment})
        last = first + 50
        await route.fulfill(json={"tasks": tasks, "next_cursor": None if last == 1000 else str(last)})

    await panel.page.route("**/tasks?*", many)
    await panel.open("watch")
    for _ in range(19):
        await panel.page.get_by_role("button", name="Show older ones").click()
    # plus the real one, if the stream began before it was written
    await expect(panel.page.get_by_text(re.compile(r"^100[01] tasks\."))).to_be_visible()


async def test_the_gateway_goes_and_comes_back(panel: Panel, stage: Stage) -> None:
    """The page says so, keeps the user's entries, sends later what the user sent meanwhile, and misses nothing."""
    task = await stage.submit(prompt="before")
    await panel.open("watch")
    await expect(panel.page.locator(".task-card", has_text="before")).to_be_visible()
    await panel.go("Make")
    await panel.choose(WARM)
    await open_all(panel)
    await panel.page.locator("#field-seed").fill("7")
    stage.gateway.kill()
    try:
        await expect(panel.page.locator(".away")).to_contain_text("The gateway does not answer.")
        await expect(panel.page.get_by_text("Offline")).to_be_visible()
        assert await panel.barriers() == []
        await panel.send("sent into nothing")
        await expect(panel.sent.first).to_contain_text("Not sent yet")
        await claimed(stage.link, task["id"])
        await report_lane(stage.link, "anisora", LaneState.WARM)  # a report counts for a minute
    finally:
        await asyncio.to_thread(stage.gateway.start, "--keep", f"{KEEP_S:g}s")
    await expect(panel.page.get_by_text("Live")).to_be_visible()
    await expect(panel.sent.first).to_contain_text("Waiting")
    await expect(panel.prompt).to_have_value("sent into nothing")
    await expect(panel.page.locator("#field-seed")).to_have_value("7")
    prompts = [each["parameters"]["prompt"] for each in await stage.tasks()]
    assert prompts.count("sent into nothing") == 1
    await panel.go("Watch")
    await expect(panel.page.locator(".task-card", has_text="before")).to_contain_text("Running")


@pytest.mark.parametrize(
    ("scheme", "viewport", "rules"),
    [("light", DESK, ()), ("light", PHONE, ()), ("dark", DESK, ("color-contrast",))],
    ids=["desk", "phone", "dark"],
)
async def test_axe_finds_nothing(
    browser: Browser, stage: Stage, scheme: str, viewport: dict[str, int], rules: tuple[str, ...]
) -> None:
    """In any view, with tasks and without, with dialogs and errors. In the dark scheme only colours differ."""
    task = await stage.submit(prompt="a paper boat")
    await stage.submit(model="phr00t", prompt="a lantern")
    await claimed(stage.link, task["id"])
    ended = await stage.submit(prompt="a red fox")
    await stage.http.delete(ended["links"]["self"])
    async with panel_in(browser, stage.gateway.url, color_scheme=scheme, viewport=viewport) as panel:
        await panel.open()
        await open_all(panel)
        await panel.choose(WARM)
        await panel.page.get_by_role("button", name="cURL").click()
        await panel.send("")
        await expect(panel.page.get_by_role("alert")).to_be_visible()
        assert await panel.barriers(*rules) == [], "make"
        for view in ("watch", f"watch/{ended['id']}", f"compare/{task['id']}/{ended['id']}", "operate"):
            await panel.open(view)
            await expect(panel.page.get_by_text("Loading\u2026")).to_have_count(0)
            assert await panel.barriers(*rules) == [], view
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert await panel.page.evaluate(overflow) == 0, view
        await panel.page.get_by_role("button", name="Send to the shared worker").first.click()
        assert await panel.barriers(*rules) == [], "confirm"


async def test_the_keyboard_alone_makes_a_video(panel: Panel, stage: Stage) -> None:
    await panel.open()
    keyboard = panel.page.keyboard
    await keyboard.press("Tab")
    await expect(panel.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await keyboard.press("Enter")
    await keyboard.press("Tab")
    await expect(panel.page.get_by_role("radio").first).to_be_focused()
    await keyboard.press("Tab")
    await expect(panel.prompt).to_be_focused()
    await keyboard.type("by hand")
    for _ in range(10):
        await keyboard.press("Tab")
        if await panel.page.evaluate("document.activeElement.type === 'submit'"):
            break
    await keyboard.press("Enter")
    await expect(panel.accepted).to_have_count(1)
    assert [task["parameters"]["prompt"] for task in await stage.tasks()] == ["by hand"]


async def test_the_page_is_made_of_the_settings(browser: Browser, stage: Stage) -> None:
    """With another model, other fields and other limits the form is another one: the page has none of it built in."""
    settings = (await stage.http.get("/settings")).json()
    field = {"fixed": None, "default": 3, "minimum": 2, "maximum": 9, "step": None, "offset": 0, "reason": ""}
    constraints = {"wording": {"min_chars": 1, "max_chars": 33}, "wobble": field}
    other = settings["models"][0] | {"name": "violet", "title": "Violet 9", "constraints": constraints}
    async with panel_in(browser, stage.gateway.url) as panel:
        await panel.page.route("**/settings", lambda route: route.fulfill(json=settings | {"models": [other]}))
        bodies: list[Any] = []

        async def take(route: Route) -> None:
            bodies.append(json.loads(route.request.post_data or ""))
            await route.continue_()

        await panel.page.route("**/generate", take)
        await panel.open()
        await open_all(panel)
        await panel.page.get_by_label("Wording").fill("so")
        await panel.page.get_by_label("Wobble").fill("4")
        await expect(panel.page.get_by_text("2 to 9, 3 if left empty")).to_be_visible()
        await panel.page.get_by_role("button", name="Make the video").click()
        await expect(panel.page.get_by_role("alert")).to_contain_text("no model has this name")
        assert bodies == [{"model": "violet", "wording": "so", "wobble": 4}]
