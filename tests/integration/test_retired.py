"""An upgrade from the version with timers (ADR 0037): the two versions side by side lose nothing, and the stream of
timers goes when no process uses it any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from click.testing import CliRunner

from contracts import lifecycle
from contracts.settings import Catalog, load_settings
from contracts.tasks import GenerationTask, TaskStatus
from contracts.topology import RETIRED
from ops.commands.provision import command
from ops.nats.errors import WrongRevision
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.nats.retired import retire, retired
from tests.kit.behind import js_of
from tests.kit.earlier_version import (
    COMMIT,
    DEADLINES,
    EarlierGateway,
    accept,
    earlier_settings,
    make_deadlines,
    set_timer,
    unpack,
)
from tests.kit.gateway import GatewayProcess, System, fresh_system
from tests.kit.records import pending_task
from tests.kit.support import BOUND_S, KEEP_S, NatsServer, eventually, settings_file

WAIT_S, LEASE_S = 2.0, 1.0
WINDOWS: Final = {
    "wait_limit_s": WAIT_S,
    "degraded_margin_s": 0.5,
    "lease_s": LEASE_S,
    "lease_renew_s": 0.3,
    "heartbeat_s": 0.5,
    "reconnect_grace_s": 0.5,
}


def short(folder: Path) -> Path:
    return settings_file(folder, **WINDOWS)


def waits(task_id: str, **changes: Any) -> GenerationTask:
    """A task that waits for WAIT_S from now."""
    now = datetime.now(UTC)
    times = {"created_at": now, "queued_at": now, "deadline_at": now + timedelta(seconds=WAIT_S)}
    return pending_task(task_id, **(times | changes))


async def used_by(link: NatsLink) -> list[str | None]:
    return [each.used_by for each in await retired(link)]


def test_what_is_removed_is_what_that_version_had() -> None:
    assert RETIRED == (DEADLINES,)


async def test_the_stream_goes_when_no_timer_is_set_and_nobody_looks(link: NatsLink) -> None:
    assert await retired(link) == []
    await make_deadlines(link)
    await set_timer(link, "lease", waits("a"), datetime.now(UTC) + timedelta(seconds=600))
    assert await used_by(link) == ["timers of processes of that version are set there"]
    await set_timer(link, "lease", waits("a"), datetime.now(UTC))  # in the place of the first one
    pull = await js_of(link).pull_subscribe_bind("sweep-lease", DEADLINES)

    async def comes_due() -> list[Any]:
        return await pull.fetch(timeout=BOUND_S)

    [message] = await eventually(comes_due)
    await message.ack()
    asking = asyncio.create_task(pull.fetch(timeout=30))  # as a gateway does, again and again

    async def is_asked() -> bool:
        return await used_by(link) == ["a gateway of that version looks at it"]

    await eventually(is_asked)
    assert [each.used_by for each in await retire(link)] == ["a gateway of that version looks at it"]
    assert await link.streams.exists(DEADLINES)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await pull.unsubscribe()

    async def is_free() -> bool:
        return await used_by(link) == [None]

    await eventually(is_free)
    assert [each.used_by for each in await retire(link)] == [None]
    assert await retired(link) == []


async def test_the_command_says_what_it_keeps_and_what_it_removes(nats_server: NatsServer, link: NatsLink) -> None:
    await make_deadlines(link)
    await set_timer(link, "admit", waits("a"), datetime.now(UTC) + timedelta(seconds=600))

    async def run(*options: str) -> tuple[int, str]:
        arguments = ["--nats-url", nats_server.url, "--keep", f"{KEEP_S:g}s", *options]
        result = await asyncio.to_thread(CliRunner().invoke, command, arguments)
        return result.exit_code, result.output

    status, text = await run()
    assert (status, text.startswith("kept     DEADLINES: of an earlier version, and timers")) == (0, True), text
    await js_of(link).purge_stream(DEADLINES)
    assert await run("--check") == (1, "differs  DEADLINES: of an earlier version, and not used any more\n")
    assert await run() == (0, "removed  DEADLINES: of an earlier version, and not used any more\n")
    assert await run("--check") == (0, "nothing to do: the server matches\n")


async def test_tasks_with_timers_end_by_their_records(tmp_path: Path) -> None:
    """The gateway that accepted them is gone. Its timers come due, and no process fetches them."""
    async with fresh_system(tmp_path, short(tmp_path)) as system:
        await make_deadlines(system.link)
        on_a_lane, on_degraded = waits("lane"), waits("degraded", route="degraded")
        for task in (on_a_lane, on_degraded):
            await accept(system.link, task)
        await system.becomes(on_degraded.id, TaskStatus.FAILED, epoch=0)
        moved = await system.becomes(on_a_lane.id, TaskStatus.FAILED, epoch=1)
        assert (moved.route, [line.event for line in moved.timeline]) == ("degraded", ["reroute", "fail"])
        assert [each.used_by for each in await retire(system.link)] == [None]


class Pair:
    """A gateway of each version on one server."""

    def __init__(self, new: System, earlier: EarlierGateway, http: httpx.AsyncClient) -> None:
        self.new, self.earlier, self.http = new, earlier, http

    async def submit(self, http: httpx.AsyncClient) -> str:
        answer = await http.post(
            "/generate", json={"model": "anisora", "prompt": "x"}, headers={"prefer": "respond-async"}
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def submit_and_claim(self, http: httpx.AsyncClient) -> str:
        """Submits a task, and claims it for LEASE_S. Where its wait was over before the claim, it takes another one."""
        while True:
            task_id = await self.submit(http)
            with contextlib.suppress(lifecycle.IllegalTransition, WrongRevision):
                await self.new.claim(task_id, lease_s=LEASE_S)
                return task_id

    async def ends(self, task_id: str) -> GenerationTask:
        """The task, once it has ended."""

        async def look() -> GenerationTask | None:
            task, _ = await self.new.record(task_id)
            return task if task.status.is_terminal else None

        task = await eventually(look)
        assert task is not None
        return task


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """The two share the server and the artifact store. There is no lane: tasks go to the degraded queue."""
    source = tmp_path / "earlier"
    source.mkdir()
    if not unpack(source):
        pytest.skip(f"the commit {COMMIT[:7]} is not in this clone")
    settings, keep = short(tmp_path), ("--keep", f"{KEEP_S:g}s")
    options, earlier_options = [
        ("--settings", str(file), *keep) for file in (settings, earlier_settings(source, WINDOWS))
    ]
    gateway = GatewayProcess(tmp_path)
    async with contextlib.AsyncExitStack() as leave:
        leave.callback(gateway.nats.stop)
        gateway.nats.start()
        earlier = EarlierGateway(source, tmp_path, gateway.nats.url)
        await asyncio.to_thread(earlier.provision, *earlier_options)
        link = await NatsLink.connect(gateway.nats.url, name="test")
        leave.push_async_callback(link.close)
        await provision(link, wanted(catalog_of(settings), keep_s=KEEP_S))
        leave.callback(earlier.stop)
        leave.callback(gateway.stop)
        await asyncio.gather(
            asyncio.to_thread(earlier.start, *earlier_options), asyncio.to_thread(gateway.start, *options)
        )
        https = [httpx.AsyncClient(base_url=each.url, timeout=BOUND_S) for each in (gateway, earlier)]
        for http in https:
            await leave.enter_async_context(http)
        yield Pair(System(gateway, link, https[0]), earlier, https[1])


def catalog_of(settings: Path) -> Catalog:
    return load_settings(settings).catalog("tiny")


async def test_both_versions_side_by_side_lose_nothing(pair: Pair) -> None:
    link, new = pair.new.link, pair.new
    both = [await pair.submit(http) for http in (new.http, pair.http) for _ in range(3)]
    lost = [await pair.submit_and_claim(http) for http in (new.http, pair.http)]
    assert await used_by(link) != [None]
    for task_id in both:
        task = await pair.ends(task_id)
        assert ([line.event for line in task.timeline], task.attempt) == (["accepted", "fail"], 0)
    for task_id in lost:
        task = await pair.ends(task_id)
        assert [line.event for line in task.timeline] == ["accepted", "claim", "requeue", "fail"]

    # the new one alone: a task that the earlier one accepted, and set a timer for, goes on
    left = await pair.submit(pair.http)
    await asyncio.to_thread(pair.earlier.stop)
    assert (await pair.ends(left)).was_refused

    async def is_free() -> bool:
        return await used_by(link) == [None]

    await eventually(is_free)
    await retire(link)
    assert (await pair.ends(await pair.submit(new.http))).was_refused


async def test_the_earlier_version_alone_goes_on_with_tasks_of_the_new_one(pair: Pair) -> None:
    """The way back: the earlier version finds no timers for these tasks, and sets them. It serves its own as ever."""
    without_a_timer, with_one = await pair.submit(pair.new.http), await pair.submit(pair.http)
    await asyncio.to_thread(pair.new.gateway.stop)
    for task_id in (without_a_timer, with_one):
        assert (await pair.ends(task_id)).was_refused
