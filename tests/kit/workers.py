"""A worker, started with a user's command line: `warmlane lane` or `warmlane degraded`."""

import signal
from pathlib import Path
from typing import Any

from tests.kit.support import BOUND_S, children_of, clean_environment, fork_servers_of, logged_in, require_sound
from tests.kit.warm_cli import Forked


class WorkerProcess:
    """One worker process, whose log is in the data folder."""

    def __init__(
        self, role: str, nats_url: str, data_dir: Path, *options: str, name: str, slot: str, **environment: str
    ) -> None:
        self.name = name
        self.log_file = data_dir / f"{name}.log"
        arguments = ["--name", name, "--slot", slot, "--nats-url", nats_url, "--data-dir", str(data_dir), *options]
        with self.log_file.open("ab") as log:
            self._process = Forked(role, *arguments, stdout=log, stderr=log, env=clean_environment() | environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def hosts(self) -> list[int]:
        """The pipeline host children: what its fork server has forked."""
        return [host for server in fork_servers_of(self.log_file) for host in children_of(server)]

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """What it logged as *event*."""
        return [line for line in logged_in(self.log_file) if line["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.is_running:
            self._process.terminate()
        status = self._process.wait(timeout=BOUND_S)
        require_sound(self.log_file.read_text())
        return status

    def kill(self) -> None:
        """kill -9, also of one that is stopped."""
        self._process.kill()
        self._process.wait(timeout=BOUND_S)
