"""The verdicts of `make regression`: each can fail; and what it sends is valid."""

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from contracts.generation.request import validate
from contracts.settings import load_settings
from tests.drills.regression import REQUESTS, Kind, Result, Seen, bodies, judge, result_of

ANSWERS: Mapping[tuple[Kind, int], int] = {("submit", 202): 198, ("submit", 503): 2, ("other", 200): 400}
GOOD = Seen(answers=ANSWERS, ends={"done": 198}, seconds=100)
BASELINE: Result = result_of(GOOD, rate=2)


def test_a_run_like_the_last_one_passes() -> None:
    assert [figure.what for figure in judge(GOOD, BASELINE) if not figure.is_met] == []
    assert (BASELINE.accepted_percent, BASELINE.submit_5xx_percent, BASELINE.other_5xx_percent) == (99, 1, 0)


@pytest.mark.parametrize(
    ("answers", "missed"),
    [
        pytest.param({("submit", 202): 199}, {"valid requests sent"}, id="too-few-requests"),
        pytest.param({("submit", 202): 197, ("submit", 422): 3}, {"accepted"}, id="refused-as-invalid"),
        pytest.param({("submit", 202): 1_970, ("submit", 429): 30}, {"accepted"}, id="refused-for-the-rate"),
        pytest.param(
            {("submit", 202): 195, ("submit", 503): 5},
            {"accepted", "of the submits answered with 5xx"},
            id="refused-by-overload",
        ),
        pytest.param(
            {("submit", 202): 195, ("submit", 0): 5},
            {"accepted", "of the submits answered with 5xx"},
            id="no-answer-counts-as-5xx",
        ),
        pytest.param(
            {("submit", 202): 200, ("other", 200): 395, ("other", 500): 5},
            {"of all other requests answered with 5xx"},
            id="polls-fail",
        ),
        pytest.param({}, {"valid requests sent", "accepted"}, id="nothing-was-sent"),
    ],
)
def test_a_regression_is_missed(answers: Mapping[tuple[Kind, int], int], missed: set[str]) -> None:
    """SC-004: 99 % accepted, and no more than 1 percentage point more of 5xx."""
    assert {figure.what for figure in judge(replace(GOOD, answers=answers), BASELINE) if not figure.is_met} == missed


def test_one_point_more_than_the_baseline_is_allowed() -> None:
    answers: Mapping[tuple[Kind, int], int] = {("submit", 202): 9_900, ("submit", 500): 100, ("other", 200): 1}
    assert all(
        figure.is_met for figure in judge(replace(GOOD, answers=answers), replace(BASELINE, submit_5xx_percent=0))
    )
    worse = dict(answers) | {("submit", 202): 9_899, ("submit", 500): 101}
    judged = judge(replace(GOOD, answers=worse), replace(BASELINE, submit_5xx_percent=0))
    assert [figure.verdict for figure in judged if "submits" in figure.what] == ["missed by 0.01 points"]


def test_every_request_is_valid_and_no_two_are_alike() -> None:
    catalog = load_settings().catalog("tiny")
    sent = list(bodies(catalog, REQUESTS))
    accepted = [validate(body, catalog) for body in sent]
    assert len({str(body) for body in sent}) == REQUESTS
    names = [each.model for each in accepted]
    assert names == ["anisora", "phr00t"] * (REQUESTS // 2)
    assert {"image" in body for body, name in zip(sent, names, strict=True) if name == "anisora"} == {True, False}
    # the same ones in every run
    assert sent == list(bodies(catalog, REQUESTS))
