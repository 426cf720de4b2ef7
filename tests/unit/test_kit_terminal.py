"""The terminal of tests answers a program as a real one does, however the program asks."""

import subprocess
import sys

import pytest

from tests.kit.support import clean_environment

PROGRAM = r"""
import sys, termios, time, tty

def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def read_until(end):
    found = ""
    while not found.endswith(end):
        found += sys.stdin.read(1)
    return found

say("Really? (y/N) ")
ASKS
assert read_until("R").endswith("\x1b[9;9R")
while "y" not in read_until("\r"):
    pass
say("did it")
"""
ASKS = {
    "at once": r'tty.setraw(0); say("\x1b[6n")',
    "in two pieces": r'tty.setraw(0); say("\x1b["); time.sleep(0.5); say("6n")',
    "before it changes the mode": r'say("\x1b[6n"); time.sleep(1); tty.setraw(0, termios.TCSAFLUSH)',
}


@pytest.mark.parametrize("how", ASKS)
def test_a_program_that_asks_where_the_cursor_is_gets_an_answer(how: str) -> None:
    command = [sys.executable, "-m", "tests.kit.terminal", sys.executable, "-c", PROGRAM.replace("ASKS", ASKS[how])]
    ended = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "did it" in ended.stdout) == (0, True), ended.stdout + ended.stderr
