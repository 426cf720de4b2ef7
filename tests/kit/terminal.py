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


class Terminal:
    """The terminal of *command*. Leave it as a context: the program is ended then."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, theirs = os.openpty()
        # as a login does: shells want the terminal to be theirs
        own = ["setsid", "--ctty", "--wait", *command]
        self.process = subprocess.Popen(own, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.said = b""

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
        for _ in range(more.count(_WHERE)):
            os.write(self._master, _HERE)
        return more

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
        asked = False
        while terminal.process.poll() is None:
            asked = asked or b"y/N" in terminal.said
            if not terminal.read() and asked:
                terminal.type("y\r")  # repeated until it is accepted: the terminal throws away what was typed too early
        while terminal.read():
            pass
        sys.stdout.write(terminal.said.decode(errors="replace"))
        sys.exit(terminal.process.returncode)


if __name__ == "__main__":
    main()
