"""The verdicts and the report of `make bench`: an aim can be missed, and what was not measured is never met."""

from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from tests.bench.aims import AIMS, REASONS, UNKNOWN, Aim, ratio
from tests.bench.command import command
from tests.bench.dispatch import delay_ms
from tests.bench.load import LoadFailed
from tests.bench.names import (
    BARE,
    BARE_JSON,
    BARE_SWAP,
    CELERY,
    DIRECT,
    FRESH,
    LIVE,
    NO_OP,
    REFUSAL,
    TASKIQ,
    TASKIQ_KV,
    WARMLANE,
    at_times,
    finished,
)
from tests.bench.report import judge, judge_all, markdown, plot, wins
from tests.bench.results import Absent, Part, Results, Series

DOCS = Path(__file__).parents[3] / "docs" / "benchmarks"


def part(name: str, *measured: tuple[str, str, tuple[float, ...]], absent: tuple[Absent, ...] = ()) -> Part:
    series = tuple(Series(contender=who, figure=what, values=values) for who, what, values in measured)
    return Part(name=name, title=name.title(), series=series, absent=absent)


def aim(name: str) -> Aim:
    return next(each for each in AIMS if each.name == name)


ACCEPT = part(
    "accept",
    (WARMLANE, "per_s", (80.0, 90.0, 100.0)),
    (BARE, "per_s", (100.0, 100.0, 100.0)),
    (CELERY, "per_s", (30.0, 40.0, 50.0)),
    (TASKIQ, "per_s", (20.0, 20.0, 200.0)),
    (TASKIQ_KV, "per_s", (80.0, 60.0, 50.0)),
    (WARMLANE, "p99_ms", (20.0, 20.0, 20.0)),
    (BARE, "p99_ms", (10.0, 10.0, 10.0)),
)
POLL = part("poll", (LIVE, "per_s", (70.0,)), (BARE_JSON, "per_s", (100.0,)))
DISPATCH = part(
    "dispatch",
    (WARMLANE, "p50_ms", (2.0, 3.0, 9.0)),
    (CELERY, "p50_ms", (2.0, 3.5, 9.0)),
    (WARMLANE, "all_p99_ms", (15.0,)),
)
OVERHEAD = part("overhead", (WARMLANE, "p50_ms", (390.0, 440.0, 1320.0)), (DIRECT, "p50_ms", (300.0, 400.0, 1200.0)))
SWAP = part(
    "swap",
    (WARMLANE, "p50_ms", (1150.0,)),
    (BARE_SWAP, "p50_ms", (1000.0,)),
    (FRESH, "p50_ms", (9200.0,)),
)
REFUSALS = part("refusals", (REFUSAL, "per_s", (50.0, 60.0, 10.0)), (NO_OP, "per_s", (100.0, 100.0, 100.0)))
OVERLOAD = part(
    "overload", (at_times(10), "refused_p99_ms", (19.0, 20.0, 99.0)), (at_times(5), "refused_p99_ms", (30.0,))
)


def grown(what: str, few: int, figure: str, at_few: float, at_many: float) -> Part:
    return part(
        "tasks",
        (finished(what, few), figure, (at_few,) * 3),
        (finished(what, 100_000), figure, (at_many, 1.0, at_many)),
    )


@pytest.mark.parametrize(
    ("name", "of", "measured"),
    [
        ("accept_limit", ACCEPT, 0.9),
        ("accept_peer", ACCEPT, 1.5),
        ("accept_p99", ACCEPT, 2.0),
        ("poll_live", POLL, 0.7),
        ("dispatch_p50", DISPATCH, 3.0),
        ("dispatch_peer", DISPATCH, 1.0),
        ("dispatch_p99", DISPATCH, 15.0),
        ("overhead", OVERHEAD, 1.1),
        ("swap", SWAP, 1.15),
        ("refusals", REFUSALS, 0.5),
        ("refusal_p99", OVERLOAD, 20.0),
        ("growth_accept", grown("accept", 10, "per_s", 100.0, 90.0), 0.9),
        ("growth_poll_live", grown("poll, live", 10, "per_s", 100.0, 99.0), 0.99),
        ("growth_poll_just_finished", grown("poll, just finished", 10, "per_s", 100.0, 120.0), 1.2),
        ("growth_poll_old", grown("poll, old", 1_000, "per_s", 100.0, 90.0), 0.9),
        ("growth_dispatch", grown("dispatch", 10, "p50_ms", 4.5, 5.0), 0.9),
    ],
)
def test_an_aim_that_is_met(name: str, of: Part, measured: float) -> None:
    verdict = judge(aim(name), of)
    assert verdict.measured == pytest.approx(measured)
    assert verdict.is_met


