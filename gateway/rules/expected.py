"""Whether a request will almost certainly not start before its wait is over (ADR 0039). Pure: no clock, no I/O, no
logging."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from contracts.order import Costs, Forecast, OrderState, Waiting, forecast

# Runs and swaps are taken to last between these shares of their measured times. A refusal that may be wrong is worse
# than a wait in vain, so the margins are wide.
FAST: Final = 0.7
SLOW: Final = 1.6


class Running(Struct, frozen=True):
    """The run of *model* that the card is busy with: since when, and until when by the measured times."""

    model: str
    since_s: float
    until_s: float


def is_hopeless(
    new: Waiting, waiting: Sequence[Waiting], *, state: OrderState, running: Running | None, now_s: float
) -> bool:
    """Whether *new*, which comes at *now_s* behind those *waiting*, will almost certainly not start in time.

    1. False, unless a run was measured of every model that waits, runs or is asked for.
    2. Of those that wait, only those count that will start in time even if every run and swap is SLOW, the current run
       included. Any other may expire and make room.
    3. If those start, every run and swap is FAST, and no other task comes, *new* misses its deadline, even if any one
       of them goes away.
    """
    models = {new.model, *(task.model for task in waiting), *([] if running is None else [running.model])}
    if not models <= state.run_s.keys():  # 1
        return False
    slow = _forecast([*waiting, new], SLOW, state=state, running=running, now_s=now_s)
    certain = [task for task in waiting if slow[task.task_id].in_time]  # 2
    fewer = [certain, *([task for task in certain if task is not gone] for gone in certain)]
    return not any(  # 3
        _forecast([*ahead, new], FAST, state=state, running=running, now_s=now_s)[new.task_id].in_time
        for ahead in fewer
    )


def _forecast(
    waiting: Sequence[Waiting], share: float, *, state: OrderState, running: Running | None, now_s: float
) -> dict[str, Forecast]:
    free_s = now_s
    if running is not None:
        free_s = max(now_s, running.since_s + share * (running.until_s - running.since_s))
    costs = Costs(
        run_s={model: share * run_s for model, run_s in state.run_s.items()},
        swap_s={model: share * swap_s for model, swap_s in state.swap_s.items()},
    )
    return forecast(waiting, loaded=state.on_card, costs=costs, ledger=state.ledger, policy=state.policy, free_s=free_s)
