import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from lane_worker.forking.host_messages import SlotNote
from lane_worker.forking.process_end import kill_noted
from lane_worker.forking.slot import process_start


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def note_of(process: subprocess.Popen[bytes]) -> SlotNote:
    return SlotNote(process.pid, process_start(process.pid), "degraded", 7)


def test_the_process_of_a_note_is_killed_and_the_log_says_so(process: subprocess.Popen[bytes]) -> None:
    with capture_logs() as logged:
        kill_noted(note_of(process))
    assert process.wait() == -signal.SIGKILL
    assert [(line["event"], line["pid"], line["term"]) for line in logged] == [
        ("pipeline_host_put_aside", process.pid, 7)
    ]


def test_another_process_that_has_the_pid_by_now_lives_on(process: subprocess.Popen[bytes]) -> None:
    with capture_logs() as logged:
        kill_noted(SlotNote(process.pid, 1, "degraded", 7))
    assert (process.poll(), logged) == (None, [])


def test_one_that_has_ended_is_not_put_aside_though_the_kernel_still_shows_it(
    process: subprocess.Popen[bytes],
) -> None:
    """On a busy machine its parent, a fork server, asks how it ended a moment later."""
    note = note_of(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(process.pid) == note.started
    with capture_logs() as logged:
        kill_noted(note)
    assert logged == []


def test_one_that_is_nowhere_any_more_is_nobody(process: subprocess.Popen[bytes]) -> None:
    note = note_of(process)
    process.kill()
    process.wait()
    with capture_logs() as logged:
        kill_noted(note)
    assert logged == []
