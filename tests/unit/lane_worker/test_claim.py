"""Which worker may run a message, rule by rule (design §4, Claim)."""

from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask
from lane_worker.runtime.claim import ClaimDecision, Drop, Expire, Mine, Reread, Take, claim_decision
from tests.kit.records import DECISION, NOW, after, pending_task, processing_task

QUEUED = pending_task()


def decide(
    queued: GenerationTask, record: GenerationTask | None, *, seconds: float = 1, revision: int | None = None
) -> ClaimDecision:
    there = (5 if record is not None else 0) if revision is None else revision
    return claim_decision(queued, record, revision=there, owner="owner-1", now=after(seconds))


def test_1_the_message_supplies_a_missing_record() -> None:
    assert decide(QUEUED, None) == Take(QUEUED, 0)


def test_1_a_record_that_was_deleted_takes_its_message_with_it() -> None:
    assert decide(QUEUED, None, revision=5) == Drop()


def test_2_epochs() -> None:
    assert decide(QUEUED, replace(QUEUED, epoch=1)) == Drop()
    assert decide(replace(QUEUED, epoch=1), QUEUED) == Reread()


def test_2_a_lane_drops_a_task_that_was_rerouted() -> None:
    rerouted = lifecycle.reroute(QUEUED, decision=DECISION, wait_s=29.5, now=after(30))
    assert decide(QUEUED, rerouted, seconds=31) == Drop()
    assert decide(rerouted, rerouted, seconds=31) == Take(rerouted, 5)
    # the degraded worker has the new message before the record that it read shows the move
    assert decide(rerouted, QUEUED, seconds=31) == Reread()


def test_2_another_model() -> None:
    """Two bodies with one Idempotency-Key came at once, and both are queued: the record decides which one runs."""
    other = replace(QUEUED, model="phr00t")
    assert decide(other, QUEUED) == Drop()
    assert decide(other, None) == Take(other, 0)


def test_3_a_claim_whose_answer_was_lost() -> None:
    mine = processing_task("owner-1")
    assert decide(QUEUED, mine) == Mine(mine, 5)


def test_4_given_back() -> None:
    """The message is delivered again before the sweeper acts: the worker that gave up must not run it once more."""
    released = lifecycle.release_lease(processing_task("owner-1"), reason="the host died", now=after(0.5))
    assert decide(QUEUED, released) == Drop()
    assert decide(QUEUED, processing_task("owner-1", lease_s=1)) == Drop()


def test_4_taken_or_ended() -> None:
    assert decide(QUEUED, processing_task("owner-2")) == Drop()
    ended = lifecycle.fail(QUEUED, code=FailureCode.CANCELLED, message="", now=NOW)
    assert decide(QUEUED, ended) == Drop()
    withdrawn = lifecycle.withdraw(replace(QUEUED, promised=False), now=NOW)
    assert decide(QUEUED, withdrawn) == Drop()


def test_5_overdue_on_the_degraded_route_only() -> None:
    degraded = replace(QUEUED, route="degraded")
    assert decide(degraded, degraded, seconds=29.999) == Take(degraded, 5)
    assert decide(degraded, degraded, seconds=30) == Expire(degraded, 5)
    assert decide(degraded, None, seconds=30) == Expire(degraded, 0)
    assert decide(QUEUED, QUEUED, seconds=31) == Take(QUEUED, 5)


def test_6_the_record_supplies_the_parameters() -> None:
    record = replace(QUEUED, parameters=replace(QUEUED.parameters, prompt="the record's"))
    assert decide(QUEUED, record) == Take(record, 5)
