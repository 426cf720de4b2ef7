"""Who is let in, where, and how often: the gateway's access control without a server behind it."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from litestar import Litestar, get
from litestar.testing import TestClient
from msgspec.structs import replace
from structlog.testing import capture_logs

from contracts.hosts import names_loopback
from contracts.keys import ApiKey, Presented, Scope, encode_key, sha256_of
from gateway.app import create_app
from gateway.boards.key_board import ANYBODY, Caller, KeyBoard
from gateway.boards.snapshots import Snapshot
from gateway.http.access import RateLimits, access_control
from gateway.http.lookup import find
from gateway.http.problems import ProblemError, problem_handlers
from gateway.services import Services
from ops.nats.bucket import Versioned
from ops.nats.buckets import API_KEYS
from ops.nats.entry import Entry
from tests.kit.openapi import TINY, operations
from tests.kit.records import pending_task
from tests.kit.samples import catalog
from tests.unit.gateway.test_openapi import NEEDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECRET = "5e" * 32
TASK_ID = "019cab2e-5c00-7c3f-9b1a-2f6f0d4d7a55"
BODY_MAX = 12 * 1024 * 1024


def key(number: int, *scopes: Scope, caller: str = "alice", **more: Any) -> tuple[ApiKey, dict[str, str]]:
    """A key as it is stored, and the headers of a request with it."""
    presented = Presented(f"{number:012x}", SECRET)
    stored = ApiKey(
        id=presented.id, caller=caller, scopes=scopes, secret_sha256=sha256_of(SECRET), created_at=NOW, **more
    )
    return stored, {"authorization": f"Bearer {presented.text}"}


SUBMIT, BY_SUBMITTER = key(1, "submit")
READ, BY_READER = key(2, "read")
ADMIN, BY_ADMIN = key(3, "admin", caller="operator")
METRICS, BY_PROMETHEUS = key(4, "metrics", caller="prometheus")
BY = {"submit": BY_SUBMITTER, "read": BY_READER, "metrics": BY_PROMETHEUS, "admin": BY_ADMIN}


def entry(stored: ApiKey, value: bytes | None = None, *, revision: int = 1) -> Versioned[ApiKey]:
    return Versioned(API_KEYS, Entry(stored.id, encode_key(stored) if value is None else value, revision, NOW))


def board(*stored: ApiKey, opens_without_keys: bool = True) -> KeyBoard:
    keys = KeyBoard(opens_without_keys=opens_without_keys)
    for one in stored:
        keys.on_key(entry(one))
    return keys


def known(keys: KeyBoard, headers: dict[str, str]) -> bool:
    return keys.caller([headers["authorization"]]) is not None


# ── who ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_on_the_loopback_is_open_until_the_first_key_and_never_again() -> None:
    keys = board()
    assert keys.is_open
    assert keys.caller([]) == ANYBODY
    assert ANYBODY.sees_only is None
    keys.on_key(entry(SUBMIT))
    assert not keys.is_open
    assert keys.caller([]) is None
    assert not keys.still_counts(ANYBODY)  # a caller that was let in before is refused now
    assert known(keys, BY_SUBMITTER)
    keys.on_key(entry(replace(SUBMIT, revoked_at=NOW), revision=2))
    assert not known(keys, BY_SUBMITTER)
    keys.on_key(Versioned(API_KEYS, Entry(SUBMIT.id, None, 3, NOW)))  # `nats kv del`
    assert not keys.is_open
    assert keys.caller([]) is None


def test_a_gateway_on_another_address_is_never_open() -> None:
    keys = board(opens_without_keys=False)
    assert not keys.is_open
    assert keys.caller([]) is None


def test_an_unreadable_key_is_logged_and_lets_nobody_in() -> None:
    keys = board(SUBMIT, READ)
    with capture_logs() as logged:
        keys.on_key(entry(SUBMIT, b'{"id": "\xff"}', revision=2))
        keys.on_key(entry(ADMIN, b"{}"))
    assert [line["event"] for line in logged] == ["unreadable", "unreadable"]
    assert {(line["kind"], line["where"]) for line in logged} == {("api_key", SUBMIT.id), ("api_key", ADMIN.id)}
    assert [known(keys, BY[name]) for name in ("submit", "read", "admin")] == [False, True, False]
    # a gateway with such an entry alone is not open either
    alone = KeyBoard(opens_without_keys=True)
    alone.on_key(entry(SUBMIT, b"{}"))
    assert not alone.is_open


@pytest.mark.parametrize(
    ("headers", "is_known"),
    [
        pytest.param([BY_READER["authorization"]], True, id="as-documented"),
        pytest.param([f"bearer   {Presented(READ.id, SECRET).text} "], True, id="scheme-in-any-case"),
        pytest.param([], False, id="none"),
        pytest.param([""], False, id="empty"),
        pytest.param(["Bearer"], False, id="no-key"),
        pytest.param([Presented(READ.id, SECRET).text], False, id="no-scheme"),
        pytest.param([f"Basic {Presented(READ.id, SECRET).text}"], False, id="another-scheme"),
        pytest.param([f"Bearer {Presented(READ.id, '5f' * 32).text}"], False, id="wrong-secret"),
        pytest.param([f"Bearer {Presented('0' * 12, SECRET).text}"], False, id="unknown-id"),
        pytest.param([BY_READER["authorization"]] * 2, False, id="twice"),
        pytest.param(["Bearer wl_\xff"], False, id="not-ascii"),
    ],
)
def test_the_header(headers: list[str], is_known: bool) -> None:
    assert (board(READ).caller(headers) is not None) is is_known


def test_a_caller_sees_its_own_tasks_and_admin_sees_all() -> None:
    mine, others = pending_task(), replace(pending_task(), caller="bob")
    mine = replace(mine, caller="alice")
    reader, admin = Caller("alice", ("read",)), Caller("operator", ("admin",))
    assert [reader.sees(task) for task in (mine, others)] == [True, False]
    assert [admin.sees(task) for task in (mine, others)] == [True, True]
    assert (reader.sees_only, admin.sees_only) == ("alice", None)


def test_nothing_is_done_for_somebody_elses_task() -> None:
    """A read of an overdue task does what is due for it, unless the reader may not know of the task."""
    task = replace(pending_task(), id=TASK_ID, caller="alice", deadline_at=NOW)
    looked = []

    async def get_task(_: str) -> Snapshot:
        return Snapshot(task, 1)

    async def look(task_id: str) -> Snapshot:
        looked.append(task_id)
        return Snapshot(task, 2)

    services = cast(Services, SimpleNamespace(tasks=SimpleNamespace(get=get_task), sweeper=SimpleNamespace(look=look)))
    with pytest.raises(ProblemError, match="task_not_found"):
        asyncio.run(find(services, Caller("bob", ("read",)), TASK_ID))
    assert looked == []
    assert asyncio.run(find(services, Caller("alice", ("read",)), TASK_ID)).revision == 2


# ── where ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def application(*stored: ApiKey, cors_origins: tuple[str, ...] = ()) -> Litestar:
    """The gateway with these keys, and nothing started behind it."""
    services = Services(catalog=catalog(), nats="", artifacts_dir=Path(), keep_s=60)
    for one in stored:
        services.keys.on_key(entry(one))
    return create_app(services, cors_origins=cors_origins)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Litestar]]:
    with TestClient(application(SUBMIT, READ, METRICS, ADMIN), raise_server_exceptions=False) as client:
        yield client


ROUTES = [(method, path) for method, path, _ in operations(TINY)]


ID = "0" * 12


def assert_problem(answer: httpx.Response, code: str, words: str) -> None:
    """As a problem document, or in the form of OpenAI's API below /v1."""
    answered = answer.json()
    detail = answered["error"]["message"] if "error" in answered else answered["detail"]
    assert (answered.get("error") or answered)["code"] == code
    assert words in detail


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_a_route_needs(client: TestClient[Litestar], method: str, path: str) -> None:
    scope = "admin" if path.startswith("/admin/") else NEEDS[method, path]
    url = path.format(
        task_id=TASK_ID,
        video_id=TASK_ID,
        model="anisora",
        slot="cpu-2",
        key_id="0" * 12,
        endpoint_id=ID,
        delivery_id=ID,
        image_id=ID,
    )
    url += "?wait=0" if path == "/tasks/events" else ""  # a stream without an end
    # /readyz needs services that were not started; no other request reaches a handler here
    answer = client.request(method, url)
    if scope is None:
        assert answer.status_code != 401
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    if method != "head":
        assert_problem(answer, "unauthorized", "warmlane keys add")
    if not scope:
        assert client.request(method, url, headers=BY_READER).status_code == 200
        return
    for name in {"submit", "read", "metrics"} - {scope}:
        answer = client.request(method, url, headers=BY[name])
        assert answer.status_code == 403
        assert f'scope="{scope}"' in answer.headers["www-authenticate"]
        if method != "head":
            assert_problem(answer, "forbidden", f"scope {scope}")
    # with a sufficient key, the request reaches the handler, which lacks the services that were not started
    for headers in (BY[scope], BY_ADMIN):
        assert client.request(method, url, headers=headers).status_code not in {401, 403}


