"""The panel with real videos: `warmlane up` with tiny pipelines, one lane, and the shared worker for the rest."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.kit.panel import PHONE, Panel, chromium, panel_in
from tests.kit.support import eventually_sync, shared_forks
from tests.kit.system import UpProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
WARM: Final = "AniSora V3.2"
SHARED: Final = "Phr00t Rapid AIO"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    options = ("--lanes", "anisora=1,phr00t=0", "--step-seconds", "0.5")
    up = UpProcess(tmp_path_factory.mktemp("up"), *options, **shared_forks())
    up.start()
    yield up
    up.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def panel(browser: Browser, system: UpProcess) -> AsyncIterator[Panel]:
    async with panel_in(browser, system.url) as found:
        yield found


async def plays(panel: Panel, n: int = 0) -> None:
    """Returns when the page's video *n* has frames, and has advanced."""
    video = panel.page.locator("video").nth(n)
    await expect(video).to_be_visible()
    await panel.page.wait_for_function(
        "n => { const v = document.querySelectorAll('video')[n]; return v.videoWidth > 0 && v.currentTime > 0; }", arg=n
    )


async def test_a_first_video_from_a_clean_page(panel: Panel) -> None:
    await panel.open()
    await panel.choose(WARM)
    await panel.send("a red fox walks through fresh snow")
    await expect(panel.sent.first).to_contain_text(re.compile(r"Step \d of \d"))
    await expect(panel.sent.first.get_by_role("img", name="A frame of")).to_be_visible()
    await panel.sent.first.get_by_role("button", name="Play").click()
    await plays(panel)
    async with panel.page.expect_download() as download:
        await panel.sent.first.get_by_role("button", name="Download").click()
    content = Path(await (await download.value).path()).read_bytes()
    assert content[4:8] == b"ftyp"
    assert panel.answers == []  # no request failed; `panel_in` checks that the policy was not broken


async def test_a_held_video_shows_the_change_of_model_that_it_needed(panel: Panel) -> None:
    await panel.open()
    await panel.choose(SHARED)
    await panel.send("a paper lantern in the rain")
    await panel.sent.first.get_by_role("link", name="Details").click()
    detail = panel.page.get_by_role("complementary")
    await expect(detail).to_contain_text("the shared worker")
    await expect(detail.get_by_role("heading", name="Change of model")).to_be_visible()
    await expect(detail).to_contain_text(re.compile(r"The slot \S+ held .*Only then was \w+ loaded, in .* s\."))
    await expect(detail.get_by_role("heading", name="Why it went there")).to_be_visible()
    await expect(detail).to_contain_text(re.compile(r"Rule \d"))


async def test_a_reload_in_mid_run_loses_nothing(panel: Panel) -> None:
    await panel.open()
    await panel.choose(WARM)
    await panel.send("seen through a reload")
    await expect(panel.sent.first).to_contain_text(re.compile(r"Step \d of \d"))
    await panel.page.reload()
    await expect(panel.prompt).to_have_value("seen through a reload")
    await panel.go("Watch")
    card = panel.page.locator(".task-card", has_text="seen through a reload")
    await expect(card).to_contain_text("Done")


async def test_cancel_in_mid_run(panel: Panel) -> None:
    await panel.open()
    await panel.choose(WARM)
    await panel.send("to be cancelled")
    await expect(panel.sent.first).to_contain_text("Running")
    await panel.sent.first.get_by_role("button", name="Cancel").click()
    await panel.page.get_by_role("button", name="Cancel the task").click()
    await expect(panel.sent.first).to_contain_text("It was cancelled.")


async def test_again_with_the_same_seed_and_a_new_one_side_by_side(panel: Panel, system: UpProcess) -> None:
    first = system.ended(system.submit(prompt="a boat drifts away")["id"])
    await panel.open(f"watch/{first['id']}")
    detail = panel.page.get_by_role("complementary")
    made = []
    for button in ("Again, same seed", "Again, new seed"):
        await detail.get_by_role("button", name=button).click()
        await expect(panel.page).not_to_have_url(f"{system.url}/#/watch/{first['id']}")
        made.append(system.ended(panel.page.url.rpartition("/")[2]))
        await panel.open(f"watch/{first['id']}")
    seeds = [task["parameters"]["seed"] for task in (first, *made)]
    assert seeds[0] == seeds[1] != seeds[2]
    await panel.go("Watch")
    for task in (first, made[1]):
        card = panel.page.locator(".task-card", has=panel.page.locator(f"a[href='#/watch/{task['id']}']"))
        await card.get_by_role("button", name="Compare").click()
    await panel.page.get_by_role("link", name="Side by side").click()
    await expect(panel.page.get_by_text("They differ in: Seed.")).to_be_visible()
    await panel.page.get_by_role("button", name="Play both").click()
    await plays(panel, 0)
    await plays(panel, 1)
    assert await panel.barriers() == []


