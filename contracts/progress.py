"""How far a running task has come, and how long it will probably run on. Pure: the clock is an argument.

The worker measures. Its record holds how long a step takes, when the newest step ended, and how long the work after the
last step took for an earlier task. Any process that shows the task derives the rest with one function.
"""

import statistics
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Annotated

from msgspec import Meta, Struct

from contracts.wire import Moment

_Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class StepsDone(Struct, frozen=True, kw_only=True, gc=False):
    """Inference steps finished, of how many, as a record has them.

    *step_s* is how long one step takes, measured in this attempt; None before the first step, and in records of workers
    of an earlier version. *at* is when the newest step was finished. *after_s* is how long a task of this size takes
    from its last step until its video is written (decoding, encoding), as measured with the newest task of its model in
    that process; None before there was one.
    """

    step: int
    steps: int
    step_s: _Seconds | None = None
    at: Moment | None = None
    after_s: _Seconds | None = None


def step_s(began_s: float, finished_s: Sequence[float]) -> float | None:
    """How long one step takes, if the inference began at *began_s* and steps were finished at *finished_s*.

    1. Two steps or more: the median of all but the first, which reads the weights after a load.
    2. One step: its time.
    3. No step: None.
    """
    if len(finished_s) > 1:  # 1
        return max(0.0, statistics.median(later - earlier for earlier, later in pairwise(finished_s)))
    if finished_s:  # 2
        return max(0.0, finished_s[0] - began_s)
    return None  # 3


def eta_s(done: StepsDone | None, now: datetime) -> float | None:
    """In how many seconds after *now* the task will probably have ended; None where nothing was measured.

    1. No step was measured in this attempt: None.
    2. Steps are left: the time that they take, less the time since the newest one; a step that takes longer than the
       others counts as nearly finished. The work after the last step is added if its time is known.
    3. The last step is over: the rest of the work that follows it; None if that was never measured, 0 if it takes
       longer than measured.
    """
    if done is None or done.step_s is None or done.at is None or done.step < 1:  # 1
        return None
    passed_s = max(0.0, (now - done.at).total_seconds())
    left = max(0, done.steps - done.step)
    if left:  # 2
        return left * done.step_s - min(passed_s, done.step_s) + (done.after_s or 0.0)
    return None if done.after_s is None else max(0.0, done.after_s - passed_s)  # 3
