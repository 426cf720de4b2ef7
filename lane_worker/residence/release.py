"""Whether a card was given back (design §7, FR-001..003, ADR 0027). Pure: no clock, no I/O, no logging."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

Proof = Literal["base", "own_figure", "no_pipeline"]
"""How a release was concluded, as `contracts.memory.SwapReceipt` explains it."""


class MemorySample(Struct, frozen=True):
    """One look at the memory; *at_s* is monotonic. A figure that could not be read is None, and never 0.

    *own_bytes* is the figure of our host's process alone, where the driver reports it.
    """

    at_s: float
    used_bytes: int | None
    free_bytes: int | None
    own_bytes: int | None = None


class Released(Struct, frozen=True):
    """Proven, by *proof*: the next pipeline may be loaded."""

    proof: Proof


class StillHeld(Struct, frozen=True):
    """*bytes* more are in use, or fewer are free, than allowed."""

    bytes: int


class Unmeasurable(Struct, frozen=True):
    """The figures prove nothing."""


Verdict = Released | StillHeld | Unmeasurable


def own_figure(pid: int, before: Mapping[int, int], after: Mapping[int, int]) -> int | None:
    """What our host *pid* holds, by the driver's figures *before* and *after* the host's start; None where they do not
    show it.

    In a container the driver may know the host by another pid, and know another process by this pid. So a figure counts
    only where it came with the host.
    """
    return None if pid in before else after.get(pid)


def judge(
    samples: Sequence[MemorySample],
    *,
    base_bytes: int | None,
    own_base_bytes: int | None,
    tolerance_bytes: int,
    needed_bytes: int,
    no_pipeline: bool,
) -> Verdict:
    """What the last two of *samples* prove. Earlier ones prove nothing: what was free then may be taken now.

    *base_bytes* and *own_base_bytes* are what the card and our process held when the host was empty. *no_pipeline* says
    that no process of ours can hold one: the host has ended, as the kernel reports, or was never asked to load.

    1. There are fewer than two, or in one of the last two what is in use or free is missing: Unmeasurable.
    2. In one of them less than *needed_bytes* is free: StillHeld. There is no room, whoever holds the rest.
    3. In both the driver reports our own process's figure. It is the proof, whatever others take or give back:
       *own_figure* where it is within *own_base_bytes* + *tolerance_bytes*, else StillHeld.
    4. There is a base, and both are within *base_bytes* + *tolerance_bytes*: Released by the *base*.
    5. *no_pipeline*: Released by that. Whatever else is in use is another's, and rule 2 proved the room.
    6. Otherwise StillHeld; without a base Unmeasurable.
    """
    last_two = samples[-2:]
    used = [sample.used_bytes for sample in last_two if sample.used_bytes is not None]
    free = [sample.free_bytes for sample in last_two if sample.free_bytes is not None]
    if len(used) < 2 or len(free) < 2:  # 1
        return Unmeasurable()
    own = [sample.own_bytes for sample in last_two if sample.own_bytes is not None]
    by_own_figure = len(own) == 2 and own_base_bytes is not None
    if by_own_figure:
        excess_bytes = max(own) - (own_base_bytes or 0) - tolerance_bytes
    else:
        excess_bytes = 0 if base_bytes is None else max(used) - base_bytes - tolerance_bytes
    shortage_bytes = needed_bytes - min(free)
    if shortage_bytes > 0:  # 2
        return StillHeld(max(shortage_bytes, excess_bytes))
    if by_own_figure:  # 3
        return StillHeld(excess_bytes) if excess_bytes > 0 else Released("own_figure")
    if base_bytes is not None and excess_bytes <= 0:  # 4
        return Released("base")
    if no_pipeline:  # 5
        return Released("no_pipeline")
    return Unmeasurable() if base_bytes is None else StillHeld(excess_bytes)  # 6