@pytest.mark.parametrize("path", ["/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/healthz"])
def test_the_page_where_a_key_can_be_entered_needs_none(client: TestClient[Litestar], path: str) -> None:
    assert client.get(path).status_code == 200


def test_a_route_that_says_nothing_needs_admin() -> None:
    @get("/forgotten", sync_to_thread=False)
    def forgotten() -> str:
        return "seen"

    app = Litestar(
        [forgotten],
        middleware=[access_control(board(READ, ADMIN), RateLimits(), max_body_bytes=1)],
        exception_handlers=problem_handlers(),
        openapi_config=None,
    )
    with TestClient(app) as client:
        assert client.get("/forgotten").status_code == 401
        assert client.get("/forgotten", headers=BY_READER).status_code == 403
        assert client.get("/forgotten", headers=BY_ADMIN).text == "seen"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8000", True),
        ("127.9.9.9", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("attacker.example:8000", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("10.0.0.1:8000", False),
        ("", False),
        ("[", False),
        ("me@attacker.example", False),
    ],
)
def test_which_names_are_this_machines(host: str, expected: bool) -> None:
    assert names_loopback(host) is expected


def test_anybody_may_ask_for_the_methods_of_a_path(client: TestClient[Litestar]) -> None:
    answer = client.options("/generate")
    assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS, POST")


