"""When a client tries again: numbered as in `pause_s`."""

import pytest

from warmlane_client.core.retries import Busy, pause_s


@pytest.mark.parametrize(
    ("busy", "tries", "left_s", "expected"),
    [
        pytest.param(Busy(422, 1.0), 1, 600, None, id="1"),
        pytest.param(Busy(429, 1.0), 1, 600, None, id="1-its-turn-is-waited-for-elsewhere"),
        pytest.param(Busy(503, 12.5), 7, 600, 12.5, id="2"),
        pytest.param(Busy(503, 0.0), 1, 600, 0.0, id="2-at-once"),
        pytest.param(Busy(503), 1, 600, 1.0, id="3"),
        pytest.param(Busy(503), 4, 600, 8.0, id="3-longer"),
        pytest.param(Busy(503), 4_000, 600, 30.0, id="3-at-most"),
        pytest.param(Busy(503, 12.5), 1, 12.4, None, id="4"),
        pytest.param(Busy(503, 0.0), 1, -0.1, None, id="4-over"),
        pytest.param(Busy(503), 1, 0.0, None, id="4-none"),
    ],
)
def test_pause_s(busy: Busy, tries: int, left_s: float, expected: float | None) -> None:
    assert pause_s(busy, tries=tries, left_s=left_s) == expected
