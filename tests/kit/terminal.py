"""A program on a terminal of its own. There it asks and draws as it does for people, and does not on a pipe.

`python -m tests.kit.terminal COMMAND...` answers every question with `y`: the NATS CLI asks only on a terminal.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from tests.kit.support import BOUND_S

# A query to the terminal, whose answer the CLI's prompts wait for: where is the cursor?
_WHERE: Final = b"\x1b[6n"
_HERE: Final = b"\x1b[9;9R"
_IDLE_S: Final = 0.2
# After this many idle reads an answer counts as lost.
LOST_AFTER: Final = 10


class Terminal:
    """The terminal of *command*, which ends when the context is left."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, theirs = os.openpty()
        # as a login does: shells need a controlling terminal
        own = ["setsid", "--ctty", "--wait", *command]
        self.process = subprocess.Popen(own, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.said = b""
        self._last = b""  # may hold the first piece of a query that comes in two
        self._was_asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read(self) -> bytes:
        """What the program prints next; nothing if it is silent for a moment, or has ended."""
        if not select.select([self._master], [], [], _IDLE_S)[0]:
            return b""
        try:
            more = os.read(self._master, 4096)
        except OSError:  # this is how Linux reports that the other end is closed
            return b""
        self.said += more
        heard = self._last + more
        self._last = heard[1 - len(_WHERE) :]
        for _ in range(heard.count(_WHERE)):
            self._was_asked = True
            os.write(self._master, _HERE)
        return more

    def answer_again(self) -> None:
        """Answers the query for the cursor once more, if the program has ever sent it: a program that changes the
        terminal's mode after its query discards the answer."""
        if self._was_asked:
            os.write(self._master, _HERE)

    def until(self, text: str) -> str:
        """Waits until the program has printed *text*; returns everything that it printed since the last call."""
        deadline_s = time.monotonic() + BOUND_S
        while text.encode() not in self.said:
            self.read()
            assert time.monotonic() < deadline_s, self.said
        said, self.said = self.said.decode(errors="replace"), b""
        return said


def main() -> None:
    with Terminal(sys.argv[1:], os.environ) as terminal:
        asked, silent = False, 0
        while terminal.process.poll() is None:
            asked = asked or b"y/N" in terminal.said
            silent = 0 if terminal.read() else silent + 1
            if silent % LOST_AFTER == LOST_AFTER - 1:
                terminal.answer_again()
            if silent and asked:
                terminal.type("y\r")  # repeated until it is accepted: the terminal discards what was typed too early
        while terminal.read():
            pass
        sys.stdout.write(terminal.said.decode(errors="replace"))
        sys.exit(terminal.process.returncode)


if __name__ == "__main__":
    main()
