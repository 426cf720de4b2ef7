"""What a worker knows when it chooses its next task: what it has loaded, measured and started (ADR 0038, ADR 0042).

`contracts/order.py` decides; what it has to remember is here. A new worker, or a new leader, begins without any of it.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from contracts.order import (
    Choice,
    Costs,
    Ledger,
    OnCard,
    OrderState,
    OrderTally,
    Policy,
    Waiting,
    choose,
    cost_s,
    groups,
    started,
    waiting_of,
)
from contracts.progress import StepsDone
from contracts.tasks import GenerationTask, OrderDecision
from lane_worker.runtime.outcome import Result, Runner, Succeeded, Unsuccessful
from ops.telemetry import metrics

# A run of a model, or a swap to it, is expected to take the median of this many of its last ones.
SAMPLES_MAX: Final = 9
# The state shows how much of the card this many callers had.
CALLERS_SHOWN: Final = 32
# What ends the slice of a model: none of it waits; its time is over; a higher class, or one whose turn it is, waits
# for another model; a task would expire (rule 5); or the order is that of arrival, which has no slices.
SLICE_ENDS: Final = ("none_waits", "time", "class", "deadline", "arrival")


class Order:
    """The order in which one worker starts what waits. *resident* is the model that is loaded now."""

    def __init__(self, policy: Policy, *, resident: Callable[[], str | None]) -> None:
        self._policy = policy
        self._resident = resident
        self._on_card: OnCard | None = None
        self._ledger = Ledger()
        self._runs_s: dict[str, deque[float]] = {}
        self._swaps_s: dict[str, deque[float]] = {}
        self._chosen: tuple[Choice, Sequence[Waiting]] | None = None
        self._tally = OrderTally()
        self._free_at: datetime | None = None  # when what runs is expected to end
        self._running: OnCard | None = None  # the model of what runs, once that is loaded

    def choose(self, waiting: Sequence[Waiting], *, now: datetime) -> tuple[str, OrderDecision] | None:
        """The id of the task among those *waiting* that is to be claimed next, and why; None where none may start.

        It is charged to its class and its caller when it runs.
        """
        now_s = now.timestamp()
        choice = choose(
            waiting,
            loaded=self._loaded(now_s),
            costs=self._costs(),
            ledger=self._ledger,
            policy=self._policy,
            now_s=now_s,
        )
        if choice is None:
            return None
        self._chosen = choice, waiting
        decision = OrderDecision(
            at=now,
            order=self._policy.order,
            rules=choice.rules,
            loaded=None if self._on_card is None else self._on_card.model,
            slice_left_s=round(choice.slice_left_s, 3),
            waiting=groups(waiting, now_s=now_s),
        )
        return choice.task.task_id, decision

    def take_only(self, waiting: Waiting) -> None:
        """*waiting* is the only task that waits, and is claimed next: `choose` would choose it too, but take longer.

        An idle worker comes here, and its task waits for nothing but this choice.
        """
        self._chosen = Choice(waiting, (2,) if self._policy.order == "fifo" else ()), (waiting,)

    def starts(self, task: GenerationTask, *, now: datetime) -> None:
        """*task*, which was chosen last, is claimed and starts now."""
        loaded = self._loaded(now.timestamp())
        lasts_s = cost_s(waiting_of(task), loaded=loaded, costs=self._costs())
        self._free_at = now + timedelta(seconds=lasts_s)
        if loaded is None or loaded.model != task.model:
            loaded = OnCard(task.model, now.timestamp() + self._costs().swap_to(task.model))
        self._running = loaded
        if self._chosen is None or self._chosen[0].task.task_id != task.message_id:
            return
        (choice, waiting), self._chosen = self._chosen, None
        now_s = now.timestamp()
        cause = slice_end(choice, waiting, loaded=self._loaded(now_s), now_s=now_s)
        if cause is not None:
            metrics.order_slices.add(cause)
            ends = self._tally.slice_ends
            self._tally = replace(self._tally, slice_ends=ends | {cause: ends.get(cause, 0) + 1})
        self._ledger = started(
            self._ledger, choice.task, waiting, loaded=self._loaded(now_s), costs=self._costs(), now_s=now_s
        )

    def ran(self, task: GenerationTask, result: Result, *, seconds: float, now: datetime) -> None:
        """The run of *task* took *seconds* in all, including the swap where there was one."""
        self._free_at = self._running = None
        swap = result.swap if isinstance(result, (Succeeded, Unsuccessful)) else None
        swap_s = 0.0
        if swap is not None:
            swap_s = swap.release_s + swap.verify_s + swap.load_s
            _note(self._swaps_s, task.model, swap_s)
            self._on_card = OnCard(task.model, now.timestamp() - max(0.0, seconds - swap_s))
        self._tally = replace(
            self._tally,
            tasks=self._tally.tasks + 1,
            swaps=self._tally.swaps + (swap is not None),
            running_s=self._tally.running_s + max(0.0, seconds - swap_s),
            swapping_s=self._tally.swapping_s + swap_s,
        )
        if isinstance(result, Succeeded):
            _note(self._runs_s, task.model, max(0.0, seconds - swap_s))

    def next_model(self, waiting: Sequence[Waiting]) -> str | None:
        """The model that will be loaded next, when the task that runs is done, if no other task comes.

        None where the same model goes on, where no task waits that may still start then, and while nothing runs or the
        running task's model is not loaded yet.
        """
        if self._running is None or self._free_at is None or self._resident() != self._running.model:
            return None
        choice = choose(
            waiting,
            loaded=self._running,
            costs=self._costs(),
            ledger=self._ledger,
            policy=self._policy,
            now_s=self._free_at.timestamp(),
        )
        return None if choice is None or choice.task.model == self._running.model else choice.task.model

    def state(self, now: datetime) -> OrderState:
        """What other processes need to forecast when a task will start."""
        loaded, policy = self._loaded(now.timestamp()), self._policy
        most = sorted(self._ledger.callers.items(), key=lambda each: (-each[1], each[0]))[:CALLERS_SHOWN]
        return OrderState(
            at=datetime.fromtimestamp(self._ledger.at_s, UTC) if self._ledger.at_s else now,
            order=policy.order,
            swap_share=policy.swap_share,
            slice_max_s=policy.slice_max_s,
            turn_share=policy.turn_share,
            loaded=None if loaded is None else loaded.model,
            loaded_at=None if loaded is None else datetime.fromtimestamp(loaded.since_s, UTC),
            free_at=self._free_at,
            run_s=_rounded(_medians(self._runs_s)),
            swap_s=_rounded(_medians(self._swaps_s)),
            callers=_rounded(dict(most)),
            passed_s=dict(self._ledger.passed_s),
            tally=self._tally,
        )

    def _loaded(self, now_s: float) -> OnCard | None:
        model = self._resident()
        if model is None:
            self._on_card = None
        elif self._on_card is None or self._on_card.model != model:
            self._on_card = OnCard(model, now_s)
        return self._on_card

    def _costs(self) -> Costs:
        return Costs(run_s=_medians(self._runs_s), swap_s=_medians(self._swaps_s))


class OrderedRunner:
    """A `Runner` that lets *order* know what starts and how long it took."""

    def __init__(self, runner: Runner, order: Order) -> None:
        self._runner = runner
        self._order = order

    async def run(self, task: GenerationTask, image: Path | None, on_progress: Callable[[StepsDone], None]) -> Result:
        """As `Runner.run`."""
        self._order.starts(task, now=datetime.now(UTC))
        begun_s = time.monotonic()
        result = await self._runner.run(task, image, on_progress)
        self._order.ran(task, result, seconds=time.monotonic() - begun_s, now=datetime.now(UTC))
        return result

    def stop(self, task_id: str) -> None:
        """As `Runner.stop`."""
        self._runner.stop(task_id)


def slice_end(choice: Choice, waiting: Sequence[Waiting], *, loaded: OnCard | None, now_s: float) -> str | None:
    """Which of SLICE_ENDS ended the slice of the model that is *loaded*, where *choice* is for another. Pure."""
    if loaded is None or loaded.model == choice.task.model:
        return None
    here = [task for task in waiting if task.model == loaded.model and now_s < task.deadline_s]
    if 2 in choice.rules:
        return "arrival"
    if not here:
        return "none_waits"
    if not any(task.priority is choice.task.priority for task in here):
        return "class"
    return "deadline" if 5 in choice.rules else "time"


def _note(samples: dict[str, deque[float]], model: str, seconds: float) -> None:
    samples.setdefault(model, deque(maxlen=SAMPLES_MAX)).append(seconds)


def _medians(samples: dict[str, deque[float]]) -> dict[str, float]:
    return {model: statistics.median(each) for model, each in samples.items()}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
