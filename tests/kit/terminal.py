"""A program on a terminal of its own, on which it asks and draws: people see this, and a pipe does not.

`python -m tests.kit.terminal COMMAND...` says `y` to all that it asks: the NATS CLI asks on terminals alone.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

from tests.kit.support import BOUND_S

# A question about the terminal, which the CLI's prompts ask and wait for: where is the cursor?
_WHERE: Final = b"\x1b[6n"
_HERE: Final = b"\x1b[9;9R"
_IDLE_S: Final = 0.2
# After so many idle moments an answer counts as lost.
LOST_AFTER: Final = 10


class Terminal:
    """The terminal of *command*. Leave it as a context: the program is ended then."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, theirs = os.openpty()
        # as a login does: shells want the terminal to be theirs
        own = ["setsid", "--ctty", "--wait", *command]
        self.process = subprocess.Popen(own, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.said = b""
        self._last = b""  # of a question that comes in two pieces, the first one
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
        """What it says next; nothing where it is silent for a moment, or has ended."""
        if not select.select([self._master], [], [], _IDLE_S)[0]:
            return b""
        try:
            more = os.read(self._master, 4096)
        except OSError:  # this is how Linux reports that nobody is at the other end any more
            return b""
        self.said += more
        heard = self._last + more
        self._last = heard[1 - len(_WHERE) :]
        for _ in range(heard.count(_WHERE)):
            self._was_asked = True
            os.write(self._master, _HERE)
        return more

    def answer_again(self) -> None:
        """Says once more where the cursor is, if that was ever asked: a program that changes the terminal's mode after
        its question throws the answer away."""
        if self._was_asked:
            os.write(self._master, _HERE)

    def until(self, text: str) -> str:
        """Returns once it has printed *text*: everything that it printed since the last call."""
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
                terminal.type("y\r")  # repeated until it is accepted: the terminal throws away what was typed too early
        while terminal.read():
            pass
        sys.stdout.write(terminal.said.decode(errors="replace"))
        sys.exit(terminal.process.returncode)


if __name__ == "__main__":
    main()
