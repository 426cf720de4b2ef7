"""The version before ADR 0037, which kept a timer for every task: its messages, and the version itself."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import httpx
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from contracts.tasks import GenerationTask, encode_task
from contracts.topology import TASKS, work_subject
from ops.nats.link import NatsLink
from tests.kit.behind import js_of
from tests.kit.support import BOUND_S, NO_TLS, eventually_sync, free_port

ROOT: Final = Path(__file__).parents[2]
# The last commit of that version. The messages below are from its `contracts/topology.py`, `ops/nats/timers.py` and
# `gateway/placing/admission.py`.
COMMIT: Final = "717a4f9dbe4b21e008cc2ef500cf9175f1e2389b"
DEADLINES: Final = "DEADLINES"


async def make_deadlines(link: NatsLink) -> None:
    """The stream of timers with its consumers, as `warmlane provision` of that version makes them."""
    await js_of(link).add_stream(
        StreamConfig(
            name=DEADLINES,
            subjects=["deadline.set.>", "deadline.due.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
            max_age=86_400.0,
            allow_msg_schedules=True,
            allow_msg_ttl=True,
            allow_rollup_hdrs=True,
        )
    )
    for kind in ("admit", "lease"):
        consumer = ConsumerConfig(
            durable_name=f"sweep-{kind}",
            filter_subject=f"deadline.due.{kind}.>",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=1.0,
            max_ack_pending=20_000,
        )
        await js_of(link).add_consumer(DEADLINES, consumer)


async def set_timer(link: NatsLink, kind: Literal["admit", "lease"], task: GenerationTask, at: datetime) -> None:
    """A timer of that version."""
    moment = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    target = f"deadline.due.{kind}.{task.id}"
    headers = {"Nats-Schedule": f"@at {moment}", "Nats-Schedule-Target": target}
    await js_of(link).publish(f"deadline.set.{kind}.{task.id}", encode_task(task), headers=headers)


async def accept(link: NatsLink, task: GenerationTask) -> None:
    """Writes what a gateway of that version writes: message, timer, record."""
    subject = work_subject(task.route, task.model, task.id)
    await link.messages.publish(subject, encode_task(task), message_id=task.message_id)
    await set_timer(link, "admit", task, task.deadline_at)
    await link.entries.create(TASKS, task.id, encode_task(task))


def unpack(folder: Path) -> bool:
    """Unpacks that version into *folder*; False where its commit is missing, as in a shallow clone."""
    archive = folder / "earlier.tar"
    with archive.open("wb") as out:
        made = subprocess.run(["git", "-C", str(ROOT), "archive", COMMIT], stdout=out, stderr=subprocess.DEVNULL)
    if made.returncode:
        return False
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return True


def earlier_settings(source: Path, windows_s: Mapping[str, float]) -> Path:
    """The packaged settings of the version in *source*, with other windows."""
    settings = json.loads((source / "contracts" / "inference_settings.json").read_text())
    settings["windows"] |= windows_s
    path = source / "short.json"
    path.write_text(json.dumps(settings))
    return path


class EarlierGateway:
    """A gateway of that version, run from *source*. It connects as `admin`: today's nats.conf grants no other role
    rights to timers."""

    def __init__(self, source: Path, folder: Path, nats_url: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = folder / "earlier.log"
        self._source, self._folder, self._nats_url = source, folder, nats_url
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        run = "from ops.cli import main; main()"
        command = [sys.executable, "-c", run, *arguments, "--nats-url", self._nats_url]
        return command, os.environ | {"PYTHONPATH": str(self._source)}

    def provision(self, *options: str) -> None:
        """`warmlane provision` of that version."""
        command, environment = self._command("provision", *options)
        subprocess.run(command, env=environment, cwd=self._source, check=True, capture_output=True)

    def start(self, *options: str) -> None:
        """Returns when the gateway answers."""
        data_dir = ("--data-dir", str(self._folder))
        command, environment = self._command("gateway", "--port", str(self.port), *data_dir, *options)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, cwd=self._source, stdout=log, stderr=log)
        eventually_sync(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log_file.read_text()
        try:
            return httpx.get(f"{self.url}/healthz", verify=NO_TLS, timeout=BOUND_S).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=BOUND_S)
