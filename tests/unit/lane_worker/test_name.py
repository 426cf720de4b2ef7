"""Which process owns the name of a worker: numbered as in `lane_worker.runtime.name.whose`; and the lock of a data
folder."""

import asyncio
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from contracts.lanes import LaneHeartbeat, LaneState
from lane_worker.runtime.name import NameHeld, NameHolder, Whose, holding_name, holding_slot, whose
from tests.kit.records import lane_report

THEN: Final = datetime(2026, 2, 26, 12, tzinfo=UTC)
HERE: Final = socket.gethostname()
BEFORE: Final = NameHolder(7, THEN)


def lane(state: LaneState = LaneState.WARM, *, pid: int = 7, later_s: float = 0.0) -> LaneHeartbeat:
    return lane_report(state=state, pid=pid, started_at=THEN + timedelta(seconds=later_s))


@pytest.mark.parametrize(
    ("heard", "before", "is_here", "beats", "age_s", "expected"),
    [
        pytest.param(None, None, False, False, 0, Whose.OURS, id="1"),
        pytest.param(lane(LaneState.STARTING), None, False, False, 0, Whose.OURS, id="1-its-supervisor"),
        pytest.param(lane(LaneState.CRASH_LOOPING), BEFORE, False, True, 0, Whose.OURS, id="1-its-supervisor-again"),
        pytest.param(lane(LaneState.STARTING), None, True, False, 0, Whose.OURS, id="1-a-supervisor-that-runs-here"),
        pytest.param(lane(), None, True, False, 0, Whose.ANOTHERS, id="2-here"),
        pytest.param(lane(), None, False, True, 0, Whose.ANOTHERS, id="2-elsewhere"),
        pytest.param(lane(), BEFORE, False, False, 0, Whose.OURS, id="3"),
        pytest.param(lane(later_s=60), BEFORE, False, False, 0, Whose.UNCERTAIN, id="3-the-same-pid-later"),
        pytest.param(lane(pid=8), BEFORE, False, False, 0, Whose.UNCERTAIN, id="3-another"),
        pytest.param(lane(), None, False, False, 7.6, Whose.OURS, id="4"),
        pytest.param(lane(), None, False, False, 7.4, Whose.UNCERTAIN, id="5"),
    ],
)
def test_whose(
    heard: LaneHeartbeat | None, before: NameHolder | None, is_here: bool, beats: bool, age_s: float, expected: Whose
) -> None:
    assert whose(heard, before, is_here=is_here, beats=beats, age_s=age_s, silent_s=7.5) is expected


async def test_a_name_has_one_process(tmp_path: Path) -> None:
    async with holding_name(tmp_path, "anisora-0") as held:
        assert held.before is None
        with pytest.raises(NameHeld, match=f"is already running: process {os.getpid()} on host {HERE},"):
            async with holding_name(tmp_path, "anisora-0"):
                pass
        async with holding_name(tmp_path, "anisora-1"):
            pass
    async with holding_name(tmp_path, "anisora-0") as held:
        assert held.before is not None
        assert held.before.pid == os.getpid()


async def test_a_draining_process_is_waited_for(tmp_path: Path) -> None:
    """A supervisor that died is back before its lanes have finished their tasks."""
    order = []

    async def follow() -> None:
        async with holding_name(tmp_path, "anisora-0"):
            order.append("successor")

    async with holding_name(tmp_path, "anisora-0") as held:
        held.leaves()
        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        order.append("drained")
    await following
    assert order == ["drained", "successor"]


async def test_a_slot_has_one_lane(tmp_path: Path) -> None:
    """Another name does not help. A lane that leaves is waited for, as its supervisor's next one does."""
    order = []

    async def follow() -> None:
        async with holding_slot(tmp_path, "cpu-0", "phr00t-0"):
            order.append("successor")

    async with holding_slot(tmp_path, "cpu-0", "anisora-0") as held:
        with pytest.raises(NameHeld, match=f"slot cpu-0 has a lane: anisora-0, process {os.getpid()} on host {HERE},"):
            await follow()
        async with holding_slot(tmp_path, "cpu-1", "phr00t-0"):
            pass
        held.leaves()
        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        order.append("drained")
    await following
    assert order == ["drained", "successor"]


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from lane_worker.runtime.name import holding_name\n"
        "async def hold():\n"
        "    async with holding_name(Path(sys.argv[1]), 'anisora-0'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(hold())\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -9

    async def before() -> NameHolder | None:
        async with holding_name(tmp_path, "anisora-0") as held:
            return held.before

    holder = asyncio.run(before())
    assert holder is not None
    assert holder.pid != os.getpid()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "ä", "x" * 129])
async def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        async with holding_name(tmp_path, name):
            pass
    assert list(tmp_path.iterdir()) == []