@pytest.mark.parametrize(
    ("name", "of", "outcome"),
    [
        (
            "accept_limit",
            part("accept", (WARMLANE, "per_s", (67.5,)), (BARE, "per_s", (100.0,))),
            "missed by 25 %",
        ),
        ("accept_peer", part("accept", (WARMLANE, "per_s", (30.0,)), (TASKIQ_KV, "per_s", (60.0,))), "missed by 50 %"),
        ("accept_p99", part("accept", (WARMLANE, "p99_ms", (30.0,)), (BARE, "p99_ms", (10.0,))), "missed by 50 %"),
        ("poll_live", part("poll", (LIVE, "per_s", (69.999,)), (BARE_JSON, "per_s", (100.0,))), "missed by 0.00143 %"),
        ("dispatch_p50", part("dispatch", (WARMLANE, "p50_ms", (3.3,))), "missed by 10 %"),
        ("dispatch_p99", part("dispatch", (WARMLANE, "all_p99_ms", (45.0,))), "missed by 200 %"),
        (
            "overhead",
            part("overhead", (WARMLANE, "p50_ms", (484.0,)), (DIRECT, "p50_ms", (400.0,))),
            "missed by 10 %",
        ),
        (
            "swap",
            part("swap", (WARMLANE, "p50_ms", (2300.0,)), (BARE_SWAP, "p50_ms", (1000.0,))),
            "missed by 100 %",
        ),
        ("refusals", part("refusals", (REFUSAL, "per_s", (25.0,)), (NO_OP, "per_s", (100.0,))), "missed by 50 %"),
        ("refusal_p99", part("overload", (at_times(10), "refused_p99_ms", (30.0,))), "missed by 50 %"),
        ("growth_accept", grown("accept", 10, "per_s", 100.0, 45.0), "missed by 50 %"),
        ("growth_poll_live", grown("poll, live", 10, "per_s", 100.0, 45.0), "missed by 50 %"),
        ("growth_poll_old", grown("poll, old", 1_000, "per_s", 100.0, 45.0), "missed by 50 %"),
        ("growth_dispatch", grown("dispatch", 10, "p50_ms", 4.5, 10.0), "missed by 50 %"),
    ],
)
def test_an_aim_that_is_missed_stays_in_the_report(name: str, of: Part, outcome: str) -> None:
    verdict = judge(aim(name), of)
    assert (verdict.outcome, verdict.is_met) == (outcome, False)
    row = next(line for line in report(of).splitlines() if verdict.aim.what in line)
    assert outcome in row
    assert row.endswith(f"| {REASONS.get(name, UNKNOWN)} |")


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("accept_peer", part("accept", (WARMLANE, "per_s", (60.0,)))),
        ("accept_limit", part("accept", (WARMLANE, "per_s", (60.0,)))),
        ("accept_limit", part("accept", (WARMLANE, "per_s", (float("nan"),)), (BARE, "per_s", (100.0,)))),
        ("accept_limit", None),
        ("dispatch_p50", part("dispatch", (CELERY, "p50_ms", (1.0,)))),
        ("overhead", part("overhead", (WARMLANE, "p50_ms", (1.0,)))),
        ("swap", part("swap", (WARMLANE, "p50_ms", (1.0,)), (FRESH, "p50_ms", (1.0,)))),
        ("refusal_p99", part("overload", (at_times(5), "refused_p99_ms", (1.0,)))),
        ("growth_poll_old", part("tasks", (finished("poll, old", 100_000), "per_s", (1.0,)))),
    ],
)
def test_what_was_not_measured_is_not_met(name: str, of: Part | None) -> None:
    verdict = judge(aim(name), of)
    assert not verdict.is_met
    assert verdict.outcome.startswith("not judged: ")


def test_a_ratio_is_that_of_the_rounds() -> None:
    """The machine was twice as slow in the second round, for both."""
    of = part("accept", (WARMLANE, "per_s", (90.0, 45.0, 80.0)), (BARE, "per_s", (100.0, 50.0, 100.0)))
    assert ratio(of, "per_s", WARMLANE, BARE) == pytest.approx(0.9)


def test_what_the_limit_itself_could_reach_stands_beside_the_verdicts() -> None:
    assert (
        "the bare limit for that of the best peer that stores the message alone | 2.50 | | for comparison |"
        in report(ACCEPT)
    )
    assert "stores the message alone | 2.50" not in report(part("accept", (BARE, "per_s", (100.0,))))


def test_what_starting_anew_costs_stands_beside_the_verdicts() -> None:
    assert "a new process for each task for degraded alternation | 8.00 | | for comparison |" in report(SWAP)


def test_the_cpu_time_that_growth_costs_stands_beside_the_verdicts() -> None:
    text = report(grown("accept", 10, "cpu_s", 2.0, 4.0))
    assert "growth: CPU time of accept with 10 finished tasks for that with 100,000 | 0.50 | | for comparison |" in text


