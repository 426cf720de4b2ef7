"""What the supervisor does about each wanted lane, and what it reports of the lane. Also when a lane crash-loops, for
the supervisor and for the lane itself. Pure: no clock, no I/O, no logging (design §6)."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from contracts.lanes import LaneState

# A lane crash-loops when this many starts in a row failed within this time (a production model takes minutes to load).
# The supervisor counts starts of the lane's process, the lane counts starts of its model.
CRASHES: Final = 3
CRASH_WINDOW_S: Final = 3_600.0

DenialKind = Literal["quota", "capacity"]


class Want(Struct, frozen=True):
    """A lane that should exist."""

    model: str
    name: str


class LaneDenial(Struct, frozen=True):
    """The provider's refusal, which holds until *retry_at_s*."""

    kind: DenialKind
    text: str
    retry_at_s: float


class Seen(Struct, frozen=True):
    """A wanted lane now. A *granted* lane has a slot, whether its process is up or between two starts. A *stopping*
    lane still has its slot."""

    phase: Literal["absent", "granted", "stopping"] = "absent"
    warm: bool = False
    denial: LaneDenial | None = None


class Keep(Struct, frozen=True):
    """Leave the lane as it is."""


class Start(Struct, frozen=True):
    """Ask the provider for the lane."""


class Stop(Struct, frozen=True):
    """Drain the lane: the quota does not allow it any more."""


class Deny(Struct, frozen=True):
    """The lane cannot be had, for the reason in *text*."""

    kind: DenialKind
    text: str


Verdict = Keep | Start | Stop | Deny


def in_turn(lanes: Mapping[str, int]) -> list[Want]:
    """The lanes wanted of each model, in the order in which they get slots: the first of every model comes first."""
    numbered = ((number, model) for model, count in lanes.items() for number in range(count))
    return [Want(model, f"{model}-{number}") for number, model in sorted(numbered, key=lambda lane: lane[0])]


def plan(
    wanted: Sequence[Want], lanes: Mapping[str, Seen], quota: Mapping[str, int], *, now_s: float
) -> dict[str, Verdict]:
    """The verdict on every lane of *wanted*, by name and in its order. *quota* limits models; others are not limited.

    1. Beyond the quota of its model, a lane that has a slot is stopped, and one that has none is denied (`quota`). The
       quota goes to warm lanes first, then to those that have a slot, then by number.
    2. A lane that has a slot, or is leaving one, is left as it is.
    3. A lane that the provider denied stays denied until its time to try again.
    4. Any other is started.
    """
    within = _within_quota(wanted, lanes, quota)
    return {want.name: _verdict(want, lanes[want.name], want in within, quota, now_s) for want in wanted}


def _verdict(want: Want, seen: Seen, within: bool, quota: Mapping[str, int], now_s: float) -> Verdict:
    if not within:  # 1
        if seen.phase == "absent":
            return Deny("quota", f"the quota file allows {quota[want.model]} of {want.model}")
        return Stop() if seen.phase == "granted" else Keep()
    if seen.phase != "absent":  # 2
        return Keep()
    if seen.denial is not None and now_s < seen.denial.retry_at_s:  # 3
        return Deny(seen.denial.kind, seen.denial.text)
    return Start()  # 4


def _within_quota(wanted: Sequence[Want], lanes: Mapping[str, Seen], quota: Mapping[str, int]) -> set[Want]:
    def rank(want: Want) -> tuple[bool, bool]:
        seen = lanes[want.name]
        return not seen.warm, seen.phase != "granted"

    found: set[Want] = set()
    for model in {want.model for want in wanted}:
        of_model = sorted((want for want in wanted if want.model == model), key=rank)
        found.update(of_model[: quota.get(model, len(of_model))])
    return found


class Death(Struct, frozen=True):
    """The process *pid* of a lane ended, and has been reaped: it writes nothing more.

    *how* is its signal or status, and its last error if it logged one.
    """

    how: str
    pid: int
    began_at: datetime
    again_at_s: float


class Silence(Struct, frozen=True):
    """A lane with a slot whose process has not reported yet, or has ended: the supervisor reports in its place.

    *crashes* are the times at which its process ended before it was warm, counted since the lane was last warm.
    """

    crashes: tuple[float, ...] = ()
    last: Death | None = None


def failed_again(failures: Sequence[float], *, now_s: float) -> tuple[float, ...]:
    """*failures*, the times of failed starts in a row, with one more at *now_s*, and without those older than
    CRASH_WINDOW_S."""
    return (*(at_s for at_s in failures if now_s - at_s <= CRASH_WINDOW_S), now_s)


def crash_loops(failures: Sequence[float]) -> bool:
    """Whether a lane whose last starts are *failures* crash-loops."""
    return len(failures) >= CRASHES


class ReportedState(Struct, frozen=True):
    """What the supervisor reports of a lane."""

    state: LaneState
    detail: str = ""


def after_death(silence: Silence, death: Death, *, was_warm: bool, now_s: float) -> Silence:
    """The state after the lane's process ended at *now_s*. A lane that was warm begins again without crashes."""
    if was_warm:
        return Silence(last=death)
    return Silence(crashes=failed_again(silence.crashes, now_s=now_s), last=death)


def report_of(about: Deny | Silence, *, now_s: float) -> ReportedState:
    """What the supervisor reports of a lane that does not report itself: a denial and a crash loop are different
    facts."""
    if isinstance(about, Deny):
        return ReportedState(LaneState.QUOTA_DENIED if about.kind == "quota" else LaneState.CAPACITY_DENIED, about.text)
    if about.last is None:
        return ReportedState(LaneState.STARTING)
    left_s = about.last.again_at_s - now_s
    again = f"again in {left_s:.1f} s" if left_s > 0 else "trying again"
    if not crash_loops(about.crashes):
        return ReportedState(LaneState.STARTING, f"ended ({about.last.how}); {again}")
    text = f"it ended {len(about.crashes)} times in a row before it was warm; the last: {about.last.how}; {again}"
    return ReportedState(LaneState.CRASH_LOOPING, text)
