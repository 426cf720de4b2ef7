"""`make chaos` for a minute.

`tests/unit/drills/test_checker.py` shows on histories that its checker can fail, and `make chaos-plants` shows it on
systems.
"""

from pathlib import Path

from rich.console import Console

from tests.drills.chaos import chaos
from tests.faults.planted import PLANTED
from tests.kit.support import shared_forks

QUIET = Console(quiet=True)
# The store is full first, while all lanes serve; then supervisor, gateway, lane, host and leader have a turn, a scratch
# folder is removed, a consumer is deleted, and the server loses what it stored last. A full disk of nats-server takes
# 20 s and has tests of its own.
SEED = 53446
FAULTS = 9


async def test_forty_five_seconds_of_chaos_break_no_invariant(tmp_path: Path) -> None:
    history, summary = await chaos(
        tmp_path, seed=SEED, seconds=45, rate=5, count=FAULTS, console=QUIET, environment=shared_forks()
    )
    assert summary.violations == []
    assert (summary.lost, summary.doubled) == (0, 0)
    assert summary.faults + summary.skipped == FAULTS
    # else the run has proven nothing
    assert summary.tasks > 100
    assert {"done", "storage_failed", "cancelled"} <= set(summary.ends), summary.ends
    assert min(len(history.queues), len(history.hosts), len(history.calls)) > 20


def test_a_bug_is_planted_for_every_invariant() -> None:
    assert {plant.rule for plant in PLANTED.values()} == {1, 2, 3, 4, 5, 6}
