"""How a lane records its own start (SC-006): real processes, and a server that goes away at the wrong time."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from contracts.lanes import ColdStart
from contracts.settings import Catalog
from gateway.boards.cold_starts import ColdStarts
from lane_worker.forking.outcome import SlotTaken
from lane_worker.forking.slot import SlotLock
from lane_worker.runtime.cold_start import ColdStartLog, process_started_at
from ops.ending import end
from ops.nats.client import Ack
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from tests.drills.cold_starts import cold_starts
from tests.kit.lanes import Lane
from tests.kit.support import BOUND_S, NatsServer, eventually, shared_forks


async def known_starts(link: NatsLink) -> list[ColdStart]:
    """The known cold starts, the newest first."""
    known = ColdStarts()
    await known.start(link)
    return known.newest_first()


async def test_starts_in_a_row_are_all_warm_and_each_is_recorded(tmp_path: Path) -> None:
    """The seconds count from the start of the process, so they include its imports."""
    starts = await cold_starts(2, tmp_path, environment=shared_forks())
    assert [start.detail for start in starts] == ["", ""]
    assert len({start.started_at for start in starts}) == 2
    for start in starts:
        assert start.seconds is not None
        assert start.seconds == pytest.approx((start.ended_at - start.started_at).total_seconds(), abs=0.01)


def test_the_start_of_a_process_is_before_its_imports() -> None:
    code = (
        "import time; time.sleep(0.5); from lane_worker.runtime.cold_start import process_started_at;"
        "from datetime import UTC, datetime; print((datetime.now(UTC) - process_started_at()).total_seconds())"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(output) > 0.5
    whole_seconds = datetime.fromtimestamp(psutil.Process(os.getpid()).create_time(), UTC)
    assert abs((process_started_at() - whole_seconds).total_seconds()) < 2  # another source of the system agrees


@pytest.mark.usefixtures("forks")
async def test_a_lane_that_does_not_get_its_slot_records_that(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    lock = SlotLock.acquire(tmp_path / "locks", "cpu-0", role="lane", term=0, wait_s=0)
    lane = Lane(link, catalog, tmp_path)
    lane.start()
    with pytest.raises(SlotTaken):
        await lane.ended()
    (start,) = await known_starts(link)
    assert start.seconds is None
    assert f"held by process {os.getpid()}" in start.detail
    assert lock.unfinished is None


async def test_a_start_is_recorded_once_though_the_answer_to_its_write_is_lost(
    link: NatsLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise SC-006's share would count it twice."""
    starts = ColdStartLog(link, model="phr00t", worker="phr00t-0", started_at=datetime.now(UTC))
    publish, lost = link.messages.publish, asyncio.Event()

    async def without_an_answer(*arguments: Any, **options: Any) -> Ack:
        ack = await publish(*arguments, **options)
        if lost.is_set():
            return ack
        lost.set()
        raise TransportUnavailable("no answer")

    monkeypatch.setattr(link.messages, "publish", without_an_answer)
    running = asyncio.create_task(starts.run())
    starts.warm()
    starts.demanded()
    starts.warm()
    await starts.leave()
    await end(running)
    assert lost.is_set()
    assert len(await known_starts(link)) == 2


async def test_the_record_of_a_start_waits_for_the_server(
    link: NatsLink, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that failed at first is recorded once, with how its start ended in the end. So is one that gives up."""
    monkeypatch.setattr("lane_worker.runtime.cold_start.LEAVE_S", BOUND_S)
    starts = ColdStartLog(link, model="phr00t", worker="phr00t-0", started_at=datetime.now(UTC))
    await asyncio.to_thread(nats_server.kill)
    running = asyncio.create_task(starts.run())
    starts.failed("the model could not be read")
    starts.warm()
    starts.failed("a host that died later is no start")
    starts.warm()
    starts.demanded()
    starts.failed("no memory")
    await asyncio.to_thread(nats_server.start)

    async def connected() -> bool:
        return link.connection.is_connected

    await eventually(connected)
    await starts.leave()
    await end(running)
    gave_up, warm = await known_starts(link)
    assert (warm.seconds is not None, warm.detail) == (True, "")
    assert (gave_up.seconds, gave_up.detail) == (None, "no memory")
