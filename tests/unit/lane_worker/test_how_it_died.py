"""What is said of a pipeline host that died."""

import pytest

from lane_worker.forking import host_child
from lane_worker.forking.host_child import how_it_died


@pytest.mark.parametrize(("before", "now"), [(None, None), (None, 1), (3, None), (3, 3), (3, 2)])
def test_without_evidence_nothing_is_guessed(before: int | None, now: int | None) -> None:
    assert how_it_died(before=before, now=now) == "the pipeline host died"


def test_a_kill_for_memory_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_child, "memory_limit_bytes", lambda: 3 << 30)
    said = how_it_died(before=3, now=4)
    assert "signal 9" in said
    assert "the memory limit of 3.0 GiB of this container was reached" in said
    monkeypatch.setattr(host_child, "memory_limit_bytes", lambda: None)
    assert "the memory limit of this container" in how_it_died(before=0, now=1)
