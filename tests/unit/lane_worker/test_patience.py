"""A probe whose driver may hang: questions may stay without an answer, and no answer is used late."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from lane_worker.residence.patience import PatientProbe
from ops.machine.readings import Holder, Reading
from tests.kit.clock import let_pass
from tests.kit.support import BOUND_S, eventually


class Slow:
    """A probe that answers when the test says so, with the number of the question. It counts simultaneous questions."""

    name = "nvml"
    absolute_bytes = 1
    poll_s = deadline_s = 0.01
    trouble = ""

    def __init__(self) -> None:
        self.may_answer, self.was_asked = threading.Event(), threading.Event()
        self.asked = self.inside = self.most_inside = 0

    def read(self, pid: int | None) -> Reading:
        self.asked += 1
        number = self.asked
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.was_asked.set()
        self.may_answer.wait()
        self.inside -= 1
        return Reading(used_bytes=number, free_bytes=pid or 0)

    def holders(self) -> tuple[Holder, ...]:
        self.may_answer.wait()
        return (Holder(pid=1, used_bytes=None),)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.may_answer.set()
    for thread in threads():
        thread.join()


def threads() -> list[threading.Thread]:
    """Those that ask a probe."""
    return [thread for thread in threading.enumerate() if thread.name == "memory-probe"]


def patient_of(slow: Slow, answer_s: float = BOUND_S) -> PatientProbe:
    """It waits for an answer as long as a thread may be without a core, unless the test says otherwise."""
    return PatientProbe(slow, answer_s=answer_s)  # type: ignore[arg-type]  # its name is a plain text


async def test_an_answer_in_time(slow: Slow) -> None:
    slow.may_answer.set()
    patient = patient_of(slow)
    assert await patient.read(7) == Reading(used_bytes=1, free_bytes=7)
    assert await patient.read(None) == Reading(used_bytes=2, free_bytes=0)
    assert await patient.holders() == (Holder(pid=1, used_bytes=None),)


async def test_a_loop_that_was_held_up_for_longer_than_the_driver_may_take(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold_up() -> None:
        await asyncio.to_thread(slow.was_asked.wait)
        let_pass(2 * BOUND_S, monkeypatch)
        slow.may_answer.set()

    reading, _ = await asyncio.gather(patient_of(slow).read(7), hold_up())
    assert reading == Reading(used_bytes=1, free_bytes=7)


async def test_a_driver_that_hangs_costs_one_thread_and_no_answer_is_late(slow: Slow) -> None:
    patient = patient_of(slow, answer_s=0.02)
    for _ in range(5):
        assert await patient.read(1) is None
        assert await patient.holders() == ()
    await asyncio.to_thread(slow.was_asked.wait)
    assert (slow.asked, slow.most_inside) == (1, 1)
    hung = threads()
    assert [thread.daemon for thread in hung] == [True]
    slow.may_answer.set()
    hung[0].join()
    # not the answer to the first question, which is about another moment
    assert await patient_of(slow).read(1) == Reading(used_bytes=2, free_bytes=1)
    assert await eventually(lambda: patient.read(1)) == Reading(used_bytes=slow.asked, free_bytes=1)


async def test_questions_at_the_same_time_are_asked_one_by_one(slow: Slow) -> None:
    patient = patient_of(slow)
    asking = [asyncio.create_task(patient.read(number)) for number in range(3)]
    await asyncio.sleep(0)
    slow.may_answer.set()
    answers = [reading.free_bytes for reading in await asyncio.gather(*asking) if reading is not None]
    assert answers == [0, 1, 2]
    assert slow.most_inside == 1


async def test_a_caller_that_goes_away_leaves_the_next_one_its_turn(slow: Slow) -> None:
    patient = patient_of(slow)
    gone = asyncio.create_task(patient.read(1))
    await asyncio.to_thread(slow.was_asked.wait)
    gone.cancel()
    slow.may_answer.set()
    assert await patient.read(2) == Reading(used_bytes=2, free_bytes=2)
