"""The panel and API keys, behind a real nginx with a prefix: who gets in, and what an address never holds."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from contracts.keys import Presented
from contracts.keys import Scope as KeyScope
from ops.nats.api_keys import add
from tests.integration.test_nginx import OPTIONS, Site, site
from tests.kit.keyed import by
from tests.kit.panel import Panel, chromium, panel_in
from tests.kit.patient import connected
from tests.kit.support import BOUND_S, KEEP_S, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
__all__ = ["site"]  # the fixture: a gateway, an nginx in front of it, and a key of alice's
WARM: Final = "AniSora V3.2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def panel(browser: Browser, site: Site) -> AsyncIterator[Panel]:
    """The panel behind nginx, under its prefix; the lanes are warm."""
    await site.warm()
    async with panel_in(browser, site.nginx.url, ignore_https_errors=True) as found:
        yield found


async def key_of(site: Site, caller: str, *scopes: KeyScope) -> Presented:
    """A new key, which the gateway knows."""
    link = await connected(site.gateway.nats.url)
    made = await add(link, caller, scopes, now=datetime.now(UTC))
    await link.close()
    async with httpx.AsyncClient(base_url=site.gateway.url, timeout=BOUND_S) as http:

        async def is_known() -> bool:
            return (await http.get("/settings", headers=by(made))).status_code == 200

        await eventually(is_known)
    return made


async def enter(panel: Panel, key: str) -> None:
    await panel.page.get_by_label("Key", exact=True).fill(key)
    await panel.page.get_by_role("button", name="Use this key").click()


async def test_a_key_that_is_missing_wrong_and_right(panel: Panel, site: Site) -> None:
    await panel.open()
    await expect(panel.page.get_by_role("alert")).to_contain_text("This gateway asks for an API key.")
    assert await panel.barriers() == []
    await enter(panel, "wl_wrong_wrong")
    await expect(panel.page.get_by_role("alert")).to_contain_text("does not know this key")
    await enter(panel, site.key.text)
    await panel.choose(WARM)
    await panel.send("through nginx")
    await expect(panel.sent.first).to_contain_text("Waiting")
    await panel.go("Watch")
    await expect(panel.page.locator(".task-card", has_text="through nginx")).to_be_visible()
    await expect(panel.page.get_by_role("navigation").get_by_role("link", name="Operate")).to_have_count(0)

    await panel.page.reload()  # the session of the tab has the key
    await expect(panel.page.locator(".task-card", has_text="through nginx")).to_be_visible()
    assert all(site.key.text not in address for address in panel.asked)
    assert all(address.startswith((f"{site.nginx.url}/", "blob:")) for address in panel.asked)
    assert site.key.text not in panel.page.url
    kept = await panel.page.evaluate("[JSON.stringify(localStorage), document.cookie]")
    assert kept == ["{}", ""]


async def test_a_key_without_a_scope(panel: Panel, site: Site) -> None:
    await panel.open()
    await enter(panel, (await key_of(site, "reader", "read")).text)
    await expect(panel.page.get_by_text(re.compile("Your key has no scope .submit.,"))).to_be_visible()
    await panel.go("Watch")
    await expect(panel.page.get_by_text("No task yet.")).to_be_visible()  # the list has no task of another caller
    await panel.page.goto(f"{site.nginx.url}/#/operate")
    await expect(panel.page.get_by_text(re.compile("Your key has no scope .admin.,"))).to_be_visible()


async def test_keys_are_made_and_revoked_in_the_panel(panel: Panel, browser: Browser, site: Site) -> None:
    """The new key opens another tab, and the revoked one closes it in the middle of its stream."""
    await panel.open()
    await enter(panel, (await key_of(site, "operator", "admin")).text)
    await panel.go("Operate")
    await panel.page.get_by_label("Caller").fill("bob")
    await panel.page.get_by_role("button", name="Make a key").click()
    dialog = panel.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("bob may then do this: submit, read.")
    await dialog.get_by_role("button", name="Make a key").click()
    await expect(dialog).to_contain_text("it is shown only once")
    secret = (await dialog.locator("pre").inner_text()).strip()
    await dialog.get_by_role("button", name="Close").click()
    async with panel_in(browser, site.nginx.url, ignore_https_errors=True) as other:
        await other.open()
        await enter(other, secret)
        await expect(other.prompt).to_be_visible()
        await expect(other.page.get_by_text("Live")).to_be_visible()
        row = panel.page.get_by_role("row", name="bob")
        await row.get_by_role("button", name="Revoke").click()
        await expect(dialog).to_contain_text("in the middle of a stream too")
        await dialog.get_by_role("button", name="Revoke").click()
        await expect(row).to_contain_text("revoked")
        await expect(other.page.get_by_role("alert")).to_contain_text("does not know this key, or it was revoked")


async def test_the_gateway_behind_nginx_goes_and_comes_back(panel: Panel, site: Site) -> None:
    """Meanwhile nginx answers in the gateway's place, or breaks the connection."""
    await panel.open()
    await enter(panel, site.key.text)
    await expect(panel.page.get_by_text("Live")).to_be_visible()
    site.gateway.kill()
    await expect(panel.page.locator(".away")).to_be_visible()
    await asyncio.to_thread(site.gateway.start, "--keep", f"{KEEP_S:g}s", *OPTIONS)
    await expect(panel.page.get_by_text("Live")).to_be_visible()
