"""What the supervisor does and reports, as tables; the quota file, and the last error of a log."""

from pathlib import Path

import pytest

from contracts.lanes import LaneState
from ops.lanes.plan import (
    CRASH_WINDOW_S,
    CRASHES,
    Death,
    Deny,
    Keep,
    LaneDenial,
    ReportedState,
    Seen,
    Silence,
    Start,
    Stop,
    Verdict,
    Want,
    after_death,
    in_turn,
    plan,
    report_of,
)
from ops.lanes.providers import how_it_ended, last_error
from ops.lanes.quota import Quota, QuotaError
from tests.kit.records import NOW

NOW_S = 1_000.0
A0, A1 = Want("anisora", "anisora-0"), Want("anisora", "anisora-1")
P0 = Want("phr00t", "phr00t-0")
ABSENT, GRANTED, WARM, STOPPING = Seen(), Seen("granted"), Seen("granted", warm=True), Seen("stopping")
NO_SLOT = Seen(denial=LaneDenial("capacity", "no slot", NOW_S + 1))
NO_LEAVE = Seen(denial=LaneDenial("quota", "not more than 2", NOW_S + 1))
TRY_AGAIN = Seen(denial=LaneDenial("capacity", "no slot", NOW_S))
ONE, NONE = (
    Deny("quota", "the quota file allows 1 of anisora"),
    Deny("quota", "the quota file allows 0 of anisora"),
)


@pytest.mark.parametrize(
    ("lanes", "quota", "expected"),
    [
        pytest.param([ABSENT, ABSENT, ABSENT], {}, [Start(), Start(), Start()], id="4-nothing-runs"),
        pytest.param([WARM, GRANTED, STOPPING], {}, [Keep(), Keep(), Keep()], id="2-all-is-well-or-leaving"),
        pytest.param([NO_SLOT, GRANTED, ABSENT], {}, [Deny("capacity", "no slot"), Keep(), Start()], id="3-no-slot"),
        pytest.param(
            [NO_LEAVE, ABSENT, WARM], {}, [Deny("quota", "not more than 2"), Start(), Keep()], id="3-by-quota"
        ),
        pytest.param([TRY_AGAIN, GRANTED, GRANTED], {}, [Start(), Keep(), Keep()], id="4-its-time-came"),
        pytest.param([ABSENT, ABSENT, ABSENT], {"anisora": 1}, [Start(), ONE, Start()], id="1-the-first-is-within"),
        pytest.param([WARM, WARM, WARM], {"anisora": 1}, [Keep(), Stop(), Keep()], id="1-the-last-is-surplus"),
        pytest.param([GRANTED, WARM, WARM], {"anisora": 1}, [Stop(), Keep(), Keep()], id="1-a-warm-one-stays"),
        pytest.param([ABSENT, GRANTED, WARM], {"anisora": 1}, [ONE, Keep(), Keep()], id="1-one-with-a-slot-stays"),
        pytest.param([STOPPING, ABSENT, WARM], {"anisora": 0}, [Keep(), NONE, Keep()], id="1-it-leaves-already"),
        pytest.param([STOPPING, WARM, WARM], {"anisora": 1}, [Keep(), Keep(), Keep()], id="1-one-leaves-one-stays"),
        pytest.param([NO_SLOT, WARM, WARM], {"anisora": 1}, [ONE, Keep(), Keep()], id="1-quota-before-capacity"),
        pytest.param([WARM, ABSENT, ABSENT], {"anisora": 5, "phr00t": 1}, [Keep(), Start(), Start()], id="4-room"),
    ],
)
def test_plan(lanes: list[Seen], quota: dict[str, int], expected: list[Verdict]) -> None:
    wanted = [A0, A1, P0]
    names = [want.name for want in wanted]
    verdicts = plan(wanted, dict(zip(names, lanes, strict=True)), quota, now_s=NOW_S)
    assert verdicts == dict(zip(names, expected, strict=True))
    assert list(verdicts) == names  # the first lane that asks gets the slot


def test_every_model_gets_its_first_lane_before_any_gets_a_second() -> None:
    assert in_turn({"anisora": 2, "phr00t": 1, "other": 0}) == [A0, P0, A1]


def silence(crashes: int, *, how: str = "status 1: no", again_in_s: float = 2.0) -> Silence:
    return Silence(tuple(NOW_S - number for number in range(crashes)), death(how, again_in_s=again_in_s))


