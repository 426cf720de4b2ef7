"""What a step does with the system, over HTTP, and reads from its files."""

import asyncio
from typing import Any

import httpx

from tests.kit.support import eventually
from tests.kit.system import UpProcess


class Caller:
    """A client of the system *up*, through *http*."""

    def __init__(self, up: UpProcess, http: httpx.AsyncClient) -> None:
        self._up, self._http = up, http

    async def cancel(self, task_id: str) -> None:
        await self._http.delete(f"/tasks/{task_id}")

    async def post(self, model: str, *, prefer: str = "", **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "a red fox"} | fields
        return await self._http.post("/generate", json=body, headers={"prefer": prefer} if prefer else {})

    async def submit(self, model: str, **fields: Any) -> str:
        answer = await self.post(model, **fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def done(self, model: str) -> str:
        task_id = await self.submit(model)
        await self.ends(task_id, "done")
        return task_id

    async def ends(self, task_id: str, *statuses: str) -> None:
        async def ended() -> str | None:
            task = (await self._http.get(f"/tasks/{task_id}?wait=20")).json()
            return str(task["status"]) if task["status"] in ("done", "failed") else None

        status = await eventually(ended, within_s=60)
        assert status in statuses, (await self._http.get(f"/tasks/{task_id}")).text

    async def runs(self, task_id: str, attempt: int) -> int:
        """The process of the pipeline host, once it runs *attempt*."""

        async def runs() -> bool:
            task = (await self._http.get(f"/tasks/{task_id}")).json()
            return (task["status"], task["attempt"]) == ("processing", attempt)

        await eventually(runs, within_s=60)
        # the record says when the task is claimed; the lock's note says what the host runs
        host = await eventually(lambda: asyncio.sleep(0, self._up.host_with(task_id, attempt)))
        assert host is not None
        return host

    async def mode(self, model: str, mode: str) -> None:
        answer = await self._http.put(f"/admin/lanes/{model}/mode", json={"mode": mode})
        assert answer.status_code == 200, answer.text

    async def lanes_say(self, model: str, state: str) -> None:
        async def said() -> bool:
            ready = (await self._http.get("/readyz")).json()
            return state in ready["models"][model]["lanes"]

        await eventually(said)

    async def warm(self, model: str) -> None:
        await eventually(lambda: self.is_warm(model), within_s=60)

    async def is_warm(self, model: str) -> bool:
        return bool((await self._http.get("/readyz")).json()["models"][model]["warm"])
