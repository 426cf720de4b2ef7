"""What a worker makes of tasks that failed one after the other (ADR 0026). Pure: no clock, no I/O, no logging."""

from typing import Final

from msgspec import Struct

REST_FIRST_S: Final = 5.0
REST_MAX_S: Final = 60.0


class Streak(Struct, frozen=True):
    """*failures*: tasks that failed in a row since one was done, or since the process was renewed for that (*renewed*).

    *rests* is how often the worker has left service since a task was done.
    """

    failures: int = 0
    renewed: bool = False
    rests: int = 0


class Serve(Struct, frozen=True):
    """Go on."""


class Renew(Struct, frozen=True):
    """Go on in a fresh process."""


class Rest(Struct, frozen=True):
    """Take no task for *pause_s*, then try."""

    pause_s: float


Advice = Serve | Renew | Rest
# Reasons of the metric `hosts_distrusted`: a fatal failure; several failures in a row; one more in a fresh process.
DISTRUST: Final = ("fatal", "in_a_row", "rest")


def advice(streak: Streak, *, renew_after: int) -> Advice:
    """What a worker does next after *streak*.

    1. No task failed since one was done, or since the process was renewed; or *renew_after* is 0: Serve.
    2. A task failed in the fresh process too, and none was done in between: Rest, for longer each time.
    3. *renew_after* tasks failed in a row: Renew.
    4. Otherwise: Serve.
    """
    if not streak.failures or not renew_after:  # 1
        return Serve()
    if streak.renewed:  # 2
        return Rest(min(REST_MAX_S, REST_FIRST_S * 2.0 ** min(streak.rests, 10)))
    if streak.failures >= renew_after:  # 3
        return Renew()
    return Serve()  # 4


def words(streak: Streak) -> str:
    """*streak* for an operator."""
    tasks = "1 task failed" if streak.failures == 1 else f"{streak.failures} tasks in a row failed"
    return f"{tasks}, in a fresh process too" if streak.renewed else tasks


def failed(streak: Streak) -> Streak:
    """Another task failed, for a reason other than its request."""
    return Streak(streak.failures + 1, streak.renewed, streak.rests)


def not_loaded(streak: Streak) -> Streak:
    """Another task failed because its model could not be loaded. In a fresh process that is the model's own fault, and
    no task of another model has to wait for it."""
    return streak if streak.renewed else failed(streak)


def renewed(streak: Streak) -> Streak:
    """The process was made anew: the next task shows whether that helped."""
    return Streak(0, True, streak.rests)


def rested(streak: Streak) -> Streak:
    """The worker is back in service, and is not believed until a task is done."""
    return Streak(0, True, streak.rests + 1)
