from typing import Final

import pytest

from lane_worker.runtime.streak import (
    REST_MAX_S,
    Advice,
    Renew,
    Rest,
    Serve,
    Streak,
    advice,
    failed,
    not_loaded,
    renewed,
    rested,
)

FAILED_ONCE: Final = failed(Streak())


@pytest.mark.parametrize(
    ("streak", "renew_after", "expected"),
    [
        pytest.param(Streak(), 3, Serve(), id="1-nothing-failed"),
        pytest.param(Streak(failures=99), 0, Serve(), id="1-never"),
        pytest.param(renewed(Streak(failures=3)), 3, Serve(), id="1-fresh"),
        pytest.param(failed(renewed(Streak(failures=3))), 3, Rest(5), id="2-also-in-a-fresh-process"),
        pytest.param(failed(rested(Streak(1, renewed=True))), 3, Rest(10), id="2-again"),
        pytest.param(Streak(1, renewed=True, rests=400), 3, Rest(REST_MAX_S), id="2-never-longer"),
        pytest.param(Streak(failures=3), 3, Renew(), id="3-in-a-row"),
        pytest.param(FAILED_ONCE, 1, Renew(), id="3-the-first"),
        pytest.param(failed(FAILED_ONCE), 3, Serve(), id="4-too-few"),
        pytest.param(not_loaded(not_loaded(Streak())), 2, Renew(), id="3-loads-that-fail"),
        pytest.param(not_loaded(renewed(Streak(failures=2))), 2, Serve(), id="1-a-load-that-fails-in-a-fresh-process"),
    ],
)
def test_advice(streak: Streak, renew_after: int, expected: Advice) -> None:
    assert advice(streak, renew_after=renew_after) == expected
