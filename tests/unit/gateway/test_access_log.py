"""Which requests have a line in the access log, and what it says."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.http.noted import Noted, noted
from gateway.server import access_log
from gateway.server.access_log import (
    LINES_MAX,
    LINES_OF_CALLER_MAX,
    WINDOW_S,
    AccessLog,
    Answered,
    Budget,
    fields_of,
    request_id_of,
    shown_path,
)
from tests.kit.clock import let_pass

SECRET = "0123456789abcdef" * 4
KEY = f"wl_0123456789ab_{SECRET}"


def test_a_flood_of_one_caller_leaves_lines_for_others_and_all_have_a_bound() -> None:
    budget = Budget()
    assert sum(budget.takes("flood", 0.0) for _ in range(10_000)) == LINES_OF_CALLER_MAX
    assert budget.takes("other", 0.0)
    crowd = sum(budget.takes(f"caller-{number}", 1.0) for number in range(10_000))
    assert crowd == LINES_MAX - LINES_OF_CALLER_MAX - 1
    count, most = budget.take_left_out()
    assert count == 20_001 - LINES_MAX
    assert max(most, key=lambda caller: most[caller]) == "flood"
    assert len(most) <= access_log.NAMED_MAX
    assert not budget.takes("flood", WINDOW_S - 0.1)
    assert budget.takes("flood", WINDOW_S)
    assert max(len(budget.asked), len(budget.left_out)) <= access_log.CALLERS_MAX + 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/tasks/01a21950-0000-7000-8000-000000000000", "/tasks/01a21950-0000-7000-8000-000000000000"),
        (f"/tasks/{KEY}", "/tasks/wl_0123456789ab_..."),
        ("/a b\n{}\x1b[31mé", "/a%20b%0A%7B%7D%1B%5B31m%C3%A9"),
        ("/" + "x" * 500, "/" + "x" * (access_log.PATH_MAX_CHARS - 1) + "..."),
        ("/\udcff", "/%5Cudcff"),
    ],
)
def test_a_path_is_logged_without_secrets_and_in_one_line(path: str, expected: str) -> None:
    assert shown_path(path) == expected


@pytest.mark.parametrize(
    "given", [b"", b"a b", b"a\nb", b"x" * 65, "ü".encode(), KEY.encode(), b"<script>", b'"', b"${jndi:ldap://x}"]
)
def test_an_id_that_could_mislead_is_replaced(given: bytes) -> None:
    found = request_id_of([(b"x-request-id", given)])
    assert len(found) == 20
    int(found, 16)


def test_the_callers_own_id_stands() -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", b"req-1.A_b")]) == "req-1.A_b"


def test_a_line_says_who_asked_for_what_and_nothing_that_is_not_known() -> None:
    by_key = Answered(
        noted=Noted("id", "alice", "0123456789ab", False, "unauthorized"),
        address="10.0.0.1",
        method="GET",
        path="/tasks",
        status=401,
        took_s=0.00012345,
    )
    assert fields_of(by_key) == {
        "request_id": "id",
        "method": "GET",
        "path": "/tasks",
        "status": 401,
        "code": "unauthorized",
        "caller": "alice",
        "key": "0123456789ab",
        "key_counts": False,
        "address": "10.0.0.1",
        "took_s": 0.0001,
    }
    left = Answered(noted=Noted("id"), address="unknown", status=None)
    assert fields_of(left) == {"request_id": "id", "status": None, "address": "unknown"}


async def ask(log: AccessLog, app: Any, *, path: str = "/generate", **headers: str) -> list[dict[str, Any]]:
    """What *app* sends, below *log*, for a request with a query that must not be logged."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"prompt=a+red+fox",
        "client": ("10.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await log.around(app)(scope, None, send)  # type: ignore[arg-type]  # nothing is received
    return sent


def answering(status: int, code: str = "") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def handle() -> None:
            noted().code = code

        await asyncio.create_task(handle())  # also from a task of its own
        await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize(
    ("status", "logs_all", "lines"), [(200, False, 0), (200, True, 1), (404, False, 1), (503, True, 1)]
)
async def test_refusals_always_have_a_line_and_others_where_it_is_asked_for(
    status: int, logs_all: bool, lines: int
) -> None:
    with capture_logs() as logged:
        sent = await ask(AccessLog(logs_all=logs_all), answering(status, "some_code"), **{"x-request-id": "mine"})
    assert sent[0]["headers"] == [(b"a", b"b"), (b"x-request-id", b"mine")]
    assert len(logged) == lines
    for line in logged:
        assert (line["event"], line["request_id"], line["code"]) == ("request", "mine", "some_code")
        assert (line["address"], line["path"], line["status"]) == ("10.0.0.1", "/generate", status)
        assert "fox" not in json.dumps(line)


async def test_a_probe_takes_no_line_from_the_caller_at_its_address() -> None:
    """The process that started a waiting gateway probes it every few milliseconds; then its first refusals count."""
    log = AccessLog()
    with capture_logs() as logged:
        for path in ("/healthz", "/readyz", "/livez", "/readyz/") * LINES_OF_CALLER_MAX:
            await ask(log, answering(503), path=path)
        await ask(log, answering(404), path="/readyz")
        await ask(log, answering(503))
    assert [(line["path"], line["status"]) for line in logged] == [("/readyz", 404), ("/generate", 503)]


async def test_what_the_application_raises_is_a_500() -> None:
    async def app(*_: Any) -> None:
        raise ZeroDivisionError

    with capture_logs() as logged, pytest.raises(ZeroDivisionError):
        await ask(AccessLog(), app)
    assert [line["status"] for line in logged] == [500]


async def test_lines_that_were_left_out_are_counted_in_the_log_when_the_window_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "LINES_OF_CALLER_MAX", 0)
    said = asyncio.Event()
    monkeypatch.setattr(access_log.AccessLog, "_log_left_out", noticing(AccessLog._log_left_out, said))
    with capture_logs() as logged:
        log = AccessLog()
        for _ in range(3):
            await ask(log, answering(404))
        let_pass(WINDOW_S, monkeypatch)
        await said.wait()
    (line,) = logged
    assert (line["event"], line["requests"], line["callers"]) == ("requests_not_logged", 3, {"10.0.0.1": 3})


def noticing(log: Any, said: asyncio.Event) -> Any:
    def logged(self: AccessLog) -> None:
        log(self)
        said.set()

    return logged
