"""What is on a slot, as one table of states and events (design §7). Pure: no clock, no I/O, no logging.

A slot is empty until something is loaded. What was loaded does not count as gone until its release is proven. While the
slot is ours, `Resident` leads back to an `Empty` that may be loaded only through `Proven`, or an operator's `Lifted`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from contracts.memory import MemoryReading, SwapReceipt


class Closed(Struct, frozen=True):
    """No host of ours holds the slot: others may use it, and what is in use there is no leftover of ours."""


class Empty(Struct, frozen=True):
    """Nothing is resident. The host, if it lives, was asked to load before (*is_used*) or never.

    *is_proven*: nothing of an earlier pipeline is on the slot. Only then is anything loaded.
    """

    is_used: bool = False
    is_proven: bool = True


class Resident(Struct, frozen=True):
    """*model* is loaded. *memory* is what the host held then; *receipt* says how the slot was made free for it."""

    model: str
    memory: MemoryReading
    receipt: SwapReceipt


class InQuarantine(Struct, frozen=True):
    """The memory was not given back. Nothing is loaded until an operator lifts this; *detail* is for them."""

    receipt: SwapReceipt
    detail: str


State = Closed | Empty | Resident | InQuarantine


class Left(Struct, frozen=True):
    """Whatever was resident is given up, or was lost with its host. That alone proves nothing."""


class Started(Struct, frozen=True):
    """A fresh host holds the slot."""


class Proven(Struct, frozen=True):
    """What was released is gone."""


class Doubted(Struct, frozen=True):
    """A release is not proven, or not yet."""


class LoadBegun(Struct, frozen=True):
    """The host was asked to load: from here on a pipeline may be on the slot, whatever the host answers."""


class LoadEnded(Struct, frozen=True):
    """The load came to its end."""

    resident: Resident


class Barred(Struct, frozen=True):
    """The release failed, even after the host had ended."""

    quarantine: InQuarantine


class Lifted(Struct, frozen=True):
    """An operator declares the slot usable."""


class HandedOver(Struct, frozen=True):
    """The host has ended, and the slot is unlocked."""


Event = Left | Started | Proven | Doubted | LoadBegun | LoadEnded | Barred | Lifted | HandedOver
_Move = Callable[[Any, Any], State]


class IllegalMove(Exception):
    """A slot was about to make a move that no slot may make, such as a load where it is not proven to be free: a bug in
    Warmlane."""


# What is not here never happens: `after` refuses it.
TABLE: Final[Mapping[tuple[type[State], type[Event]], _Move]] = {
    (Closed, Left): lambda state, _: state,
    (Closed, Started): lambda *_: Empty(),
    (Closed, HandedOver): lambda state, _: state,
    (Empty, Left): lambda state, _: state,
    (Empty, Started): lambda state, _: replace(state, is_used=False),
    (Empty, Proven): lambda state, _: replace(state, is_proven=True),
    (Empty, Doubted): lambda state, _: replace(state, is_proven=False),
    (Empty, LoadBegun): lambda *_: Empty(is_used=True, is_proven=False),
    (Empty, LoadEnded): lambda _, event: event.resident,
    (Empty, Barred): lambda _, event: event.quarantine,
    (Empty, HandedOver): lambda *_: Closed(),
    (Resident, Left): lambda *_: Empty(is_used=True, is_proven=False),
    (Resident, HandedOver): lambda *_: Closed(),
    (InQuarantine, Lifted): lambda *_: Empty(is_used=True),
    (InQuarantine, HandedOver): lambda state, _: state,
}


def after(state: State, event: Event) -> State:
    """*state* once *event* has happened. Raises IllegalMove for what `TABLE` does not have.

    Two moves are refused in some states although the table has them: a load where the slot is not proven to be free,
    and a `LoadEnded` without a `LoadBegun` before it.
    """
    move = TABLE.get((type(state), type(event)))
    if move is None:
        raise IllegalMove(f"{event} in {state}")
    if isinstance(event, LoadBegun) and state != Empty(is_used=getattr(state, "is_used", False)):
        raise IllegalMove(f"a load on a slot that is not proven to be free: {state}")
    if isinstance(event, LoadEnded) and state != Empty(is_used=True, is_proven=False):
        raise IllegalMove(f"something was loaded that nobody asked for: {state}")
    return move(state, event)
