"""What the tests of the panel do outside the browser: they run a gateway without workers, and write to its server."""

import io
from typing import Any

import httpx
from PIL import Image
from playwright.async_api import Locator

from contracts.lanes import LaneState
from ops.nats.link import NatsLink
from tests.kit.gateway import GatewayProcess, report_lane
from tests.kit.panel import Panel
from tests.kit.support import eventually


class Stage:
    """A gateway whose model `phr00t` has no warm lane, a client of it, and a connection to its server."""

    def __init__(self, gateway: GatewayProcess, link: NatsLink, http: httpx.AsyncClient) -> None:
        self.gateway, self.link, self.http = gateway, link, http
        self.earlier: set[str] = set()

    async def submit(self, **fields: Any) -> dict[str, Any]:
        body = {"model": "anisora", "prompt": "x"} | fields
        answer = await self.http.post("/generate", json=body, headers={"prefer": "respond-async"})
        assert answer.status_code == 202, answer.text
        task: dict[str, Any] = answer.json()
        return task

    async def becomes(self, model: str, state: LaneState) -> None:
        """Reports the lane of *model* in *state*; returns when the gateway knows."""
        await report_lane(self.link, model, state)

        async def is_heard() -> bool:
            models = (await self.http.get("/readyz")).json()["models"]
            return bool(models[model]["warm"] is (state is LaneState.WARM))

        await eventually(is_heard)

    async def tasks(self) -> list[dict[str, Any]]:
        """The tasks of this test, newest first."""
        tasks = (await self.http.get("/tasks", params={"limit": 100})).json()["tasks"]
        return [task for task in tasks if task["id"] not in self.earlier]


def png(width: int = 48, height: int = 32) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(content, "PNG")
    return content.getvalue()


def error_of(control: Locator) -> Locator:
    return control.locator("xpath=ancestor::div[contains(@class, 'field')][1]").locator(".error")


async def open_all(panel: Panel) -> None:
    await panel.page.locator("summary", has_text="Size, seed and more").click()
