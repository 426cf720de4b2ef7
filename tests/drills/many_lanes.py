"""`python -m tests.drills.many_lanes`: what 100 lanes cost a gateway on this machine. Nothing here is a test.

The lanes are heartbeats only, one every 5 s, as real lanes send them. All are of one model, which is the worst case for
a routing decision, because a decision keeps its inputs.
"""

import argparse
import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from contracts.settings import load_settings
from gateway.boards.lane_board import LaneBoard
from ops.ending import end
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from ops.telemetry.logs import configure_logging
from tests.bench.growth import HEARTBEAT_S, beat
from tests.kit.gateway import GatewayProcess
from tests.kit.support import KEEP_S, eventually

LANES: Final = 100
DECISIONS: Final = 5_000
CPU_PERCENT_MAX: Final = 5.0
DECISION_US_MAX: Final = 50.0


async def board_of(link: NatsLink, lanes: int) -> LaneBoard:
    """A board that knows all *lanes*."""
    board = LaneBoard(health_timeout_s=60, grace_s=10)
    await board.start(link)

    async def complete() -> bool:
        return len(board.reports("anisora")) == lanes

    await eventually(complete)
    return board


def decision_us(board: LaneBoard, decisions: int) -> float:
    """The mean time of a routing decision, with the inputs that it keeps, in microseconds."""
    begun_s = time.perf_counter()
    for _ in range(decisions):
        board.route("anisora", datetime.now(UTC))
    return (time.perf_counter() - begun_s) / decisions * 1e6


async def cpu_percent(pid: int, over_s: float) -> float:
    """The CPU time of *pid* over *over_s* seconds, in percent of one core."""
    process = psutil.Process(pid)

    def used_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before_s, begun_s = used_s(), time.monotonic()
    await asyncio.sleep(over_s)
    return (used_s() - before_s) / (time.monotonic() - begun_s) * 100


async def measure(folder: Path, *, lanes: int, over_s: float, decisions: int) -> tuple[float, float]:
    """CPU of a gateway in percent of a core, and the time of a decision in microseconds."""
    gateway = GatewayProcess(folder, forked=False)
    gateway.nats.start()
    link = await NatsLink.connect(gateway.nats.url, name="many-lanes")
    try:
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        await asyncio.to_thread(gateway.start)
        beating = asyncio.create_task(beat(link, "anisora", range(lanes)))
        try:
            board = await board_of(link, lanes)
            return await cpu_percent(gateway.pid, over_s), decision_us(board, decisions)
        finally:
            await end(beating)
    finally:
        await link.close()
        gateway.stop()
        gateway.nats.stop()


def main() -> None:
    """Measures and prints a table. The exit status says whether the aims were met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=LANES)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the CPU is watched")
    options = parser.parse_args()
    configure_logging("many-lanes", level="warning")
    with tempfile.TemporaryDirectory() as folder:
        cpu, decision = asyncio.run(
            measure(Path(folder), lanes=options.lanes, over_s=options.seconds, decisions=DECISIONS)
        )
    table = Table("figure", "measured", "aimed at", title=f"{options.lanes} lanes, a heartbeat each {HEARTBEAT_S:g} s")
    table.add_row("gateway CPU (% of a core)", f"{cpu:.2f}", f"< {CPU_PERCENT_MAX:g}")
    table.add_row("routing decision (µs)", f"{decision:.1f}", f"< {DECISION_US_MAX:g}")
    Console().print(table)
    raise SystemExit(0 if cpu < CPU_PERCENT_MAX and decision < DECISION_US_MAX else 1)


if __name__ == "__main__":
    main()
