"""What a leader remembers between two choices: costs, slices, and charges."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from contracts.order import Choice, OnCard, OrderTally, Policy, waiting_of
from contracts.tasks import FailureCode, GenerationTask, Priority, WaitingGroup
from lane_worker.runtime.order import SLICE_ENDS, Order, OrderedRunner, slice_end
from lane_worker.runtime.outcome import GaveUp, Result, Succeeded, Unsuccessful
from tests.kit.measured import Measured
from tests.kit.records import NOW, after, pending_task
from tests.kit.steered import MEMORY, RECEIPT, SteeredRunner

SWAP = replace(RECEIPT, release_s=1.0, verify_s=0.5, load_s=2.5)


def task(name: str, *, queued_s: float = 0.0, caller: str = "one") -> GenerationTask:
    """Named by its model's first letter."""
    model = {"a": "anisora", "p": "phr00t"}[name[0]]
    return pending_task(
        name, model=model, route="degraded", caller=caller, queued_at=after(queued_s), deadline_at=after(queued_s + 30)
    )


class Card:
    """An order, and what is loaded."""

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 - it is frozen
        self.model: str | None = None
        self.order = Order(policy, resident=lambda: self.model)

    def chosen(self, *tasks: GenerationTask, at_s: float) -> tuple[str, tuple[int, ...]]:
        found = self.order.choose([waiting_of(each) for each in tasks], now=after(at_s))
        assert found is not None
        return found[0].removesuffix(".0"), found[1].rules

    def run(self, done: GenerationTask, *, from_s: float, seconds: float, result: Result) -> None:
        """It is claimed at *from_s*, and its run ends after *seconds*."""
        self.order.starts(done, now=after(from_s))
        self.model = done.model
        self.order.ran(done, result, seconds=seconds, now=after(from_s + seconds))


def succeeded(*, swapped: bool) -> Succeeded:
    return Succeeded(
        path=Path(),
        video=None,  # type: ignore[arg-type]  # nobody looks
        memory=MEMORY,
        started_at=NOW,
        inference_s=0.1,
        encode_s=0.1,
        swap=SWAP if swapped else None,
    )


def test_a_slice_is_as_long_as_what_was_measured_asks_for() -> None:
    """A run of 2 s and a swap of 4 s: 30 s from the end of the load, which was at second 4."""
    card = Card()
    first = task("a1")
    assert card.chosen(first, at_s=0) == ("a1", (4, 7))
    card.run(first, from_s=0, seconds=6, result=succeeded(swapped=True))
    older, younger = task("p1", queued_s=5), task("a2", queued_s=6)
    assert card.chosen(older, younger, at_s=33.9) == ("a2", (4, 6))
    assert card.chosen(older, younger, at_s=34) == ("p1", (4, 7))


def test_what_never_succeeded_is_not_what_a_run_takes() -> None:
    card = Card()
    first = task("a1")
    card.chosen(first, at_s=0)
    card.run(first, from_s=0, seconds=6, result=Unsuccessful(FailureCode.INFERENCE_FAILED, "no", MEMORY, SWAP))
    # the swap was measured, a run was not: 4 s / 0.2
    older, younger = task("p1", queued_s=5), task("a2", queued_s=6)
    assert card.chosen(older, younger, at_s=23.9)[0] == "a2"
    assert card.chosen(older, younger, at_s=24)[0] == "p1"


def test_what_the_order_made_of_the_card_is_counted() -> None:
    card = Card(Policy(order="fifo"))
    for number, name in enumerate(("a1", "a2", "p1")):
        done = task(name)
        card.chosen(done, at_s=10 * number)
        card.run(done, from_s=10 * number, seconds=2 if name == "a2" else 6, result=succeeded(swapped=name != "a2"))
    assert card.order.state(after(30)).tally == OrderTally(
        tasks=3, swaps=2, running_s=6, swapping_s=8, slice_ends={"arrival": 1}
    )


