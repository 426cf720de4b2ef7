"""`warmlane supervisor` with real lanes, beside a real gateway: lanes that are denied, that die or that cannot start.

Where the order of two writes matters, tests in `test_supervisor_reports.py` move the lanes by hand.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from contracts.lanes import ColdStart, LaneState
from contracts.tasks import TaskStatus
from contracts.topology import LANES
from ops.machine.processes import warmlane_command
from ops.nats.link import NatsLink
from tests.kit import warm_cli
from tests.kit.gate import Gate, gated_forks
from tests.kit.gateway import System, fresh_system, report_lane
from tests.kit.reported_lanes import Lanes, starts_of
from tests.kit.support import (
    all_end,
    below,
    children_of,
    clean_environment,
    command_line,
    eventually,
    logged_in,
    settings_file,
)

pytestmark = pytest.mark.usefixtures("forks", "rogue_forks")


class Rig:
    """`warmlane supervisor` on the server of a gateway."""

    def __init__(self, system: System, lanes: Lanes, data_dir: Path, process: subprocess.Popen[bytes]) -> None:
        self.system, self.lanes, self.data_dir, self.process = system, lanes, data_dir, process

    @property
    def log(self) -> list[dict[str, Any]]:
        return logged_in(self.data_dir / "supervisor.log")

    def lane_pids(self) -> list[int]:
        return [pid for pid in children_of(self.process.pid) if "warmlane lane" in command_line(pid)]

    async def submit(self, model: str, gate: Gate) -> str:
        """Submits a task that *gate* holds in its first step; returns its id."""
        body = {"model": model, "prompt": gate.prompt}
        answer = await self.system.http.post("/generate", json=body, headers={"prefer": "respond-async"})
        return str(answer.json()["id"])

    async def route_of(self, model: str) -> str:
        """Where the gateway sends a request now."""
        task = await self.system.submit(model)
        decision = (await self.system.record(task["id"]))[0].decision
        assert decision is not None
        await self.system.http.delete(f"/tasks/{task['id']}")
        return decision.outcome

    async def routes(self, model: str, outcome: str) -> None:
        """Returns when the gateway routes requests with this *outcome*: it hears of lanes at its own moment."""

        async def look() -> bool:
            return await self.route_of(model) == outcome

        await eventually(look)

    async def says(self, model: str, outcome: str) -> None:
        """As `routes`, by what the gateway reports."""

        async def look() -> bool:
            models = (await self.system.http.get("/admin/lanes")).json()["models"]
            return outcome in [each["route"]["outcome"] for each in models if each["model"] == model]

        await eventually(look)


def _popen(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment() | gated_forks())


@asynccontextmanager
async def supervised(system: System, data_dir: Path, *options: str) -> AsyncIterator[Rig]:
    """Runs the supervisor. At the end of the block it is stopped, and must leave nothing behind."""
    lanes = Lanes()
    link = await NatsLink.connect(system.gateway.nats.url, name="looker")
    await (await link.watches.start(LANES, lanes.on_entry)).wait()
    data_dir.mkdir(exist_ok=True)
    command = warmlane_command(
        "supervisor", "--nats-url", system.gateway.nats.address, "--data-dir", str(data_dir), *options
    )
    with (data_dir / "supervisor.log").open("ab") as log:
        process = await asyncio.to_thread(_popen, command, log)
    rig = Rig(system, lanes, data_dir, process)
    try:
        yield rig
        started = below(process.pid, data_dir / "logs")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, (data_dir / "supervisor.log").read_text()
        all_end(started)
        await lanes.are_gone("anisora-0", "phr00t-0")
    finally:
        process.send_signal(signal.SIGQUIT)
        await asyncio.to_thread(process.wait, 60)
        await link.close()


async def test_the_only_slot_is_the_degraded_workers(bare_system: System, tmp_path: Path) -> None:
    """N = 1: both lanes are denied, even if an earlier run left a lane that looks warm."""
    await report_lane(bare_system.link, "anisora", LaneState.WARM)
    async with supervised(bare_system, tmp_path / "data", "--gpus", "1") as rig:
        for model in ("anisora", "phr00t"):
            denied = await rig.lanes.becomes(f"{model}-0", LaneState.CAPACITY_DENIED)
            assert (denied.detail, denied.slot) == ("the only slot is the degraded worker's", "")
            await rig.routes(model, "degraded: capacity")
        assert rig.lane_pids() == []


@pytest.fixture
async def quick_system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway that judges leases 1 s after it has connected, and not 10 s: a lane becomes warm sooner than 10 s."""
    async with fresh_system(tmp_path, settings_file(tmp_path, reconnect_grace_s=1.0)) as system:
        yield system


