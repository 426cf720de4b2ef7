"""The panel in a real Chromium: Debian's, with a profile of its own for each test."""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, JSHandle, Locator, Page, Request, async_playwright, expect

from tests.kit.tools import tool

FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# No test judges by time: a machine that runs other tests is slow.
PATIENCE_MS: Final = 60_000
PHONE: Final = {"width": 390, "height": 844}
DESK: Final = {"width": 1280, "height": 900}
# Chromium's own console line about an answer that failed or did not come: tests check those by what the page shows.
_ANSWER: Final = re.compile(r"Failed to load resource: (the server responded with a status of|net::ERR_)")

expect.set_options(timeout=PATIENCE_MS)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser; the test is skipped where there is none."""
    program = tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        await browser.close()


class Panel:
    """The panel in a tab, its console errors and warnings, and every address that it requested."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.answers: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))
        page.on("request", self._note)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            (self.answers if _ANSWER.match(message.text) else self.complaints).append(message.text)

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)

    async def open(self, view: str = "make") -> None:
        """Opens the page at *view*; returns when its heading is there."""
        await self.page.goto(f"{self.url}/#/{view}")
        await expect(self.page.get_by_role("heading").first).to_be_visible()

    async def go(self, view: str) -> None:
        """Goes from the open view to another one, by the navigation."""
        await self.page.get_by_role("navigation").get_by_role("link", name=view).click()

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_label("Prompt required")

    async def choose(self, title: str) -> None:
        """Chooses the model with this *title*."""
        await self.page.get_by_role("radio", name=title).check()

    async def send(self, prompt: str) -> None:
        """Sends the form, with *prompt*."""
        await self.prompt.fill(prompt)
        await self.page.get_by_role("button", name="Make the video").click()

    @property
    def sent(self) -> Locator:
        """What was sent from the page, newest first."""
        return self.page.locator(".sent article")

    @property
    def accepted(self) -> Locator:
        """The cards of `sent` that the gateway accepted. Until it answers, a card only says that its request goes
        out."""
        return self.page.locator(".sent article[aria-label]")

    async def drop(self, name: str, media_type: str, content: bytes) -> None:
        """Drops a file on the place for an image, as a user does with the mouse."""
        transfer = await self._transfer(name, media_type, list(content))
        await self.page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})

    async def drop_bytes(self, name: str, media_type: str, size_bytes: int) -> None:
        """Drops a file of *size_bytes* zeros."""
        transfer = await self._transfer(name, media_type, size_bytes)
        await self.page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})

    async def paste(self, name: str, media_type: str, content: bytes) -> None:
        """Pastes a file, as from a clipboard that has one."""
        transfer = await self._transfer(name, media_type, list(content))
        pasted = """clipboardData => dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }))"""
        await self.page.evaluate(pasted, transfer)

    async def _transfer(self, name: str, media_type: str, content: list[int] | int) -> JSHandle:
        return await self.page.evaluate_handle(
            """([name, type, content]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(content)], name, { type }));
                return transfer;
            }""",
            [name, media_type, content],
        )

    async def barriers(self, *rules: str) -> list[str]:
        """What axe objects to in the page as it is now. With *rules*, only those rules count."""
        only = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
        found = await Axe().run(self.page, options={"resultTypes": ["violations"]} | only)
        return [
            f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}" for each in found.response["violations"]
        ]

    async def be(self, seen: str) -> None:
        """Makes the tab `hidden`, or `visible` again. In Playwright every tab is always in front."""
        script = """seen => {
            Object.defineProperty(document, "visibilityState", { value: seen, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
        await self.page.evaluate(script, seen)

    async def picture(self, path: Path) -> None:
        await self.page.screenshot(path=path, full_page=True)


@contextlib.asynccontextmanager
async def panel_in(browser: Browser, url: str, **options: Any) -> AsyncIterator[Panel]:
    """The panel at *url* in a tab and a session of its own. Its console must be clean when the block ends.

    *options* are those of a Playwright context, such as `color_scheme`.
    """
    context = await browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce"} | options)
    context.set_default_timeout(PATIENCE_MS)
    panel = Panel(await context.new_page(), url)
    yield panel
    await context.close()
    assert panel.complaints == []
