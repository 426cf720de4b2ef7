"""The figures that `tests.bench` computes for tasks run in turns, and its report of a script that fails."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.memory import SwapReceipt
from contracts.tasks import TimelineEntry
from tests.bench.jobs import Made
from tests.bench.load import LoadFailed
from tests.bench.names import DIRECT, WARMLANE
from tests.bench.procs import NotStarted, Used, script, usable_cores
from tests.bench.rounds import Values
from tests.bench.swap import require_proven
from tests.bench.turns import Found, Scripted, Through, between_ms
from tests.kit.records import pending_task

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASK = pending_task()
RECEIPT = SwapReceipt(
    slot="cpu-0", released_model="anisora", loaded_model="phr00t", how="unloaded", probe="rss", samples=2
)


def test_the_time_between_two_events() -> None:
    timeline = tuple(
        TimelineEntry(at=NOW + timedelta(milliseconds=at_ms), event=event)
        for event, at_ms in (("accepted", 0), ("claim", 4), ("finish", 90))
    )
    task = replace(TASK, timeline=timeline)
    assert between_ms([task, task], "claim", "finish") == pytest.approx([86.0, 86.0])


def test_only_proven_swaps_count() -> None:
    require_proven([replace(TASK, swap=RECEIPT)])


@pytest.mark.parametrize("receipt", [None, replace(RECEIPT, how="killed"), replace(RECEIPT, samples=0)])
def test_a_swap_that_was_not_proven_is_an_error(receipt: SwapReceipt | None) -> None:
    with pytest.raises(LoadFailed, match="was not preceded by a proven swap"):
        require_proven([replace(TASK, swap=RECEIPT), replace(TASK, swap=receipt)])


def test_the_figures_of_a_round() -> None:
    def used(cpu_s: float) -> Used:
        return Used(served_s=cpu_s, brokers_s=0.0, busy_percent=0.0, others_percent=50.0, peak_bytes=2_000_000)

    found = Found(names=(WARMLANE, DIRECT), used=(used(4.0), used(2.0)), others_percent=7.0)
    values = Values()
    made = Made(sha256="", seconds=0.0, load_s=0.0, inference_s=0.0)
    found.add_to(values, [Through(TASK, 0.5), Through(TASK, 0.3)], [Scripted(made, 0.3), Scripted(made, 0.2)])
    figures = {(each.contender, each.figure): each.values for each in values.series()}
    assert figures.keys() == {
        *((who, what) for who in (WARMLANE, DIRECT) for what in ("p50_ms", "cpu_ms", "peak_mb", "others_percent")),
        (WARMLANE, "over_ms"),
    }
    assert figures[WARMLANE, "p50_ms"] == pytest.approx((400.0,))
    assert figures[WARMLANE, "over_ms"] == pytest.approx((150.0,))
    assert (figures[WARMLANE, "cpu_ms"], figures[DIRECT, "cpu_ms"]) == ((2000.0,), (1000.0,))
    assert (figures[DIRECT, "peak_mb"], figures[DIRECT, "others_percent"]) == ((2.0,), (7.0,))


async def test_a_script_answers_line_by_line_and_its_end_is_an_error(tmp_path: Path) -> None:
    code = (
        "import sys\nfor line in sys.stdin: print(line.strip() * 2, flush=True) if line != 'x\\n' else sys.exit('no')"
    )
    with script("echo", [sys.executable, "-c", code], folder=tmp_path, cores=usable_cores()) as echo:
        assert [await echo.ask(line) for line in (b"a", b"b")] == [b"aa\n", b"bb\n"]
        for _ in range(2):  # also a task that had ended before the first poll
            with pytest.raises(NotStarted, match="echo ended with status 1: no"):
                await echo.ask(b"x")
