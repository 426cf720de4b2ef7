"""A gate that holds a task in its first step, for tests that act while the task runs.

Otherwise a busy machine may let the task end before the test gets to act. The pipeline hosts have to be those of
`tests/kit/rogue_host.py`: give the system `gated_forks`.
"""

import re
import uuid
from pathlib import Path
from typing import Final

from tests.kit.support import ROGUE_HOST, fork_server_at

GATE: Final = re.compile(r"until (\S+) is there")


class Gate:
    """Holds the tasks that have *prompt* as theirs, until `open`. They can be cancelled and killed meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"gate-{uuid.uuid4().hex}"
        self.prompt = f"a red fox until {self._file} is there"

    def open(self) -> None:
        self._file.touch()


def gated_forks() -> dict[str, str]:
    """As `shared_forks`, for hosts that know gates."""
    return {"WARMLANE_FORK_SERVER": fork_server_at(ROGUE_HOST)}