def test_without_measurements_it_is_first_in_first_out() -> None:
    card = Card()
    card.model = "anisora"
    assert card.chosen(task("p1"), task("a1", queued_s=1), at_s=2) == ("p1", (4, 7))


def test_whose_host_has_died_has_no_slice() -> None:
    card = Card()
    first = task("a1")
    card.chosen(first, at_s=0)
    card.run(first, from_s=0, seconds=6, result=succeeded(swapped=True))
    card.model = None
    assert card.chosen(task("p1", queued_s=5), task("a2", queued_s=6), at_s=7) == ("p1", (4, 7))


def test_only_what_was_started_is_charged() -> None:
    card = Card()
    chosen = task("a1")
    card.chosen(chosen, at_s=0)  # and withdrawn before it was claimed
    assert card.chosen(task("a2"), task("a3", queued_s=1, caller="two"), at_s=2)[0] == "a2"
    card.run(task("a2"), from_s=2, seconds=6, result=succeeded(swapped=True))
    card.run(task("a9"), from_s=8, seconds=6, result=GaveUp("nobody chose it"))
    assert card.chosen(task("a4"), task("a3", queued_s=1, caller="two"), at_s=9)[0] == "a4"  # nothing was measured then
    card.run(task("a4"), from_s=9, seconds=2, result=succeeded(swapped=False))
    assert card.chosen(task("a5"), task("a3", queued_s=1, caller="two"), at_s=12)[0] == "a3"


@pytest.mark.parametrize("policy", [Policy(), Policy(order="fifo")], ids=lambda policy: policy.order)
@pytest.mark.parametrize("loaded", [None, "anisora", "phr00t"])
def test_the_only_one_is_taken_as_it_would_be_chosen(policy: Policy, loaded: str | None) -> None:
    chosen, taken = Card(policy), Card(policy)
    for card in (chosen, taken):
        card.run(task("a1"), from_s=0, seconds=2, result=succeeded(swapped=False))
        card.model = loaded
    only = task("a2", queued_s=1, caller="two")
    assert chosen.chosen(only, at_s=3)[0] == "a2"
    taken.order.take_only(waiting_of(only))
    for card in (chosen, taken):
        card.run(only, from_s=3, seconds=2, result=succeeded(swapped=False))
    assert taken.order.state(after(5)) == chosen.order.state(after(5))
    assert taken.order.state(after(5)).callers == {"two": 2.0}


def test_the_decision_says_what_waited() -> None:
    card = Card(Policy(order="fifo"))
    card.model = "phr00t"
    low = replace(task("p1", queued_s=3), priority=Priority.BACKGROUND)
    found = card.order.choose([waiting_of(each) for each in (low, task("a1"), task("a2", queued_s=1))], now=after(4))
    assert found is not None
    decision = found[1]
    assert (decision.at, decision.order, decision.rules, decision.loaded) == (after(4), "fifo", (2,), "phr00t")
    assert decision.waiting == (
        WaitingGroup(model="anisora", priority=Priority.STANDARD, count=2, oldest_s=4),
        WaitingGroup(model="phr00t", priority=Priority.BACKGROUND, count=1, oldest_s=1),
    )


def test_what_comes_after_what_runs_is_known_while_it_runs() -> None:
    """Its slice ends at second 34; what runs then ends at 36."""
    card = Card()
    card.run(task("a1"), from_s=0, seconds=6, result=succeeded(swapped=True))
    others = [waiting_of(task("p1", queued_s=20)), waiting_of(task("a3", queued_s=21))]
    assert card.order.next_model(others) is None, "nothing runs"
    card.order.starts(task("a2", queued_s=3), now=after(33))
    assert card.order.next_model(others) == "phr00t", "the slice is over by then"
    assert card.order.next_model(others[1:]) is None, "its own model goes on"
    assert card.order.next_model([]) is None
    assert card.order.next_model([replace(others[0], deadline_s=after(35).timestamp())]) is None, "it expires before"


