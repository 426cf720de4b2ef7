"""The verdicts of `warmlane demo --fallback`, and when its story is printed."""

import pytest

from ops.commands.demo.story import AFTER, Scene, is_complete, verdicts


def scene(sent_s: float, route: str | None = "lane", outcome: str = "done") -> Scene:
    return Scene(sent_s=sent_s, took_s=0.3, route=route, worker="w", attempt=1, outcome=outcome)


BEFORE = [scene(-2), scene(-1)]
BACK = [scene(6 + number) for number in range(AFTER)]
GOOD = [*BEFORE, scene(0.1, "degraded"), scene(0.5, "degraded"), *BACK, scene(-0.1)]


def test_a_good_end() -> None:
    assert verdicts(GOOD) == [
        ("0 of 10 requests failed", True),
        ("2 of them were served by the degraded worker", True),
        ("the lane served again 6.0 s after it was killed, and every one since", True),
    ]


@pytest.mark.parametrize(
    ("scenes", "wrong"),
    [
        pytest.param([*GOOD, scene(-0.1, outcome="failed: worker_lost")], "1 of 11 requests failed", id="failed"),
        pytest.param([*GOOD, scene(0.2, None, "refused: queue_overloaded")], "1 of 11 requests failed", id="refused"),
        pytest.param([*BEFORE, *BACK], "no request had to go to the degraded worker", id="nothing-seen"),
        pytest.param([*GOOD, scene(20, "degraded")], "the lane did not serve again", id="not-back"),
    ],
)
def test_what_is_not_good(scenes: list[Scene], wrong: str) -> None:
    assert [text.startswith(wrong) for text, is_good in verdicts(scenes) if not is_good] == [True]


def test_the_story_is_printed_when_the_lane_serves_for_good() -> None:
    assert not is_complete(BACK)
    assert is_complete([scene(0.1, "degraded"), *BACK])
    assert not is_complete([scene(0.1, "degraded"), *BACK[:-1], scene(20, "degraded")])
