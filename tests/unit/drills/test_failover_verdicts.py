"""The verdicts of `make failover`: each can fail."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from contracts import lifecycle
from contracts.tasks import FailureCode, GenerationTask, RoutingDecision, TaskStatus
from tests.bench.arrivals import Answer
from tests.drills.failover_moves import AFTER_MIN, Decided, Loss, Seen, Word, judge, move_of
from tests.kit.records import NOW, after, pending_task

LOSS = Loss(how="lane killed", model="anisora", worker="anisora-0", at=NOW, limit_s=1)
WARM_S = 5.0
BACK = [(WARM_S + 0.2 + number, "lane") for number in range(20)]
# a request to the lane before, one to the dead lane, and three to the degraded worker
COURSE = [(-1.0, "lane"), (0.1, "lane"), (0.6, "degraded: capacity"), (2, "degraded: quota"), (4, "degraded: manual")]
WORDS = [
    Word(after(-3), "anisora-0", True),
    Word(after(0.01), "anisora-0", True),  # it was on its way
    Word(after(0.05), "anisora-0", False),
    Word(after(1), "phr00t-0", True),
    Word(after(3), "anisora-0", False),
    Word(after(WARM_S), "anisora-0", True),
    Word(after(WARM_S + 1), "anisora-0", True),
]


def decided(course: Sequence[tuple[float, str]], *, model: str = "anisora", passed: bool = False) -> list[Decided]:
    return [
        Decided(
            f"{model}-{at_s}",
            model,
            RoutingDecision(at=after(at_s), forced_degraded=False, lanes=(), outcome=outcome, lanes_passed=passed),
        )
        for at_s, outcome in sorted(course)
    ]


def done(each: Decided) -> GenerationTask:
    route = "lane" if each.to_lane else "degraded"
    return replace(pending_task(each.task_id, route=route), status=TaskStatus.DONE)


def seen(course: Sequence[tuple[float, str]]) -> Seen:
    """A run with these requests, each of which was served."""
    all_decided = decided(course)
    return Seen(
        losses=[LOSS],
        answers=[Answer(sent_s=0, took_s=0, status=202, task_id=each.task_id) for each in all_decided],
        tasks={each.task_id: done(each) for each in all_decided},
        decided=all_decided,
        words=WORDS,
    )


GOOD = seen([*COURSE, *BACK])
LAST = GOOD.decided[-1].task_id


def missed(run: Seen) -> list[str]:
    return [figure.what for figure in judge(run) if not figure.is_met]


def test_a_good_run_is_met() -> None:
    figures = judge(GOOD)
    assert [round(figure.measured or 0.0, 3) for figure in figures] == [0, 0.6, 0, 0.2, 100]
    assert {figure.verdict for figure in figures} == {"met"}


def test_a_miss_says_by_how_much() -> None:
    late = seen([(0.1, "lane"), (1.25, "degraded: capacity"), *BACK])
    assert [figure.verdict for figure in judge(late) if not figure.is_met] == ["missed by 0.25 s"]
    low = seen([*COURSE, *BACK[:18], (40, "degraded: capacity"), (41, "degraded: capacity")])
    assert [figure.verdict for figure in judge(low) if not figure.is_met] == ["missed by 5.00 %"]


@pytest.mark.parametrize(
    ("course", "what"),
    [
        pytest.param([(0.1, "lane"), (1.01, "degraded: capacity"), *BACK], "until routing moves", id="late"),
        pytest.param([*COURSE, (3, "lane"), *BACK], "decisions for the dead lane after that", id="stray"),
        pytest.param(
            [*COURSE, *((at_s + 1, outcome) for at_s, outcome in BACK)], "from warm until routing is back", id="slow"
        ),
    ],
)
def test_what_is_missed(course: list[tuple[float, str]], what: str) -> None:
    assert missed(seen(course)) == [what]


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param({"route": "degraded"}, id="rerouted"),
        pytest.param({"status": TaskStatus.PROCESSING}, id="not-done"),
    ],
)
def test_what_is_not_served_warm(elsewhere: dict[str, object]) -> None:
    """At a share of exactly 95 % one of 20 may be; two may not."""
    tasks = dict(GOOD.tasks)
    for number, (at_s, _) in enumerate(BACK[5:7]):
        task_id = f"anisora-{at_s}"
        tasks[task_id] = replace(tasks[task_id], **elsewhere)
        share = judge(replace(GOOD, tasks=tasks))[-1]
        assert (share.measured, share.is_met) == (95 - 5 * number, number == 0)


def test_a_task_that_was_ever_sent_elsewhere_is_not_served_warm() -> None:
    later = [(at_s + 0.5, "degraded: capacity") for at_s, _ in BACK[:2]]
    again = [
        replace(each, task_id=f"anisora-{at_s}")
        for each, (at_s, _) in zip(decided(later, passed=True), BACK[:2], strict=True)
    ]
    share = judge(replace(GOOD, decided=[*GOOD.decided, *again]))[-1]
    assert (share.measured, share.note) == (90, "18 of 20")


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        pytest.param(replace(GOOD.answers[-1], status=503, code="x"), None, "1 x 503 x", id="refused"),
        pytest.param(
            replace(GOOD.answers[-1], status=0, code="ReadTimeout"), None, "1 x 0 ReadTimeout", id="no-answer"
        ),
        pytest.param(replace(GOOD.answers[-1], task_id="gone"), None, "1 x accepted, and no record", id="lost"),
        pytest.param(GOOD.answers[-1], FailureCode.WORKER_LOST, "1 x worker_lost", id="failed"),
    ],
)
def test_every_failed_request_counts(answer: Answer, code: FailureCode | None, why: str) -> None:
    tasks = dict(GOOD.tasks)
    if code is not None:
        tasks[LAST] = lifecycle.fail(pending_task(LAST), code=code, message="", now=NOW)
    failed = judge(replace(GOOD, answers=[*GOOD.answers[:-1], answer], tasks=tasks))[0]
    assert (failed.measured, failed.note, failed.is_met) == (1, why, False)


def test_a_task_that_did_not_end_counts_as_failed() -> None:
    tasks = dict(GOOD.tasks) | {LAST: pending_task(LAST)}
    assert judge(replace(GOOD, tasks=tasks))[0].note == "1 x pending"


@pytest.mark.parametrize(
    ("changes", "never"),
    [
        pytest.param({"decided": decided([(0.1, "lane")])}, 4, id="routing-never-moved"),
        pytest.param({"decided": decided(COURSE)}, 2, id="no-request-came-back"),
        pytest.param({"decided": decided([*COURSE, *BACK[: AFTER_MIN - 1]])}, 1, id="too-few-came-back"),
        pytest.param({"words": WORDS[:5]}, 2, id="never-warm-again"),
        pytest.param({"words": [word for word in WORDS if word.ready]}, 2, id="never-away"),
        pytest.param({"answers": []}, 1, id="nothing-was-sent"),
    ],
)
def test_what_was_never_seen_is_missed(changes: dict[str, object], never: int) -> None:
    verdicts = [figure.verdict for figure in judge(replace(GOOD, **changes))]
    assert verdicts.count("missed: never seen") == never


def test_where_nobody_saw_the_death_the_silence_alone_moves_routing() -> None:
    """The report of a supervisor that woke up later does not count."""
    unseen = replace(LOSS, how="lane killed, unseen", limit_s=3)
    reported_later = [word for word in WORDS if word.at != after(0.05)]
    by_silence = judge(replace(GOOD, losses=[unseen], words=reported_later))
    assert (by_silence[1].measured, by_silence[1].is_met) == (0.6, True)
    by_word = judge(replace(GOOD, losses=[unseen]))
    assert [figure.verdict for figure in by_word[1:3]] == ["missed: never seen"] * 2


def test_only_what_concerns_the_lane_counts() -> None:
    """Another model does not count, nor a task that its lanes passed on, nor anything before the loss or after the
    next one."""
    others = [
        *decided([(0.01, "degraded: capacity"), (3, "lane")], model="phr00t"),
        *decided([(0.02, "degraded: capacity")], passed=True),
        *decided([(-0.5, "degraded: capacity")]),
    ]
    alone = move_of(LOSS, GOOD.decided, WORDS)
    mixed = sorted([*GOOD.decided, *others], key=lambda each: each.decision.at)
    assert move_of(LOSS, mixed, WORDS) == alone
    assert len(alone.after) == 20
    assert len(move_of(LOSS, mixed, WORDS, until=after(WARM_S + 10)).after) == 10
    again = replace(LOSS, at=after(WARM_S + 10))
    run = replace(GOOD, losses=[LOSS, again])
    assert [figure.note for figure in judge(run) if figure.unit == "%"] == ["10 of 10", "0 of 0"]
