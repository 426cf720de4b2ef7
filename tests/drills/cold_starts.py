"""Cold starts in a row, each in a process of its own: `python -m tests.drills.cold_starts --count 20`.

Prints the seconds from the start of each process to `warm`, as the lane itself records them in KV `cold_starts`. Exits
with 1 when a start did not reach `warm`.
"""

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from contracts.lanes import ColdStart
from contracts.settings import load_settings
from gateway.boards.cold_starts import TARGET_S, ColdStarts, share_within
from ops.nats.link import NatsLink
from ops.nats.provisioning import provision, wanted
from tests.kit.lanes import LaneProcess
from tests.kit.support import NatsServer, eventually

KEEP_S: Final = 3_600.0
TINY_LIMIT_S: Final = 12.0


async def cold_starts(
    count: int,
    folder: Path,
    *,
    model: str = "phr00t",
    on_start: Callable[[ColdStart], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> list[ColdStart]:
    """*count* lanes of *model*, one after the other: each is started, becomes warm, and leaves.

    *environment* is added to theirs.
    """
    (folder / "nats").mkdir()
    server = NatsServer(folder / "nats")
    server.start()
    link = await NatsLink.connect(server.url, name="cold-starts")
    try:
        await provision(link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S))
        known = ColdStarts()
        await known.start(link)
        for number in range(count):
            lane = LaneProcess(server.address, folder, model=model, environment=environment)

            async def is_recorded(count: int = number + 1) -> bool:
                return len(known.newest_first()) == count

            await eventually(is_recorded, within_s=120)
            on_start(known.newest_first()[0])
            status = await asyncio.to_thread(lane.stop)
            if status != 0:
                raise RuntimeError(f"the lane left with {status}; see its log: {lane.log_file.read_text()[-2000:]}")
        return known.newest_first()[::-1]
    finally:
        await link.close()
        server.stop()


@click.command()
@click.option("--count", default=20, show_default=True, type=click.IntRange(1, 60), help="How many starts.")
@click.option("--model", default="phr00t", show_default=True, help="The model of the lane (tiny profile).")
def main(count: int, model: str) -> None:
    """Start a lane again and again, and print how long it took to become warm."""

    def say(start: ColdStart) -> None:
        click.echo(f"  {'gave up: ' + start.detail if start.seconds is None else f'{start.seconds:6.2f} s'}")

    with tempfile.TemporaryDirectory(prefix="warmlane-cold-starts-") as folder:
        starts = asyncio.run(cold_starts(count, Path(folder), model=model, on_start=say))
    seconds = [start.seconds for start in starts if start.seconds is not None]
    if seconds:
        click.echo(f"p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s")
    for limit_s in (TINY_LIMIT_S, TARGET_S):
        click.echo(f"warm within {limit_s:g} s: {share_within(starts, limit_s) or 0:.0%} of {len(starts)}")
    sys.exit(0 if len(seconds) == count else 1)


if __name__ == "__main__":
    main()
