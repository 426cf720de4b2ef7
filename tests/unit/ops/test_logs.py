"""Log lines: what they hold, and that a line which cannot be written fails nothing else."""

import json
import os
import subprocess
import sys
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import Struct

from contracts.lanes import ColdStart, LaneState
from ops.telemetry.line_writer import LineWriter, Losses
from ops.telemetry.log_values import plain
from ops.telemetry.logs import render
from tests.kit.small_disk import small_disk


class Pair(NamedTuple):
    one: int
    two: datetime


@dataclass
class Data:
    path: Path


class Inner(Struct):
    state: LaneState


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NOON, "2026-01-02T12:00:00Z"),
        (NOON.astimezone(timezone(timedelta(hours=2))), "2026-01-02T12:00:00Z"),
        (NOON.replace(tzinfo=None), "2026-01-02T12:00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(minutes=1.5), 90.0),
        (LaneState.WARM, "warm"),
        (b"\xffabc", "\\xffabc"),
        (b"x" * 100, "x" * 64 + "… (100 bytes)"),
        (ValueError("no"), "ValueError: no"),
        (ExceptionGroup("several", [OSError(28, "full")]), "ExceptionGroup: several (1 sub-exception)"),
        (TimeoutError(), "TimeoutError"),
        (Path("/tmp/x"), "/tmp/x"),  # only a name
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**70, str(2**70)),
        ({1, 2}, [1, 2]),
        (deque([NOON]), ["2026-01-02T12:00:00Z"]),
        ({LaneState.WARM: NOON, 3: None}, {"warm": "2026-01-02T12:00:00Z", "3": None}),
        (Pair(1, NOON), {"one": 1, "two": "2026-01-02T12:00:00Z"}),
        (Data(Path("a")), {"path": "a"}),
        ([Inner(LaneState.BUSY)], [{"state": "busy"}]),
        (OSError, "OSError"),
        (Rude(), "<Rude, whose text raises RuntimeError>"),
        ("\ud800", "\ud800"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_is_logged_as_json(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert json.loads(render(None, "", {"value": value})) == {"value": expected}


def test_what_holds_itself_has_an_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "<list>" in render(None, "", {"value": loop})


def test_a_cold_start_is_logged_with_its_times() -> None:
    start = ColdStart(model="phr00t", worker="phr00t-0", started_at=NOON, ended_at=NOON, seconds=None)
    assert plain(start)["started_at"] == "2026-01-02T12:00:00Z"


def test_no_text_in_a_line_looks_like_another_line() -> None:
    line = render(None, "", {"event": "a\n{}\r\u2028\x1b[31m\u202e\x85\ud800"})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)


# ── what becomes of a line that cannot be written ────────────────────────────────────────────────────────────────────


def word(lost: Losses) -> bytes:
    return json.dumps({"lost": dict(lost)}).encode() + b"\n"


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def test_a_full_disk_costs_lines_that_are_counted_and_leaves_none_cut(tmp_path: Path) -> None:
    """A file system that is really full; the last line that fits is cut by it, and completed later."""
    reasons: list[str] = []
    with small_disk(tmp_path / "disk", mib=1) as disk:
        path = disk.folder / "log"
        lines = LineWriter(opened(path), word_of=word, on_loss=reasons.append)
        lines.write(b"first" * 100 + b"\n")
        disk.fill()
        for number in range(20):  # what is left of the file's last page is written, and one line is cut at its end
            lines.write(b"%d" % number * 700 + b"\n")
        assert path.stat().st_size % 4096 == 0, "no line was cut: the test shows nothing"
        disk.empty()
        lines.write(b"last\n")
        kept = path.read_bytes().splitlines()
    whole = [b"first" * 100, *(b"%d" % number * 700 for number in range(20)), b"last"]
    assert [line for line in kept if line not in whole] == [json.dumps({"lost": {"ENOSPC": len(reasons)}}).encode()]
    assert kept[-2:] == [word({"ENOSPC": len(reasons)}).strip(), b"last"]
    assert len(kept) + len(reasons) == len(whole) + 1
    os.close(lines.fd)


def test_what_others_wrote_behind_a_cut_line_is_left_alone(tmp_path: Path) -> None:
    reasons: list[str] = []
    with small_disk(tmp_path / "disk", mib=1) as disk:
        path = disk.folder / "log"
        lines = LineWriter(opened(path), word_of=word, on_loss=reasons.append)
        disk.fill()
        disk.empty()
        lines.write(b"x" * 4000 + b"\n")
        disk.fill()
        lines.write(b"y" * 400 + b"\n")
        assert path.stat().st_size == 4096
        disk.empty()
        with path.open("ab") as other:
            other.write(b"of a child")
        lines.write(b"z\n")
        kept = path.read_bytes().splitlines()
    assert kept[1:] == [b"y" * 95 + b"of a child", word({"cut": 1}).strip(), b"z"]
    os.close(lines.fd)


def test_a_log_that_was_made_empty_meanwhile_begins_with_a_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=1) as disk:
        path = disk.folder / "log"
        lines = LineWriter(opened(path), word_of=word)
        lines.write(b"x" * 4000 + b"\n")
        disk.fill()
        lines.write(b"y" * 400 + b"\n")
        os.truncate(path, 0)
        lines.write(b"z\n")
        assert path.read_bytes() == word({"cut": 1}) + b"z\n"
    os.close(lines.fd)