async def test_every_copied_request_runs(panel: Panel, system: UpProcess, tmp_path: Path) -> None:
    """Each copied text runs unchanged: in a shell, in Python and in Node."""
    await panel.open()
    await panel.choose(WARM)
    await panel.prompt.fill('it\'s a fox, "quoted" & $HOME')
    for name in ("cURL", "Python", "JavaScript", "warmlane submit"):
        await panel.page.get_by_role("button", name=name, exact=True).click()
        text = await panel.page.get_by_role("region", name=name, exact=True).inner_text()
        (tmp_path / "snippet.mjs").write_text(text)  # as JavaScript it is a module
        commands: dict[str, list[str]] = {
            "Python": [str(Path(".venv/bin/python").absolute()), "-c", text],
            "JavaScript": ["node", "snippet.mjs"],
        }
        before = count_of(system)
        environment = {"PATH": f"{Path('.venv/bin').absolute()}:/usr/bin:/bin", "HOME": str(tmp_path)}
        ran = await asyncio.to_thread(
            subprocess.run,
            commands.get(name, ["bash", "-c", text]),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, (name, ran.stderr)
        assert count_of(system) == before + 1, name


def count_of(system: UpProcess) -> int:
    tasks: list[dict[str, Any]] = system.http.get("/tasks", params={"limit": 100}).json()["tasks"]
    return sum(task["parameters"]["prompt"].startswith("it's a fox") for task in tasks)


@pytest.mark.parametrize("look", ["dark", "phone"])
async def test_pictures_of_every_view(browser: Browser, system: UpProcess, tmp_path: Path, look: str) -> None:
    """Pictures in the test's folder, for people to look at."""
    prompts = ("a lighthouse at dusk, waves", "a cat in a window")
    done = [system.ended(system.submit(prompt=prompt)["id"]) for prompt in prompts]
    options = {"viewport": PHONE} if look == "phone" else {"color_scheme": "dark"}
    rules = () if look == "phone" else ("color-contrast",)
    async with panel_in(browser, system.url, **options) as panel:
        await panel.open()
        await panel.choose(SHARED)
        await panel.send("a paper lantern drifts down a rainy street")
        await expect(panel.sent.first).to_be_visible()
        await panel.choose(WARM)
        await panel.send("a red fox walks through fresh snow")
        await expect(panel.sent.first).to_contain_text(re.compile(r"Step \d of \d"))
        await panel.picture(tmp_path / f"make-{look}.png")
        views = {"watch": "watch", "task": f"watch/{done[0]['id']}", "operate": "operate"}
        views["compare"] = f"compare/{done[0]['id']}/{done[1]['id']}"
        for name, view in views.items():
            await panel.open(view)
            await expect(panel.page.get_by_text("Loading\u2026")).to_have_count(0)
            if name == "operate":
                await expect(panel.page.get_by_role("heading", name="API keys")).to_be_visible()
            else:
                await expect(panel.page.get_by_role("img", name="A frame of").first).to_be_visible()
            await panel.picture(tmp_path / f"{name}-{look}.png")
            assert await panel.barriers(*rules) == [], name
    assert len(list(tmp_path.glob("*.png"))) == 5


async def test_a_killed_gateway_comes_back(panel: Panel, system: UpProcess) -> None:
    """`warmlane up` starts another gateway, and the page goes on by itself."""
    await panel.open()
    os.kill(system.find("gateway"), signal.SIGKILL)
    await expect(panel.page.locator(".away")).to_be_visible()
    eventually_sync(system.is_ready, within_s=120)
    await expect(panel.page.get_by_text("Live")).to_be_visible()
    await panel.choose(WARM)
    await panel.send("after it came back")
    await expect(panel.sent.first).to_contain_text("Done")