def test_a_wrong_secret_and_an_unknown_key_get_the_same_answer(client: TestClient[Litestar]) -> None:
    answers = [
        client.get("/settings", headers={"authorization": f"Bearer {Presented(key_id, secret).text}"})
        for key_id, secret in ((READ.id, "5f" * 32), ("0" * 12, SECRET))
    ]
    assert answers[0].status_code == 401
    assert answers[0].content == answers[1].content
    assert answers[0].headers == answers[1].headers
    assert 'error="invalid_token"' in answers[0].headers["www-authenticate"]


@pytest.mark.parametrize("path", ["/generate", "/healthz", "/tasks"])
def test_a_declared_body_that_is_too_large_comes_before_everything(client: TestClient[Litestar], path: str) -> None:
    method = "POST" if path == "/generate" else "GET"
    for length, status in ((BODY_MAX + 1, 413), (10**30, 413)):
        answer = client.request(method, path, headers={"content-length": str(length)}, content=b"")
        assert (answer.status_code, answer.json()["code"]) == (status, "body_too_large")


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_over_its_rate_has_to_wait_and_another_key_does_not() -> None:
    limits = RateLimits()
    slow, other = replace(READ, rate_per_s=0.001, burst_s=3_600), replace(SUBMIT, rate_per_s=0.001, burst_s=3_600)
    before_s = time.time()
    assert [limits.turn(slow).wait_s for _ in range(4)] == [0] * 4
    turn = limits.turn(slow)
    # the first of them leaves the window 3,600 s after it was made
    assert 3_600 - (time.time() - before_s) - 1 <= turn.wait_s <= 3_600
    assert limits.turn(other).wait_s == 0
    with pytest.raises(ProblemError, match="rate_limited") as refusal:
        turn.take()
    assert 3_500 < int(refusal.value.headers["Retry-After"]) <= 3_600
    assert "4 requests in any 3600 s" in refusal.value.problem.detail


def test_without_a_limit_nobody_waits() -> None:
    limits = RateLimits()
    for unlimited in (None, replace(READ, rate_per_s=None)):
        for _ in range(1_000):
            limits.turn(unlimited).take()
