"""`/livez` and `/readyz` of a process without an API, over real HTTP."""

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

from ops.telemetry import probes
from ops.telemetry.probes import ProcessHealth, judged_by, probe_server
from tests.kit.support import BOUND_S

READY = ProcessHealth(True, "warm")
WAITS = ProcessHealth(False, "waiting", "the server lacks DEGRADED; run `warmlane provision`")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(probes, "ANSWER_S", BOUND_S)
    server = probe_server("127.0.0.1", 0, make_wsgi_app(CollectorRegistry()))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


async def asked(url: str, path: str, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        return await http.request(method, url + path)


async def test_a_process_that_has_just_begun_lives_and_is_not_ready(url: str) -> None:
    live, ready = await asked(url, "/livez"), await asked(url, "/readyz")
    assert (live.status_code, ready.status_code, ready.json()["state"]) == (200, 503, "starting")
    assert (await asked(url, "/metrics")).status_code == 200


async def test_the_innermost_judge_says_whether_it_is_ready(url: str) -> None:
    with judged_by(lambda: WAITS):
        waits = await asked(url, "/readyz")
        assert (waits.status_code, waits.json()["reason"]) == (503, WAITS.reason)
        assert (await asked(url, "/livez")).status_code == 200
        with judged_by(lambda: READY):
            ready = await asked(url, "/readyz")
            assert (ready.status_code, ready.json()) == (200, {"ready": True, "state": "warm", "reason": ""})
            head = await asked(url, "/readyz", "HEAD")
            assert (head.status_code, head.content) == (200, b"")
        assert (await asked(url, "/readyz")).status_code == 503


async def test_a_process_that_hangs_does_not_live(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.extend(httpx.get(url + path, timeout=BOUND_S).status_code for path in ("/livez", "/readyz"))

    with judged_by(lambda: READY):
        with monkeypatch.context() as short:
            short.setattr(probes, "ANSWER_S", 0.05)
            asking = threading.Thread(target=ask)
            asking.start()
            asking.join()  # the event loop does nothing meanwhile
        assert answers == [503, 503]
        await asyncio.sleep(0)
        assert (await asked(url, "/livez")).status_code == 200