def death(how: str = "signal 6, SIGABRT", *, again_in_s: float = 0) -> Death:
    return Death(how, 7, NOW, again_at_s=NOW_S + again_in_s)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (Deny("quota", "not more"), ReportedState(LaneState.QUOTA_DENIED, "not more")),
        (Deny("capacity", "no slot"), ReportedState(LaneState.CAPACITY_DENIED, "no slot")),
        (Silence(), ReportedState(LaneState.STARTING)),
        (
            silence(0, how="signal 9, SIGKILL"),
            ReportedState(LaneState.STARTING, "ended (signal 9, SIGKILL); again in 2.0 s"),
        ),
        (silence(CRASHES - 1), ReportedState(LaneState.STARTING, "ended (status 1: no); again in 2.0 s")),
        (
            silence(CRASHES),
            ReportedState(
                LaneState.CRASH_LOOPING,
                "it ended 3 times in a row before it was warm; the last: status 1: no; again in 2.0 s",
            ),
        ),
        (
            silence(CRASHES + 1, again_in_s=0),
            ReportedState(
                LaneState.CRASH_LOOPING,
                "it ended 4 times in a row before it was warm; the last: status 1: no; trying again",
            ),
        ),
    ],
)
def test_what_the_supervisor_reports_of_a_lane(about: Deny | Silence, expected: ReportedState) -> None:
    assert report_of(about, now_s=NOW_S) == expected


def test_crashes_count_until_the_lane_was_warm() -> None:
    now = Silence()
    for number in range(CRASHES):
        now = after_death(now, death(), was_warm=False, now_s=NOW_S + number)
    assert report_of(now, now_s=NOW_S).state is LaneState.CRASH_LOOPING
    now = after_death(now, death(), was_warm=True, now_s=NOW_S)
    assert now == Silence(last=death())


def test_crashes_of_long_ago_do_not_count() -> None:
    now = Silence()
    for number in range(CRASHES):
        now = after_death(now, death(), was_warm=False, now_s=number * (CRASH_WINDOW_S / 2 + 1))
    assert len(now.crashes) == CRASHES - 1


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ('{"event": "lane_state", "level": "info"}\n', ""),
        ("{}\nError: slot cpu-0 is held by process 7\n\n", "slot cpu-0 is held by process 7"),
        (
            '{"event": "not_warm", "level": "error", "error": "no such folder"}\n{"event": "x", "level": "info"}',
            "not_warm: no such folder",
        ),
        ('{"event": "worse", "level": "critical"}', "worse"),
        ('  File "x.py"\nValueError: bad\n{"event": "lane_left", "level": "info"}', "ValueError: bad"),
        ("{half a line", "{half a line"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_the_last_error_of_a_log(log: str, expected: str) -> None:
    assert last_error(log) == expected


def test_how_a_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "lane.log"
    log.write_text("Error: of an earlier run\n")
    assert how_it_ended(-9, log) == "signal 9, SIGKILL"  # it could not report an error any more
    assert how_it_ended(-63, log) == "signal 63"
    assert how_it_ended(0, log) == "status 0"
    assert how_it_ended(1, log) == "status 1: of an earlier run"
    assert how_it_ended(1, tmp_path / "none.log") == "status 1"


MODELS = ("anisora", "phr00t")


def test_a_quota_file(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    path.write_text('{"max_lanes": {"anisora": 1}}')
    quota = Quota(path, MODELS)
    assert quota.max_lanes == {"anisora": 1}
    assert not quota.poll()
    path.write_text('{"max_lanes": {"anisora": 1, "phr00t": 0}}')
    assert quota.poll()
    assert quota.max_lanes == {"anisora": 1, "phr00t": 0}
    path.write_text(' {"max_lanes": {"anisora": 1, "phr00t": 0}}')
    assert not quota.poll()  # another text, the same limits


def test_no_quota_file_is_no_limit() -> None:
    quota = Quota(None, MODELS)
    assert not quota.poll()
    assert quota.max_lanes == {}


MISTAKES = [
    ("", "has a mistake"),
    ("[]", "has a mistake"),
    ("{}", "max_lanes"),
    (b"\xff", "has a mistake"),
    ('{"max_lanes": {"anisora": -1}}', "max_lanes"),
    ('{"max_lanes": {"anisora": 1.5}}', "max_lanes"),
    ('{"max_lanes": {"anisora": true}}', "max_lanes"),
    ('{"max_lanes": {}, "min_lanes": {}}', "min_lanes"),
    ('{"max_lanes": {"sora": 1}}', "names sora; there are anisora, phr00t"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_in_the_quota_file_is_reported_and_changes_nothing(
    text: str | bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "quota.json"
    path.write_text('{"max_lanes": {"anisora": 1}}')
    quota = Quota(path, MODELS)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(QuotaError, match=expected) as said:
        Quota(path, MODELS)
    assert str(path) in str(said.value)
    with pytest.raises(QuotaError, match=expected):
        quota.poll()
    assert quota.max_lanes == {"anisora": 1}
    assert not quota.poll()  # said once
    path.write_text('{"max_lanes": {"anisora": 2}}')
    assert quota.poll()


def test_a_quota_file_that_goes_and_comes(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    path.write_text('{"max_lanes": {"anisora": 1}}')
    quota = Quota(path, MODELS)
    path.unlink()
    with pytest.raises(QuotaError, match="cannot read"):
        quota.poll()
    assert not quota.poll()
    path.write_text('{"max_lanes": {}}')
    assert quota.poll()
    assert quota.max_lanes == {}
