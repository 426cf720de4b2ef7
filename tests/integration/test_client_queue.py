"""`warmlane submit` and `warmlane demo` where no lane takes the request: a real gateway, and workers played by hand."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from contracts import lifecycle
from contracts.api.tasks import TaskView
from contracts.lanes import LaneState, Leadership
from contracts.tasks import FailureCode, TaskStatus, encode_task
from contracts.topology import DEGRADED, LEADER, LEADER_KEY, TASKS
from ops.cli import cli
from ops.commands.api.client import CommandClient
from ops.commands.submit import INTERRUPTED, generate
from ops.machine.processes import warmlane_command
from tests.kit.gateway import System
from tests.kit.support import clean_environment, eventually


@pytest.fixture
async def leader(bare_system: System) -> AsyncIterator[None]:
    """A degraded worker seems to serve."""
    leader = Leadership(worker="degraded-0", owner="nonce", slot="cpu-0", pid=1, since=datetime.now(UTC))
    await bare_system.link.entries.put(LEADER, LEADER_KEY, msgspec.json.encode(leader))
    yield
    entry = await bare_system.link.entries.get(LEADER, LEADER_KEY)
    assert entry is not None
    await bare_system.link.entries.delete(LEADER, LEADER_KEY, revision=entry.revision)


async def warmlane(system: System, *arguments: str) -> Result:
    command = [*arguments, "--url", system.gateway.url]
    return await asyncio.to_thread(CliRunner().invoke, cli, command)


async def fail(system: System, task_id: str) -> None:
    """Ends a task that was claimed by hand."""
    task, revision = await system.record(task_id)
    failed = lifecycle.fail(task, code=FailureCode.INFERENCE_FAILED, message="by hand", now=datetime.now(UTC))
    await system.link.entries.update(TASKS, task_id, encode_task(failed), revision=revision)


async def test_a_task_is_followed_up_the_queue(bare_system: System) -> None:
    """The task's record does not change while it moves up, and yet the client sees its place."""
    ahead = await bare_system.submit()
    seen: list[TaskView] = []

    def follow() -> TaskView:
        with CommandClient(bare_system.gateway.url) as client:
            body = {"model": "phr00t", "prompt": "a lantern"}
            task, revision = client.submit(body, idempotency_key="follow", hold=False)
            return client.follow(task, revision, seen.append)

    async def in_place(position: int) -> bool:
        return any(task.queue is not None and task.queue.position == position for task in seen)

    following = asyncio.create_task(asyncio.to_thread(follow))
    await eventually(lambda: in_place(2))
    await bare_system.claim(ahead["id"])
    await eventually(lambda: in_place(1))
    await fail(bare_system, ahead["id"])  # from now on a service time is known

    async def with_a_time() -> bool:
        return any(task.queue is not None and task.queue.expected_wait_s is not None for task in seen)

    await eventually(with_a_time)
    await bare_system.claim(seen[0].id)
    await fail(bare_system, seen[0].id)
    ended = await following
    assert (ended.status, ended.queue, ended.route) == ("failed", None, "degraded")


async def test_a_held_submit_is_answered_when_a_worker_takes_it(bare_system: System) -> None:
    def submit() -> TaskView:
        with CommandClient(bare_system.gateway.url) as client:
            return client.submit({"model": "anisora", "prompt": "x"}, idempotency_key="held")[0]

    submitting = asyncio.create_task(asyncio.to_thread(submit))

    async def queued() -> str | None:
        tasks = (await bare_system.http.get("/tasks", params={"limit": "1", "status": "pending"})).json()["tasks"]
        return str(tasks[0]["id"]) if tasks and await bare_system.depth() == 1 else None

    task_id = await eventually(queued)
    assert task_id is not None
    await bare_system.claim(task_id)
    task = await submitting
    assert (task.id, task.status, task.worker) == (task_id, "processing", "by-hand")
    await fail(bare_system, task_id)


async def test_a_refused_submit_says_when_to_try_again(bare_system: System, tmp_path: Path) -> None:
    await bare_system.fill()
    result = await warmlane(bare_system, "submit", "anisora", "a fox", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "(503 queue_overloaded)" in result.stderr
    advice = re.search(r"Try again in ([\d.]+) s\.", result.stderr)
    assert advice is not None, result.stderr
    assert 1 <= float(advice[1]) <= 30
    assert list(tmp_path.iterdir()) == []


async def test_a_task_that_waits_shows_its_place_and_ctrl_c_cancels_it(bare_system: System, tmp_path: Path) -> None:
    terminal, its_end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *warmlane_command("submit", "anisora", "a fox", "--out", str(tmp_path), "--url", bare_system.gateway.url),
        env={**clean_environment(), "TERM": "xterm", "COLUMNS": "150"},
        stderr=its_end,
    )
    os.close(its_end)
    shown = b""  # a read may end in the middle of a character
    try:
        async with asyncio.timeout(60):
            while not re.search(rb"waiting in place \d", shown):
                shown += await asyncio.to_thread(os.read, terminal, 4096)
            process.send_signal(signal.SIGINT)
            while not (printed := re.search(rb"cancelled task (\S+)\r?\n", shown)):
                shown += await asyncio.to_thread(os.read, terminal, 4096)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
        os.close(terminal)
    cancelled = await bare_system.becomes(printed[1].decode(), TaskStatus.FAILED, epoch=0)
    assert cancelled.error is not None
    assert cancelled.error.code is FailureCode.CANCELLED
    assert await bare_system.depth() == 0


@pytest.mark.usefixtures("leader")
async def test_the_demo_of_the_degraded_worker_leaves_the_lanes_alone(bare_system: System, tmp_path: Path) -> None:
    await bare_system.lane_is(LaneState.WARM)
    try:
        result = await warmlane(bare_system, "demo", "--degraded", "--out", str(tmp_path))
    finally:
        await bare_system.lane_is(LaneState.DRAINING)
    assert result.exit_code == 1
    assert "the request for anisora went to a warm lane" in result.stderr
    assert "warmlane up --lanes anisora=0,phr00t=0" in result.stderr
    assert "warmlane lane-mode anisora degraded" in result.stderr
    newest = (await bare_system.http.get("/tasks", params={"limit": "1"})).json()["tasks"][0]
    assert (newest["route"], newest["error"]["code"]) == ("lane", "cancelled")
    assert await bare_system.depth(DEGRADED) == 0


class _Interrupted(CommandClient):
    """Ctrl-C comes after the gateway has answered, and before the client has read the answer."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        super().submit(*arguments, **options)
        raise KeyboardInterrupt


async def test_ctrl_c_before_the_answer_is_read_cancels_the_task(
    bare_system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    def submit() -> int:
        with _Interrupted(bare_system.gateway.url) as client:
            return generate(client, {"model": "phr00t", "prompt": "a lantern"}, "unread", None)

    assert await asyncio.to_thread(submit) == INTERRUPTED
    printed = re.fullmatch(r"cancelled task (\S+)", capsys.readouterr().err.strip())
    assert printed is not None
    task, _ = await bare_system.record(printed[1])
    assert task.error is not None
    assert task.error.code is FailureCode.CANCELLED


class _Gone(CommandClient):
    def submit(self, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_where_no_gateway_answers_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    with _Gone("http://127.0.0.1:1") as client:
        assert generate(client, {"model": "phr00t", "prompt": "a lantern"}, "lost", None) == INTERRUPTED
    errors = capsys.readouterr().err
    assert "no gateway answers at http://127.0.0.1:1" in errors
    assert "--idempotency-key lost finds the task, if it was" in errors