async def test_a_quota_that_rises_and_falls_and_a_lane_that_is_killed(quick_system: System, tmp_path: Path) -> None:
    quota = tmp_path / "quota.json"
    quota.write_text('{"max_lanes": {"phr00t": 0}}')
    data_dir = quick_system.gateway.data_dir
    options = ("--lanes", "phr00t=1", "--quota", str(quota))
    async with supervised(quick_system, data_dir, *options) as rig:
        denied = await rig.lanes.becomes("phr00t-0", LaneState.QUOTA_DENIED)
        assert denied.detail == "the quota file allows 0 of phr00t"
        await rig.routes("phr00t", "degraded: quota")

        quota.write_text('{"max_lanes": {"phr00t": "many"}}')
        await eventually(lambda: asyncio.sleep(0, [line for line in rig.log if line["event"] == "quota_ignored"]))
        assert rig.lanes.states("phr00t-0")[-1][0] is LaneState.QUOTA_DENIED

        quota.write_text('{"max_lanes": {"phr00t": 1}}')
        await rig.lanes.becomes("phr00t-0", LaneState.WARM)
        await rig.says("phr00t", "lane")

        (killed,) = rig.lane_pids()
        given = Path(f"/proc/{killed}/environ").read_bytes()  # has the lane's own password, and not the supervisor's
        assert (b"pw-lane" in given, b"pw-supervisor" in given, b"pw-admin" in given) == (True, False, False)
        in_hand = await rig.submit("phr00t", Gate(tmp_path))
        await rig.lanes.holds("phr00t-0", in_hand)
        os.kill(killed, signal.SIGKILL)
        # the task is requeued before its lease ends
        requeued = await quick_system.becomes(in_hand, TaskStatus.PENDING, epoch=1)
        assert [(line.event, line.detail) for line in requeued.timeline[-2:]] == [
            ("worker_lost", "the process of phr00t-0 ended: signal 9, SIGKILL"),
            ("requeue", "phr00t-0 was lost in attempt 1"),
        ]
        await quick_system.http.delete(f"/tasks/{in_hand}")
        # the supervisor's reports come between the old process's last report and the new one's first
        new = await rig.lanes.becomes("phr00t-0", LaneState.WARM)
        assert new.pid not in (killed, rig.process.pid)
        speakers = [pid for _, pid in rig.lanes.states("phr00t-0")]
        assert list(dict.fromkeys(speakers[speakers.index(killed) :])) == [killed, rig.process.pid, new.pid]
        assert speakers[-1] == new.pid
        said = next(beat for _, beat in rig.lanes.reported[::-1] if beat is not None and beat.pid == rig.process.pid)
        assert said.detail.startswith("ended (signal 9, SIGKILL); ")
        await rig.says("phr00t", "lane")

        gate = Gate(tmp_path)
        task_id = await rig.submit("phr00t", gate)
        await quick_system.becomes(task_id, TaskStatus.PROCESSING, epoch=0)
        served = len(rig.lanes.entries)
        quota.write_text('{"max_lanes": {"phr00t": 0}}')
        draining = await rig.lanes.becomes("phr00t-0", LaneState.DRAINING)
        assert (draining.pid, draining.leaving_for) == (new.pid, "quota")
        await rig.routes("phr00t", "degraded: quota")
        gate.open()
        await rig.lanes.becomes("phr00t-0", LaneState.QUOTA_DENIED)
        # at no moment in between was the cause another one, not even when the process ended
        assert [cause for cause in rig.lanes.causes("phr00t", since=served) if cause] == ["quota"]
        assert (LaneState.DRAINING, new.pid) in rig.lanes.states("phr00t-0")
        record, _ = await quick_system.record(task_id)
        assert (record.status.value, record.attempt) == ("done", 1)
        assert rig.lane_pids() == []


async def test_a_lane_that_cannot_start_is_no_denial(bare_system: System, tmp_path: Path) -> None:
    """N = 2: one lane crash-loops, with its last error; the other has no slot. Operators see both facts."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "artifacts").write_text("no folder")
    async with supervised(bare_system, data_dir, "--gpus", "2") as rig:
        await rig.lanes.becomes("anisora-0", LaneState.CRASH_LOOPING)
        said = (beat for name, beat in rig.lanes.reported if name == "anisora-0" and beat is not None)
        looping = next(beat for beat in said if beat.state is LaneState.CRASH_LOOPING)
        assert looping.slot == "cpu-0"
        assert "it ended 3 times in a row before it was warm; the last: status 1: " in looping.detail
        assert str(data_dir / "artifacts") in looping.detail
        assert "; again in " in looping.detail
        denied = await rig.lanes.becomes("phr00t-0", LaneState.CAPACITY_DENIED)
        assert denied.detail == "the only slot for lanes is taken"
        (data_dir / "artifacts").unlink()  # repaired: the lane then starts by itself
        await rig.lanes.becomes("anisora-0", LaneState.WARM)
        deaths = [line for line in rig.log if line["event"] == "lane_ended"]

        async def recorded() -> list[ColdStart] | None:
            starts = await starts_of(bare_system.link, "anisora-0")
            return starts if len(starts) > len(deaths) else None

        starts = await eventually(recorded)
        assert starts is not None
        assert [start.seconds is None for start in starts] == [*(True for _ in deaths), False]
        assert str(data_dir / "artifacts") in starts[0].detail


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--lanes", "sora=1"], "no model is called sora"),
        (["--gpus", "0"], "0 is not in the range"),
        (["--quota", "{folder}/none.json"], "does not exist"),
        (["--quota", "{folder}/bad.json"], "names sora; there are anisora, phr00t"),
    ],
)
def test_impossible_options_are_reported(options: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"max_lanes": {"sora": 1}}')
    arguments = [option.format(folder=tmp_path) for option in options]
    result = warm_cli.run("supervisor", "--data-dir", str(tmp_path / "data"), *arguments, env=clean_environment())
    assert result.returncode in (1, 2)
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


async def test_one_supervisor_to_a_folder(bare_system: System, tmp_path: Path) -> None:
    async with supervised(bare_system, tmp_path / "data", "--gpus", "1") as rig:
        await rig.lanes.becomes("anisora-0", LaneState.CAPACITY_DENIED)
        command = partial(warm_cli.run, "supervisor", "--data-dir", str(rig.data_dir), env=os.environ)
        second = await asyncio.to_thread(command)
        assert second.returncode == 1
        assert "another `warmlane supervisor` uses" in second.stderr
