"""`warmlane up` as a user runs it: a real server, a real gateway, real lanes with tiny pipelines."""

import atexit
import json
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lane_worker.forking.slot import read_note
from ops.machine.processes import warmlane_command
from tests.kit.support import (
    BOUND_S,
    below,
    children_of,
    clean_environment,
    command_line,
    eventually_sync,
    fork_servers_of,
    free_port,
    logged_in,
    require_sound,
)


class UpProcess:
    """One `warmlane up` on free ports, with a data folder of its own."""

    program = staticmethod(warmlane_command)
    """What gives the command line of `warmlane`."""

    def __init__(self, folder: Path, *options: str, warm: Sequence[str] | None = None, **environment: str) -> None:
        """*warm* names the models that get a warm lane, if `--lanes` does not say."""
        self.data_dir = folder / "data"
        self.output = folder / "up.log"
        self.port = free_port()
        self.nats_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options, self._environment = options, environment
        lanes = options[options.index("--lanes") + 1] if "--lanes" in options else "anisora=1,phr00t=1"
        asked = [model for model, count in (lane.split("=") for lane in lanes.split(",")) if count != "0"]
        self._models = asked if warm is None else warm
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=90)

    def start(self) -> None:
        """Starts it; returns when every lane is warm, and the gateway is ready for the models without one."""
        arguments = ["--port", str(self.port), "--nats-port", str(self.nats_port), "--data-dir", str(self.data_dir)]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self.program("up", *arguments, *self._options),
                stdout=output,
                stderr=output,
                env=clean_environment() | self._environment,
            )
        atexit.register(self._process.kill)  # ends it after a failed test; all that it started ends with it
        eventually_sync(self.is_ready, within_s=300, every_s=0.1)  # each look wakes a gateway that is still starting

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.output.read_text()
        try:
            ready = self.http.get("/readyz").json()
        except httpx.TransportError:
            return False
        return bool(ready["ready"]) and all(ready["models"][model]["warm"] for model in self._models)

    @property
    def nats_url(self) -> str:
        """The URL with the user `admin`, whose password is in the file that `warmlane up` made."""
        context = json.loads((self.data_dir / "nats-auth" / "admin.json").read_text())
        return f"nats://admin:{context['password']}@127.0.0.1:{self.nats_port}"

    def ports_are_free(self) -> bool:
        """Whether another `warmlane up` could listen on the ports of this one."""
        for port in (self.port, self.nats_port):
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                return False
        return True

    @property
    def logs(self) -> Path:
        return self.data_dir / "logs"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def find(self, *words: str) -> int:
        """The one process below `up` whose command line has all *words*."""
        found = [pid for pid in children_of(self.pid) if all(word in command_line(pid) for word in words)]
        assert len(found) == 1, [command_line(pid) for pid in children_of(self.pid)]
        return found[0]

    def host_of(self, worker: str) -> int:
        """The pipeline host child of *worker*, which is below the worker's fork server."""
        self.find(f"--name {worker}")
        server = fork_servers_of(self.logs / f"{worker}.log")[-1]
        (host,) = children_of(server)
        return host

    def host_with(self, task_id: str, attempt: int) -> int | None:
        """The pipeline host that runs *attempt* of the task, by the note in the lock of its slot."""
        notes = [read_note(path) for path in (self.data_dir / "locks").glob("*.lock")]
        return next((note.pid for note in notes if note and (note.task_id, note.attempt) == (task_id, attempt)), None)

    def runs(self, task_id: str, attempt: int = 1) -> int:
        """The pipeline host that runs *attempt* of the task, once one does. A `Gate` keeps it from ending before.

        A worker whose host dies before that starts another one, and the attempt goes on.
        """
        host = eventually_sync(lambda: self.host_with(task_id, attempt))
        assert host is not None
        return host

    def below(self) -> list[int]:
        """Every process that `warmlane up` started, or that a shared fork server forked for it."""
        return below(self.pid, self.logs)

    def submit(self, **fields: Any) -> dict[str, Any]:
        """Submits a task. The gateway accepts it at once on a warm lane, else when the degraded worker takes it."""
        response = self.http.post("/generate", json={"model": "anisora", "prompt": "a red fox"} | fields)
        assert response.status_code == 202, response.text
        task: dict[str, Any] = response.json()
        return task

    def task(self, task_id: str) -> dict[str, Any]:
        task: dict[str, Any] = self.http.get(f"/tasks/{task_id}").json()
        return task

    def ended(self, task_id: str) -> dict[str, Any]:
        """The task, once it has ended."""

        def look() -> dict[str, Any] | None:
            task: dict[str, Any] = self.http.get(f"/tasks/{task_id}?wait=30").json()
            return task if task["status"] in ("done", "failed") else None

        task = eventually_sync(look, within_s=300)
        assert task is not None
        return task

    def counted(self, series: str, **labels: str) -> float:
        """*series* at `/metrics`, of every process together."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == series]
        assert samples, f"nobody reports {series}"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def video(self, task_id: str) -> bytes:
        response = self.http.get(f"/tasks/{task_id}/video")
        assert response.status_code == 200, response.text
        return response.content

    def log_lines(self, worker: str) -> list[dict[str, Any]]:
        """What the worker logged, a dict a line."""
        return logged_in(self.logs / f"{worker}.log")

    def memory_lines(self, task_id: str) -> list[dict[str, Any]]:
        """The memory lines of the task, by any worker, the first one first."""
        workers = [path.stem for path in self.logs.glob("*.log") if path.stem[-1].isdigit()]
        lines = [line for worker in workers for line in self.log_lines(worker)]
        found = [line for line in lines if line["event"] == "memory_after_cleanup" and line["task_id"] == task_id]
        return sorted(found, key=lambda line: str(line["timestamp"]))

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=BOUND_S)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.interrupt()
        self.http.close()
        for log in self.logs.glob("*.log"):
            require_sound(log.read_text())
