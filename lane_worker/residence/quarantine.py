"""Why nothing may be loaded on a slot: its memory was not given back, or cannot be read."""

from typing import Final

from contracts.memory import SwapReceipt
from lane_worker.forking.outcome import HostLost
from lane_worker.residence.states import InQuarantine
from ops.machine.readings import Holder

_ADVICE: Final = "end what holds the memory of {slot}, then lift the quarantine"
# How many of the processes on a card a quarantine names; those that hold most come first.
HOLDERS_NAMED: Final = 5


class Quarantined(Exception):
    """The slot's memory was not given back, even by a killed host. Nothing loads until `Residence.lift`.

    *detail* is for operators. A client may read the error's text, which therefore names no process.
    """

    def __init__(self, receipt: SwapReceipt, detail: str) -> None:
        super().__init__(f"{receipt.reason}; {_ADVICE.format(slot=receipt.slot)}")
        self.receipt = receipt
        self.detail = detail


class MemoryUnreadable(HostLost):
    """The slot's memory cannot be read, so nothing is loaded, and no host runs. The text has the driver's own words.

    Nothing is known to be held there, so this is no quarantine: the next call asks again (ADR 0027).
    """


def quarantine_of(receipt: SwapReceipt, holders: tuple[Holder, ...]) -> InQuarantine:
    """The quarantine of the slot whose release *receipt* could not be proven, naming who holds memory there."""
    free = "an unknown number" if receipt.free_bytes is None else f"{receipt.free_bytes:,}"
    there = "".join(f"; {holder}" for holder in holders[:HOLDERS_NAMED])
    detail = (
        f"{receipt.reason}; {receipt.needed_bytes:,} bytes are needed and {free} are free{there}; "
        f"{_ADVICE.format(slot=receipt.slot)}"
    )
    return InQuarantine(receipt, detail)