def test_nothing_is_expected_before_the_model_of_what_runs_is_loaded() -> None:
    card = Card()
    card.run(task("a1"), from_s=0, seconds=6, result=succeeded(swapped=True))
    back = [waiting_of(task("a3", queued_s=21))]
    card.order.starts(task("p1", queued_s=3), now=after(40))
    assert card.order.next_model(back) is None, "its own files are being read"
    card.model = "phr00t"
    assert card.order.next_model(back) == "anisora"


async def test_the_runner_notes_what_it_runs(tmp_path: Path) -> None:
    """By the clock of this machine: what was chosen and run is charged to its caller."""
    card = Card()
    runner = SteeredRunner(tmp_path)
    runner.may_end.set()
    now = datetime.now(UTC)

    def queued(name: str, caller: str, seconds_ago: float) -> GenerationTask:
        at = now - timedelta(seconds=seconds_ago)
        return replace(task(name, caller=caller), queued_at=at, deadline_at=at + timedelta(seconds=30))

    first, second, third = queued("a1", "one", 3), queued("a2", "one", 2), queued("a3", "two", 1)
    ordered = OrderedRunner(runner, card.order)
    for each in (first, second):
        card.order.choose([waiting_of(each)], now=now)
        await ordered.run(each, None, lambda _: None)
        card.model = "anisora"
    assert runner.ran == [first, second]
    found = card.order.choose([waiting_of(each) for each in (second, third)], now=datetime.now(UTC))
    assert found is not None
    assert found[0] == third.message_id
    ordered.stop("a1")
    assert runner.stopped.is_set()


@pytest.mark.parametrize("order", ["fifo", "swap-aware"])
def test_nothing_that_may_start_is_nothing(order: str) -> None:
    card = Card(Policy(order="fifo") if order == "fifo" else Policy())
    assert card.order.choose([waiting_of(task("a1"))], now=after(30)) is None


@pytest.mark.parametrize(
    ("waits", "rules", "cause"),
    [
        pytest.param([], (4, 7), "none_waits", id="nothing-of-it-waits"),
        pytest.param([task("a1")], (4, 7), "time", id="its-slice-is-over"),
        pytest.param([task("a1")], (4, 5), "deadline", id="another-would-expire"),
        pytest.param([replace(task("a1"), priority=Priority.BACKGROUND)], (4, 7), "class", id="a-higher-class"),
        pytest.param([task("a1", queued_s=-30)], (4, 7), "none_waits", id="what-is-overdue-does-not-wait"),
        pytest.param([task("a1")], (2,), "arrival", id="no-slices"),
    ],
)
def test_what_ended_a_slice(waits: list[GenerationTask], rules: tuple[int, ...], cause: str) -> None:
    following = waiting_of(task("p1"))
    waiting = [following, *map(waiting_of, waits)]
    found = slice_end(Choice(following, rules), waiting, loaded=OnCard("anisora", 0.0), now_s=after(0).timestamp())
    assert found == cause
    assert cause in SLICE_ENDS


def test_a_slice_that_goes_on_has_no_end() -> None:
    following = waiting_of(task("p1"))
    assert slice_end(Choice(following, (4, 6)), [following], loaded=OnCard("phr00t", 0.0), now_s=0.0) is None
    assert slice_end(Choice(following, (4, 7)), [following], loaded=None, now_s=0.0) is None


def test_slices_that_end_are_counted(measured: Measured) -> None:
    card = Card()
    first, second = task("a1"), task("p1", queued_s=1)
    card.chosen(first, at_s=0)
    card.run(first, from_s=0, seconds=6, result=succeeded(swapped=True))
    card.chosen(second, at_s=7)
    before = measured.value("warmlane.order.slices", cause="none_waits")
    card.run(second, from_s=7, seconds=6, result=succeeded(swapped=True))
    assert measured.value("warmlane.order.slices", cause="none_waits") == before + 1
