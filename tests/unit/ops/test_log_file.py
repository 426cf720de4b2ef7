"""A child's log is kept small while the child writes it."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from ops.ending import end
from ops.machine.log_file import HOPELESS, WHOLE_LINE_LOOK_EVERY_S, LogFile
from ops.machine.processes import Process
from tests.kit.small_disk import small_disk
from tests.kit.support import BOUND_S, eventually

MAX_BYTES = 64 * 1024
LINE_BYTES = 100
# Two processes of one child append numbered lines, by turns on standard output and on standard error. They go on until
# some of the lines were moved.
WRITER = """
import itertools, json, os, sys, time
who = "child" if os.fork() == 0 else "parent"
for number in itertools.count():
    if number > 20_000:
        if os.path.exists(sys.argv[1]):
            break
        time.sleep(0.001)
    os.write(1 + number % 2, json.dumps({"who": who, "number": number}).ljust(99).encode() + b"\\n")
if who == "parent":
    os.wait()
"""


def lines_of(*paths: Path) -> list[bytes]:
    return [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]


async def test_what_several_processes_print_is_rotated_while_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.machine.log_file.LOOK_EVERY_S", 0.0)
    path = tmp_path / "logs" / "child.log"
    old = path.with_suffix(".old.log")
    process = Process(
        "child",
        [sys.executable, "-c", WRITER, str(old)],
        log_file=path,
        on_death=lambda *_: process.kill(),
        log_max_bytes=MAX_BYTES,
    )
    await process.run()
    await asyncio.get_running_loop().shutdown_default_executor()  # what is being moved is there when this returns
    assert {each.name for each in path.parent.iterdir()} == {path.name, old.name}
    last = {"child": -1, "parent": -1}
    for line in lines_of(old, path):
        assert len(line) == LINE_BYTES, "a line was cut, or two were joined"
        logged = json.loads(line)
        assert logged["number"] > last[logged["who"]], "in the order in which they were written"
        last[logged["who"]] = logged["number"]
    assert old.stat().st_size <= (HOPELESS + 1) * 2**20


def test_the_newest_stays_whole_and_the_old_one_is_replaced(tmp_path: Path) -> None:
    kept = LogFile(tmp_path / "a.log", max_bytes=1000)
    with kept.open() as file:
        for number in range(3):
            file.write(b"%d" % number * 1000 + b"\n")
            file.flush()
            kept.keep_small()
            assert kept.path.stat().st_size == 0
            assert kept.old_path.read_bytes() == b"%d" % number * 1000 + b"\n"
        file.write(b"small\n")
        file.flush()
        kept.keep_small()
    assert lines_of(kept.path) == [b"small\n"]


def test_a_log_that_grows_faster_than_it_is_copied_ends_with_a_whole_line(tmp_path: Path) -> None:
    kept = LogFile(tmp_path / "a.log", max_bytes=10)
    with kept.open() as file:
        file.write(b"line\n" * HOPELESS * 3 + b"the first half")
        file.flush()
        kept.keep_small()
    assert kept.old_path.read_bytes() == b"line\n" * HOPELESS * 3
    assert kept.path.read_bytes() == b""


async def test_the_copy_waits_for_the_end_of_a_line_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.machine.log_file.WHOLE_LINE_LOOKS", BOUND_S / WHOLE_LINE_LOOK_EVERY_S)
    kept = LogFile(tmp_path / "a.log", max_bytes=10)
    with kept.open() as file:
        file.write(b"a long line, ")
        file.flush()
        rotating = asyncio.create_task(asyncio.to_thread(kept.keep_small))
        await eventually(lambda: asyncio.sleep(0, kept.old_path.exists() and kept.old_path.stat().st_size > 0))
        file.write(b"and its end\n")
    await rotating
    assert lines_of(kept.old_path, kept.path) == [b"a long line, and its end\n"]


def test_on_a_full_disk_the_old_one_makes_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=2) as disk:
        kept = LogFile(disk.folder / "a.log", max_bytes=MAX_BYTES)
        with kept.open() as file:
            for letter in (b"a", b"b"):
                file.write(letter * 2 * MAX_BYTES)
                file.flush()
                if letter == b"b":
                    disk.fill()
                kept.keep_small()
        assert kept.path.stat().st_size == 0
        assert set(kept.old_path.read_bytes()) == set(b"b")


def test_what_cannot_be_copied_is_thrown_away_only_when_there_is_far_too_much(tmp_path: Path) -> None:
    kept = LogFile(tmp_path / "a.log", max_bytes=1000)
    kept.old_path.mkdir()  # so that no copy can be made
    (kept.old_path / "in the way").touch()
    with kept.open() as file:
        file.write(b"x" * HOPELESS * 1000)
        file.flush()
        kept.keep_small()
        assert kept.path.stat().st_size == HOPELESS * 1000
        file.write(b"x")
        file.flush()
        kept.keep_small()
        assert kept.path.stat().st_size == 0


async def test_a_child_runs_where_no_log_can_be(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()  # so that no folder can be made
    note = tmp_path / "note"
    command = [sys.executable, "-c", f"print('lost'); open({str(note)!r}, 'w').write('ran')"]
    process = Process("child", command, log_file=tmp_path / "logs" / "a.log", on_death=lambda *_: process.kill())
    running = asyncio.create_task(process.run())
    await running
    await end(running)
    assert note.read_text() == "ran"
