"""The reports of a pipeline host that died."""

import signal
from functools import partial
from pathlib import Path

import pytest

from lane_worker.forking import how_it_died as module
from lane_worker.forking.how_it_died import KillsForMemory, how_it_died
from ops.machine.cgroup import oom_kills
from tests.kit.cgroups import write_counter


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (None, "the pipeline host died"),
        (-signal.SIGKILL, "the pipeline host was killed by signal 9 (SIGKILL)"),
        (-signal.SIGSEGV, "the pipeline host was killed by signal 11 (SIGSEGV)"),
        (-42, "the pipeline host was killed by signal 42"),
        (3, "the pipeline host ended by itself, with exit status 3"),
    ],
)
def test_its_signal_or_status_is_named(exit_code: int | None, said: str) -> None:
    assert how_it_died(exit_code, short_of_memory=False) == said
    if exit_code not in (None, -signal.SIGKILL):  # the kernel kills by SIGKILL, so it was another process
        assert how_it_died(exit_code, short_of_memory=True) == said


@pytest.mark.parametrize("exit_code", [None, -signal.SIGKILL])
def test_a_kill_for_memory_is_named_with_its_limit(exit_code: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_limit_bytes", lambda: 3 << 30)
    said = how_it_died(exit_code, short_of_memory=True)
    assert "signal 9, SIGKILL" in said
    assert "the memory limit of 3.0 GiB of this container was reached" in said
    monkeypatch.setattr(module, "memory_limit_bytes", lambda: None)
    assert "this container has no limit of its own" in how_it_died(exit_code, short_of_memory=True)


@pytest.mark.parametrize("version", [1, 2])
def test_only_kills_since_the_last_sign_of_life_count(version: int, tmp_path: Path) -> None:
    own = write_counter(tmp_path, version=version, kills=3)
    kills = KillsForMemory(partial(oom_kills, mount=tmp_path, own=own))
    assert not kills.seen()  # the kills before it began
    kills.asks(1)
    write_counter(tmp_path, version=version, kills=4)
    assert kills.seen()
    kills.answers(1)
    assert kills.seen()  # the answer may be older than the kill
    kills.asks(2)
    assert kills.seen()
    kills.answers(2)  # the host lived on: another process was killed
    assert not kills.seen()
    kills.asks(3)
    write_counter(tmp_path, version=version, kills=5)
    kills.asks(4)  # what is read now may be the end of the host that does not answer
    kills.asks(5)
    assert kills.seen()


@pytest.mark.parametrize("counted", [(None, None), (None, 1), (3, None), (3, 3), (3, 2)])
def test_without_evidence_nothing_is_guessed(counted: tuple[int | None, int | None]) -> None:
    readings = iter(counted)
    assert not KillsForMemory(lambda: next(readings)).seen()
