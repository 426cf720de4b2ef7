"""A second lane of a name, or of a slot, is refused before it reports or counts anything."""

import asyncio
import os
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from contracts.topology import COLD_STARTS, LANES
from lane_worker.runtime.cold_start import process_started_at
from lane_worker.runtime.name import NameHeld, NameHolder, holding_name, holding_slot, require_nobody
from ops.nats.link import NatsLink
from tests.kit import warm_cli
from tests.kit.records import lane_report
from tests.kit.support import NatsServer, clean_environment

NAME = "anisora-0"
KEY = f"anisora.{NAME}"


def heartbeat(pid: int, started_at: datetime) -> bytes:
    return msgspec.json.encode(lane_report(NAME, pid=pid, started_at=started_at))


def lane(server: NatsServer, data_dir: Path) -> subprocess.CompletedProcess[str]:
    options = ["--name", NAME, "--slot", "cpu-5", "--nats-url", server.url, "--data-dir", str(data_dir)]
    return warm_cli.run("lane", "--model", "anisora", *options, env=clean_environment())


@pytest.mark.parametrize("beside", ["the same folder", "another folder"])
async def test_a_second_lane_of_a_name_is_refused_and_changes_nothing(
    beside: str, link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    # with another folder, only the entry in KV shows the first lane
    held_in, started_in = tmp_path / "a", tmp_path / ("a" if beside == "the same folder" else "b")
    async with holding_name(held_in, NAME):
        revision = await link.entries.put(LANES, KEY, heartbeat(os.getpid(), process_started_at()))
        result = await asyncio.to_thread(lane, nats_server, started_in)
        assert result.returncode == 1
        assert (
            f"a worker called {NAME} is already running: process {os.getpid()} on host {socket.gethostname()},"
            in result.stderr
        )
        entry = await link.entries.get(LANES, KEY)
        assert entry is not None
        assert entry.revision == revision
        assert await link.entries.get(COLD_STARTS, "anisora") is None


async def test_a_second_lane_of_a_slot_is_refused_and_changes_nothing(
    link: NatsLink, nats_server: NatsServer, tmp_path: Path
) -> None:
    """The lane is refused at once, and not after a wait for the card. It does not count as a failed cold start."""
    async with holding_slot(tmp_path, "cpu-5", "phr00t-0"):
        result = await asyncio.to_thread(lane, nats_server, tmp_path)
        assert result.returncode == 1
        assert (
            f"slot cpu-5 has a lane: phr00t-0, process {os.getpid()} on host {socket.gethostname()}," in result.stderr
        )
        assert "choose another slot with --slot" in result.stderr
        assert await link.entries.get(LANES, KEY) is None
        assert await link.entries.get(COLD_STARTS, "anisora") is None


async def test_a_process_of_that_name_on_another_machine_is_noticed(link: NatsLink) -> None:
    far = (1 << 22) + 1, datetime.now(UTC)  # no process here has such a pid
    await link.entries.put(LANES, KEY, heartbeat(*far))
    asking = asyncio.create_task(require_nobody(link, KEY, NAME, None, silent_s=60))
    while not asking.done():  # the first lane sends heartbeats
        await link.entries.put(LANES, KEY, heartbeat(*far))
    with pytest.raises(NameHeld, match=f"process {far[0]} on another machine"):
        await asking


async def test_a_process_that_is_gone_is_not_waited_for(link: NatsLink) -> None:
    far = (1 << 22) + 1, datetime.now(UTC)
    await link.entries.put(LANES, KEY, heartbeat(*far))
    await require_nobody(link, KEY, NAME, NameHolder(*far), silent_s=600)
    await require_nobody(link, KEY, NAME, None, silent_s=0.3)  # on another machine, silence counts
