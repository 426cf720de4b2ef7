"""The checker: a good history passes, and the smallest bad one for each part of each invariant does not."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from contracts.keys import ANONYMOUS
from contracts.tasks import FailureCode, keyed_task_id
from contracts.topology import DEGRADED
from tests.faults.checker import check
from tests.faults.history import (
    Artifact,
    History,
)
from tests.faults.story import Violation
from tests.kit.histories import (
    AGAIN,
    CLAIMED,
    CUT,
    DONE,
    GOOD,
    MEMORY,
    ON_DEGRADED,
    OUT_OF_MEMORY,
    PROOF,
    REFUSED,
    SECOND,
    WAITING,
    claimed,
    done,
    failed,
    fault,
    good,
    host,
    hosts,
    queue,
    requeued,
    rules,
    stored,
    submit,
    video,
    waiting,
)
from tests.kit.records import TASK_ID, after


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(GOOD, id="done"),
        pytest.param(
            good(
                revisions=AGAIN,
                artifacts=(video(1),),
            ),
            id="done-in-the-second-attempt",
        ),
        pytest.param(
            good(
                revisions=AGAIN,
                faults=(fault("kill-lane", 1.5, 1.5, "anisora-0"),),
                artifacts=(video(0), video(1)),
            ),
            id="a-killed-worker-leaves-its-video",
        ),
        pytest.param(
            good(
                revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.CANCELLED), 3)),
                artifacts=(),
                calls=(submit(), submit(kind="cancel", status=200)),
                queues=(),
            ),
            id="cancelled",
        ),
        pytest.param(
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED, memory=MEMORY), 3)
                ),
                faults=(fault("store-full", 0, 5),),
                artifacts=(),
            ),
            id="storage-failed",
        ),
        pytest.param(
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                queues=(),
                artifacts=(),
                calls=(submit(status=503, code="queue_overloaded", limit="wait"),),
            ),
            id="refused-after-a-wait",
        ),
        pytest.param(
            good(revisions=(), artifacts=(), calls=(submit("", 503, code="queue_overloaded", limit="depth"),)),
            id="refused-at-the-door",
        ),
        pytest.param(
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 44)),
                queues=(),
                artifacts=(),
                faults=(fault("kill-nats", 20, 43.5),),
            ),
            id="4-late-since-the-server-was-away",
        ),
        pytest.param(
            good(hosts=(hosts(0.4, host(8), holder=8), hosts(0.8, host(8)))), id="5-two-looks-that-do-not-agree"
        ),
        pytest.param(good(queues=(queue(0.5, TASK_ID), queue(0.9))), id="1-claimed-while-the-queue-was-being-read"),
        pytest.param(good(calls=(submit("", None),)), id="6-no-answer-so-it-may-run"),
        pytest.param(
            good(revisions=(), lost=GOOD.revisions, faults=(CUT,), artifacts=()),
            id="lost-with-the-tail",
        ),
        pytest.param(
            good(
                # it had ended, ran again, and was reported as done in between
                lost=stored((CLAIMED, 1), (DONE, 2)),
                revisions=stored((WAITING, 0), (requeued(CLAIMED, 12), 12), (REFUSED, 20)),
                calls=(submit(), submit(kind="poll", status=200, task_status="done", ended_at=after(2.5))),
                faults=(CUT,),
                queues=(),
            ),
            id="ended-in-the-tail-and-otherwise-afterwards",
        ),
    ],
)
def test_a_good_history_passes(history: History) -> None:
    assert check(history) == []


@pytest.mark.parametrize(
    ("rule", "history"),
    [
        pytest.param(0, good(gaps=("revision 3 was gone",)), id="0-a-gap"),
        pytest.param(0, good(missed=(TASK_ID,)), id="0-a-watch-missed-a-record"),
        pytest.param(1, good(revisions=(), artifacts=()), id="1-no-record-of-an-id"),
        pytest.param(1, good(revisions=stored((WAITING, 0), (CLAIMED, 1)), artifacts=()), id="1-never-ended"),
        pytest.param(
            1, good(revisions=stored((WAITING, 0), (CLAIMED, 1), (DONE, 2), (DONE, 3))), id="1-written-after-its-end"
        ),
        pytest.param(
            1, good(calls=(submit(), submit(kind="poll", status=200, task_status="failed"))), id="1-showed-another-end"
        ),
        pytest.param(
            1,
            good(revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.CANCELLED), 3)), artifacts=(), queues=()),
            id="1-cancelled-by-nobody",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (failed(WAITING, FailureCode.WORKER_LOST), 3)), artifacts=(), queues=()
            ),
            id="1-lost-a-worker-it-never-had",
        ),
        pytest.param(
            1,
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED, memory=MEMORY), 3)
                ),
                artifacts=(),
            ),
            id="1-storage-failed-on-a-good-store",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.STORAGE_FAILED), 3)),
                faults=(fault("store-full", 0, 5),),
                artifacts=(),
            ),
            id="1-storage-failed-without-a-reading",
        ),
        pytest.param(
            1,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.OUT_OF_MEMORY), 3)),
                artifacts=(),
            ),
            id="1-an-end-that-nothing-caused",
        ),
        pytest.param(1, good(queues=(queue(0.5),)), id="1-acked-before-it-was-claimed"),
        pytest.param(1, good(queues=(queue(0.5, "another"),)), id="1-acked-while-another-waits"),
        pytest.param(2, good(artifacts=()), id="2-no-video"),
        pytest.param(
            2,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, video=None), 2)), artifacts=()),
            id="2-done-without-a-video",
        ),
        pytest.param(
            2,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(OUT_OF_MEMORY, video=DONE.video), 3))),
            id="2-published-and-failed",
        ),
        pytest.param(2, good(artifacts=(video(sha256="cd"),)), id="2-another-video"),
        pytest.param(2, good(artifacts=(video(frames=0),)), id="2-does-not-play"),
        pytest.param(2, good(artifacts=(video(), video(1))), id="2-two-videos"),
        pytest.param(
            2,
            good(revisions=AGAIN, artifacts=(video(), video(1)), faults=(fault("stop-lane", 0, 9),)),
            id="2-two-videos-and-nobody-was-killed",
        ),
        pytest.param(
            2,
            good(revisions=AGAIN, artifacts=(video(), video(1)), faults=(fault("kill-lane", 0, 0.5, "anisora-0"),)),
            id="2-two-videos-and-it-was-killed-before",
        ),
        pytest.param(
            2,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.CANCELLED), 3)),
                calls=(submit(), submit(kind="cancel", status=200)),
            ),
            id="2-a-video-of-what-failed",
        ),
        pytest.param(
            2,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (DONE, 2), (done(SECOND, 24), 24)),
                artifacts=(video(), video(1)),
            ),
            id="2-published-twice",
        ),
        pytest.param(
            2,
            good(
                calls=(submit(keyed_task_id(ANONYMOUS, "k", 0), key="k"),),
                revisions=stored(
                    *((done(claimed(waiting(keyed_task_id(ANONYMOUS, "k", n)), 1), 2), 2) for n in (0, 1))
                ),
                artifacts=tuple(video(task_id=keyed_task_id(ANONYMOUS, "k", n)) for n in (0, 1)),
            ),
            id="2-one-key-two-tasks",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (claimed(WAITING, 1.5, "owner-2"), 1.5), (DONE, 2))),
            id="3-two-owners",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (requeued(CLAIMED, 22), 22), (DONE, 23))),
            id="3-a-stale-worker-settles",
        ),
        pytest.param(
            3,
            good(
                revisions=stored(
                    (WAITING, 0), (CLAIMED, 1), (requeued(CLAIMED, 5), 5), (SECOND, 23), (done(SECOND, 24), 24)
                ),
                artifacts=(video(1),),
            ),
            id="3-taken-away-while-its-lease-stood",
        ),
        pytest.param(3, good(revisions=stored((WAITING, 0), (DONE, 2))), id="3-done-and-never-claimed"),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, epoch=1), 2)), artifacts=(video(),)),
            id="3-done-at-an-epoch-that-nobody-claimed",
        ),
        pytest.param(
            3,
            good(
                revisions=stored((WAITING, 0), (CLAIMED, 1), (failed(CLAIMED, FailureCode.WORKER_LOST), 3)),
                artifacts=(),
            ),
            id="3-given-up-while-its-lease-stood",
        ),
        pytest.param(
            3,
            good(revisions=stored((WAITING, 0), (replace(CLAIMED, attempt=3), 1), (replace(DONE, attempt=3), 2))),
            id="3-a-third-attempt",
        ),
        pytest.param(4, good(queues=(queue(1.5, stream=DEGRADED, messages=26),)), id="4-too-deep"),
        pytest.param(
            4,
            good(revisions=stored((ON_DEGRADED, 0), (REFUSED, 32)), queues=(), artifacts=()),
            id="4-pending-too-long",
        ),
        pytest.param(
            4,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 32)),
                queues=(),
                artifacts=(),
                faults=(fault("kill-nats", 5, 8),),
            ),
            id="4-pending-too-long-after-the-server-was-back",
        ),
        pytest.param(
            4,
            good(
                revisions=stored(
                    (ON_DEGRADED, 0), (claimed(ON_DEGRADED, 31), 31), (done(claimed(ON_DEGRADED, 31), 32), 32)
                ),
                queues=(),
            ),
            id="4-claimed-too-late-and-run",
        ),
        pytest.param(5, good(hosts=(hosts(0.4, host(8)), hosts(0.8, host(8)))), id="5-not-its-slot"),
        pytest.param(5, good(hosts=(hosts(0.4, host(slot=None)), hosts(0.8, host(slot=None)))), id="5-no-slot"),
        pytest.param(
            5,
            good(hosts=tuple(hosts(at_s, host(7, "tiny-anisora", "tiny-phr00t")) for at_s in (0.4, 0.8))),
            id="5-two-models",
        ),
        pytest.param(
            5,
            good(revisions=stored((WAITING, 0), (CLAIMED, 1), (replace(DONE, swap=replace(PROOF, samples=1)), 2))),
            id="5-loaded-without-proof",
        ),
        pytest.param(
            6,
            good(calls=(submit("", 503, code="queue_overloaded", limit="depth"),)),
            id="6-refused-at-the-door-and-run",
        ),
        pytest.param(
            6,
            good(calls=(submit(status=503, code="queue_overloaded", limit="wait"),)),
            id="6-refused-after-a-wait-and-run",
        ),
        pytest.param(6, good(calls=(submit("", 422, code="validation_failed"),)), id="6-invalid-and-run"),
        pytest.param(6, good(calls=(submit(request=2),)), id="6-nobody-asked"),
        pytest.param(
            6,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                calls=(submit("", 503, code="queue_overloaded", limit="depth"),),
                queues=(),
                artifacts=(),
            ),
            id="6-refused-at-the-door-and-recorded",
        ),
        pytest.param(
            6,
            good(calls=(submit("", None, sent=False),)),
            id="6-never-sent",
        ),
        pytest.param(
            6,
            good(
                revisions=stored((ON_DEGRADED, 0), (REFUSED, 29.6)),
                queues=(),
                calls=(submit(status=503, code="queue_overloaded", limit="wait"),),
                artifacts=(Artifact(path=f"images/{TASK_ID}.ab", bytes=1, sha256="ab", frames=0),),
            ),
            id="6-the-image-of-what-was-refused",
        ),
        pytest.param(
            1,
            good(
                revisions=(),
                lost=GOOD.revisions,
                faults=(CUT,),
                artifacts=(),
                calls=(submit(), submit(kind="poll", status=200, ended_at=after(8.1))),
            ),
            id="answered-from-memory-after-it-was-lost",
        ),
        pytest.param(
            1,
            good(lost=stored((CLAIMED, 1)), revisions=stored((WAITING, 0)), faults=(CUT,), artifacts=(), queues=()),
            id="what-is-left-of-it-never-ends",
        ),
        pytest.param(
            1,
            good(
                calls=(
                    submit(),
                    submit(kind="look", status=200, task_status="pending", sent_at=after(8), ended_at=after(9)),
                )
            ),
            id="a-gateway-does-not-know-that-it-ended",
        ),
    ],
)
def test_a_bad_history_is_caught(rule: int, history: History) -> None:
    assert rule in rules(history), check(history)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda history: replace(history, revisions=history.revisions[::-1]), id="order"),
        pytest.param(lambda history: replace(history, calls=history.calls * 2), id="twice"),
    ],
)
def test_the_order_of_what_was_written_down_does_not_matter(change: Callable[[History], History]) -> None:
    assert check(change(GOOD)) == []


def test_a_violation_names_what_it_is_about() -> None:
    bad = good(revisions=(), artifacts=())
    assert check(bad) == [Violation(1, TASK_ID, "lost: a client was given the id, and there is no record")]