def test_a_peer_that_wins_is_reported() -> None:
    of = part(
        "accept",
        (WARMLANE, "per_s", (100.0,)),
        (CELERY, "per_s", (90.0,)),
        (TASKIQ, "per_s", (1200.0,)),
        (WARMLANE, "p99_ms", (5.0,)),
        (CELERY, "p99_ms", (4.0,)),
        (TASKIQ, "p99_ms", (5.0,)),
        (WARMLANE, "busy_percent", (5.0,)),
        (TASKIQ, "busy_percent", (1.0,)),
    )
    assert list(wins(of)) == [
        f"accept, p99, ms: {CELERY} wins, 4.00 against 5.00.",
        f"accept, requests/s: {TASKIQ} wins, 1,200 against 100.",
    ]
    assert all(f"- {sentence}" in report(of) for sentence in wins(of))


def test_a_peer_that_was_not_run_is_reported_with_the_reason() -> None:
    text = report(part("accept", (WARMLANE, "per_s", (1.0,)), absent=(Absent(CELERY, "there is no redis-server"),)))
    assert f"- {CELERY} was not run: there is no redis-server" in text


@pytest.mark.parametrize(("taken", "is_shared"), [((3.0, 8.0), False), ((3.0, 60.0), True)])
def test_a_shared_machine_is_reported(taken: tuple[float, ...], is_shared: bool) -> None:
    text = report(part("accept", (WARMLANE, "others_percent", taken)))
    assert f"({taken[0]:.0f} to {taken[1]:.0f} %)" in text
    assert ("It is shared" in text) == is_shared


def test_a_table_has_medians_and_ranges() -> None:
    assert f"| {WARMLANE} | 90 (80 to 100) | 20.00 (20.00 to 20.00) |" in report(ACCEPT)


def test_the_same_part_is_the_same_plot(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png"):
        plot(ACCEPT, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert all(name in drawn for name in (WARMLANE, BARE, CELERY, TASKIQ))


def report(*parts: Part) -> str:
    return markdown(Results(facts={"when": "now"}, parts=parts))


def test_a_dispatch_counts_from_the_publish_to_the_first_step() -> None:
    timeline = [
        {"event": event, "at": f"2026-01-01T00:00:00.{at_ms:03}Z"}
        for event, at_ms in (("accepted", 0), ("claim", 4), ("inference_started", 6), ("finish", 90))
    ]
    task = {"status": "done", "queued_at": "2026-01-01T00:00:00.000Z", "timeline": timeline, "error": None}
    assert delay_ms(task) == pytest.approx(6.0)
    with pytest.raises(LoadFailed, match="a task ended as failed: out of memory"):
        delay_ms(task | {"status": "failed", "error": "out of memory"})


def test_the_committed_report_is_that_of_the_committed_values() -> None:
    results = msgspec.json.decode((DOCS / "results.json").read_bytes(), type=Results)
    assert (DOCS / "README.md").read_text() == markdown(results), "python -m tests.bench --again writes it"
    verdicts = judge_all(results)
    # a contender that was not run is named there, with the reason
    complete = {part.name for part in results.parts if not part.absent}
    not_judged = [each.aim for each in verdicts if each.outcome.startswith("not judged")]
    assert [each.name for each in not_judged if each.part in complete] == []
    assert [each.aim.name for each in verdicts if each.reason == UNKNOWN] == []


def test_a_part_that_is_measured_again_replaces_itself_alone() -> None:
    before = Results(facts={"machine": "this"}, parts=(ACCEPT, DISPATCH))
    again = part("accept", (WARMLANE, "per_s", (1.0,)))
    both = before.replaced_by(Results(facts={"machine": "this"}, parts=(POLL, again)))
    assert both.parts == (again, POLL, DISPATCH)


def test_a_part_of_another_machine_stays_and_says_so() -> None:
    facts = {"machine": "this", "rounds": "5"}
    moved = Results(facts=facts, parts=(ACCEPT, DISPATCH)).replaced_by(
        Results(facts=facts | {"machine": "another"}, parts=(POLL, DISPATCH))
    )
    assert [(each.name, each.elsewhere) for each in moved.parts] == [
        ("accept", {"machine": "this"}),
        ("poll", {}),
        ("dispatch", {}),
    ]
    assert "- Here machine was another than under How: this." in markdown(moved)
    back = moved.replaced_by(Results(facts=facts, parts=(DISPATCH,)))
    assert [(each.name, each.elsewhere) for each in back.parts] == [
        ("accept", {}),
        ("poll", {"machine": "another"}),
        ("dispatch", {}),
    ]


def test_the_report_can_be_written_again_and_says_what_is_missed(tmp_path: Path) -> None:
    missed = part("dispatch", (WARMLANE, "p50_ms", (33.0,)), (WARMLANE, "all_p99_ms", (1.0,)))
    (tmp_path / "results.json").write_bytes(msgspec.json.encode(Results(facts={}, parts=(missed,))))
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(command, ["--again", "--out", str(tmp_path)])
    assert (result.exit_code, "missed by 1e+03 %" in result.output) == (0, True), result.output
    assert (tmp_path / "README.md").is_file()
    strict = CliRunner().invoke(command, ["--again", "--strict", "--out", str(tmp_path)])
    assert strict.exit_code == 1