def test_a_reader_that_is_gone_costs_lines(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    reasons: list[str] = []
    lines = LineWriter(writing, word_of=word, on_loss=reasons.append)
    os.close(reading)
    for _ in range(3):
        lines.write(b"x\n")
    os.close(writing)
    lines.write(b"x\n")
    assert reasons == ["EPIPE"] * 3 + ["EBADF"]


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_reader_that_does_not_read_is_not_waited_for(is_blocking: bool) -> None:
    """Every line is whole or counted, however the pipe is filled; also one that is longer than the pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, is_blocking)
    reasons: list[str] = []
    lines = LineWriter(writing, word_of=word, on_loss=reasons.append)
    sent = [b"%04d" % number * 100 + b"\n" for number in range(300)] + [b"long" * 40_000 + b"\n"]
    for line in sent:
        lines.write(line)
    assert set(reasons) == {"EAGAIN"}
    found: list[bytes] = []
    with os.fdopen(reading, "rb") as file:
        reader = threading.Thread(target=lambda: found.extend(file))
        reader.start()
        lost = -1
        while lost != len(reasons) and reader.is_alive():  # until one is written, and the word of those lost before it
            lost = len(reasons)
            lines.write(b"end\n")
            os.sched_yield()
        os.close(writing)
        reader.join()
    whole = [line for line in found if line in sent]
    assert whole == sent[: len(whole)]
    assert all(line == b"end\n" or b"lost" in line for line in found if line not in sent)
    counted = sum(sum(json.loads(line)["lost"].values()) for line in found if b"lost" in line)
    assert counted == len(reasons)
    assert found[-1] == b"end\n"


def test_an_error_of_the_disk_costs_lines() -> None:
    """/dev/full is Linux's own device that never has room."""
    reasons: list[str] = []
    fd = os.open("/dev/full", os.O_WRONLY)
    LineWriter(fd, word_of=word, on_loss=reasons.append).write(b"x\n")
    os.close(fd)
    assert reasons == ["ENOSPC"]


PROGRAM = """
import logging, os, sys
from ops.cli import main
sys.argv = ["warmlane", "--help"]
try:
    main()
except SystemExit:
    pass
from pathlib import Path
import structlog
from ops.telemetry.logs import configure_logging
configure_logging("test")
log = structlog.get_logger()
note = open(sys.argv[0] + os.environ["NOTE"], "w")
log.info("said", number=1)
logging.getLogger("library").warning("%d %d", 1)
try:
    raise ValueError("inside")
except ValueError:
    log.exception("raised")
    logging.getLogger("library").exception("raised too")
note.write(f"went on {note.fileno()}")
"""


def run(tmp_path: Path, redirection: str) -> subprocess.CompletedProcess[str]:
    """PROGRAM by a shell with *redirection*; it must have gone on to its end."""
    note = tmp_path / "warmlanenote"
    made = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"NOTE": "note", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    fd = int(note.read_text().removeprefix("went on "))
    assert fd > 2, "a file of the program's own had the number of a standard stream"
    return made


def test_every_logger_writes_json_with_the_frames_of_an_exception(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(tmp_path, "").stderr.splitlines()]
    assert [line["event"] for line in lines] == ["said", "%d %d", "raised", "raised too"]
    assert {line["role"] for line in lines if line["event"] != "%d %d"} == {"test"}
    for line in lines[2:]:
        assert line["exception"].startswith("Traceback")
        assert "ValueError: inside" in line["exception"]
        assert "exc_info" not in line


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_program_goes_on_without_its_log(tmp_path: Path, redirection: str) -> None:
    run(tmp_path, redirection)
