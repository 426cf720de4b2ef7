"""The table of the states of a slot: nothing is loaded on a slot that is not proven to be free."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.memory import MemoryReading, SwapReceipt
from lane_worker.residence.baseline import Baseline, baseline_of
from lane_worker.residence.states import (
    TABLE,
    Barred,
    Closed,
    Doubted,
    Empty,
    Event,
    HandedOver,
    IllegalMove,
    InQuarantine,
    Left,
    Lifted,
    LoadBegun,
    LoadEnded,
    Proven,
    Resident,
    Started,
    State,
    after,
)
from ops.machine.readings import Reading

RECEIPT = SwapReceipt(slot="cpu-0", released_model=None, loaded_model="anisora", how="unloaded", probe="rss")
RESIDENT = Resident("anisora", MemoryReading(rss_bytes=1), RECEIPT)
QUARANTINE = InQuarantine(RECEIPT, "held")
EVENTS: dict[type[Event], Event] = {
    type(event): event
    for event in (
        Left(),
        Started(),
        Proven(),
        Doubted(),
        LoadBegun(),
        LoadEnded(RESIDENT),
        Barred(QUARANTINE),
        Lifted(),
        HandedOver(),
    )
}
SWAP: list[Event] = [Left(), Doubted(), Proven(), LoadBegun(), LoadEnded(RESIDENT)]


def states(*events: Event, begin: State | None = None) -> list[State]:
    found = [begin or Closed()]
    for event in events:
        found.append(after(found[-1], event))
    return found


def test_every_event_is_known() -> None:
    assert set(EVENTS) == set(get_args(Event))
    assert {type(state) for state in (Closed(), Empty(), RESIDENT, QUARANTINE)} == set(get_args(State))


def test_a_life() -> None:
    assert states(Started(), *SWAP, *SWAP, HandedOver())[-6:] == [
        Empty(is_used=True, is_proven=False),
        Empty(is_used=True, is_proven=False),
        Empty(is_used=True),
        Empty(is_used=True, is_proven=False),
        RESIDENT,
        Closed(),
    ]


def test_a_fresh_host_proves_nothing_of_what_an_earlier_one_held() -> None:
    assert after(after(RESIDENT, Left()), Started()) == Empty(is_used=False, is_proven=False)


def test_a_quarantine_ends_by_an_operators_word_only() -> None:
    assert after(QUARANTINE, Lifted()) == Empty(is_used=True)
    assert after(QUARANTINE, HandedOver()) == QUARANTINE
    for event in EVENTS.values():
        if not isinstance(event, (Lifted, HandedOver)):
            with pytest.raises(IllegalMove):
                after(QUARANTINE, event)


@pytest.mark.parametrize("state", [Closed(), Empty(is_proven=False), Empty(True, False), RESIDENT, QUARANTINE])
def test_nothing_is_loaded_on_what_is_not_proven_to_be_free(state: State) -> None:
    with pytest.raises(IllegalMove):
        after(state, LoadBegun())


@pytest.mark.parametrize("state", [Closed(), Empty(), Empty(is_used=True), RESIDENT, QUARANTINE])
def test_nothing_is_resident_that_nobody_loaded(state: State) -> None:
    with pytest.raises(IllegalMove):
        after(state, LoadEnded(RESIDENT))


@given(st.lists(st.sampled_from(list(EVENTS.values())), max_size=30))
def test_between_two_models_there_is_always_a_proof(events: list[Event]) -> None:
    """Over any sequence of events, as far as the table admits them."""
    state: State = Closed()
    is_proven = True  # since a pipeline was last on the slot
    for event in events:
        if (type(state), type(event)) not in TABLE:
            continue
        try:
            state = after(state, event)
        except IllegalMove:
            continue
        if isinstance(event, LoadBegun):
            assert is_proven
            is_proven = False
        # a slot that was handed over, or that an operator vouches for, holds nothing of ours
        is_proven = is_proven or isinstance(event, (Proven, Lifted, HandedOver))


GIB = 1024**3


def test_the_base_rises_only_after_a_proven_release() -> None:
    last = Baseline(1, base_bytes=2 * GIB, floor_bytes=GIB)
    readings = {"floor": Reading(3 * GIB, 0), "base": Reading(4 * GIB, 0), "last": last}
    assert baseline_of(2, **readings, is_proven=True) == Baseline(2, 4 * GIB, 3 * GIB)  # type: ignore[arg-type]
    assert baseline_of(2, **readings, is_proven=False) == Baseline(2, 2 * GIB, GIB)  # type: ignore[arg-type]


def test_the_floor_is_never_above_the_base() -> None:
    """The memory of the slot's last holder was still being freed when the floor was read."""
    falling = baseline_of(2, floor=Reading(9, 0), base=Reading(5, 0), last=Baseline(), is_proven=True)
    assert (falling.base_bytes, falling.floor_bytes) == (5, 5)


def test_the_hosts_own_figure_is_trusted_if_it_appeared_with_the_host() -> None:
    came = baseline_of(7, floor=Reading(1, 0), base=Reading(2, 0, {7: 1}), last=Baseline(), is_proven=True)
    another = baseline_of(7, floor=Reading(1, 0, {7: 1}), base=Reading(2, 0, {7: 1}), last=Baseline(), is_proven=True)
    assert (came.own_base_bytes, another.own_base_bytes) == (1, None)
