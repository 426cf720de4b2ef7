"""`ops/runbook.md` as an operator uses it: its sections, a system to use them on, and a shell that runs their lines."""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from click.testing import CliRunner
from msgspec import Struct

from contracts.tasks import GenerationTask, decode_task, encode_task
from contracts.topology import (
    TASKS,
    lane_stream,
    work_subject,
)
from ops.cli import cli
from ops.nats.access import AUTH_FOLDER, NatsAccess, Role, environment_for
from ops.nats.link import NatsLink
from tests.kit.gateway import GatewayProcess
from tests.kit.records import pending_task
from tests.kit.support import BOUND_S, NatsServer, clean_environment, eventually
from tests.kit.tools import tool

RUNBOOK: Final = Path(__file__).parents[2] / "ops" / "runbook.md"
LANE: Final = lane_stream("anisora")
_SECTION: Final = re.compile(r"^##? (.+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CURL: Final = re.compile(r"curl -s (?:-X (\w+) )?http://127\.0\.0\.1:8000(\S+)$")
# What no line may print.
_TROUBLE: Final = re.compile(r"NATS error|nats: error|Violation|deprecated|WARNING")
# What a section may hold besides `nats`, `warmlane` and `curl`.
_OTHER: Final = re.compile(r"export NATS_CONTEXT=|[A-Z]+=|grep |nvidia-smi")


class Line(Struct, frozen=True):
    """A command of the runbook, as printed, and without its comment."""

    printed: str
    command: str


def sections() -> dict[str, list[Line]]:
    """The commands of each section that are carried out here, in their order."""
    parts = _SECTION.split(RUNBOOK.read_text())[1:]
    return {
        heading: [line for block in _BLOCK.findall(text) for line in _lines(block)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _lines(block: str) -> Iterator[Line]:
    for text in block.splitlines():
        command = re.sub(r"(^|\s)#\s.*", "", text).strip()
        if re.match(r"(nats|warmlane|curl) ", command):
            yield Line(text, command)
        else:
            assert not command or _OTHER.match(command), f"not carried out by any test: {text}"


def switched_over() -> str:
    """The lines of the runbook that choose the NATS user. Every shell runs them first."""
    lines = next(iter(_BLOCK.findall(RUNBOOK.read_text()))).splitlines()
    return "\n".join(line for line in lines if re.match(r"export NATS_CONTEXT=|ADMIN=|SYSTEM=", line))


class Stage:
    """The system that the runbook is about: a server, and a gateway whose lanes are reported warm. No worker runs."""

    def __init__(self, gateway: GatewayProcess, http: httpx.AsyncClient, link: NatsLink, folder: Path) -> None:
        self.gateway, self.http, self.link, self.folder = gateway, http, link, folder
        self.leave = AsyncExitStack()

    async def as_role(self, role: Role, server: NatsServer | None = None) -> NatsLink:
        address = (server or self.gateway.nats).address
        link = await NatsLink.connect(NatsAccess(urls=address, user=role, password=f"pw-{role}"), name=role)
        self.leave.push_async_callback(link.close)
        return link

    async def submit(self, **fields: Any) -> str:
        body = {"model": "anisora", "prompt": "x"} | fields
        response = await self.http.post("/generate", json=body, headers={"prefer": "respond-async"})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    async def record(self, task_id: str) -> GenerationTask:
        entry = await self.link.entries.get(TASKS, task_id)
        assert entry is not None
        return decode_task(entry.value or b"")

    async def route(self) -> str:
        """Where a request goes now."""
        return (await self.record(await self.submit())).route

    async def says(self, wanted: str) -> None:
        """Returns when the gateway reports that requests go to *wanted*."""

        async def look() -> bool:
            models = (await self.http.get("/admin/lanes")).json()["models"]
            outcome: str = next(each for each in models if each["model"] == "anisora")["route"]["outcome"]
            return outcome.partition(":")[0] == wanted

        await eventually(look)

    async def routes(self, wanted: str) -> None:
        """Returns when the gateway reports *wanted*, and routes a request there."""
        await self.says(wanted)
        assert await self.route() == wanted

    async def queued(self, route: str, task_id: str) -> int:
        """Publishes a message as a gateway does, for a task that has no record; returns its sequence."""
        now = datetime.now(UTC)
        deadline = now + timedelta(seconds=30)
        task = pending_task(task_id, created_at=now, queued_at=now, deadline_at=deadline, route=route)
        assert route in ("lane", "degraded")
        ack = await self.link.messages.publish(work_subject(route, "anisora", task_id), encode_task(task))  # type: ignore[arg-type]
        return ack.seq

    async def put(self, bucket: str, key: str, value: object) -> None:
        await self.link.entries.put(bucket, key, msgspec.json.encode(value))


class Watching:
    """A command that runs until it is interrupted."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: list[str] = []

    async def says(self, *wanted: str) -> str:
        """The next line that holds all of *wanted*."""
        assert self._process.stdout is not None
        while True:
            line = (await asyncio.wait_for(self._process.stdout.readline(), BOUND_S)).decode()
            self._said.append(line)
            assert line, f"it ended; it said {self._said}"
            assert not _TROUBLE.search(line), line
            if all(each in line for each in wanted):
                return line

    async def draws(self, *wanted: str) -> None:
        """Returns when all of *wanted* have been on the screen."""
        assert self._process.stdout is not None
        drawn = ""
        while not all(each in drawn for each in wanted):
            more = await asyncio.wait_for(self._process.stdout.read(4096), BOUND_S)
            assert more, f"it ended; it drew {drawn}"
            drawn += more.decode(errors="replace")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Page:
    """One section, whose commands are carried out one after the other."""

    def __init__(self, stage: Stage, lines: list[Line]) -> None:
        self._stage = stage
        self._left = lines

    async def run(self, expected: str, *, on: NatsServer | None = None, **variables: object) -> str:
        """Types the next command as the runbook prints it, and returns its output. It has to begin with *expected*.

        It must succeed, and print no error, no warning and nothing about permissions.
        """
        line = self._next(expected)
        if line.command.startswith("curl"):
            return (await self._http(line.command, variables)).text
        if line.command.startswith("warmlane"):
            command = line.command.replace("$ID", str(variables.get("ID")))
            return await self._warmlane(shlex.split(command)[1:], on)
        process = await self._shell(line.printed, on, variables)
        output, _ = await asyncio.wait_for(process.communicate(), BOUND_S)
        text = output.decode(errors="replace")
        assert process.returncode == 0, f"{line.printed}\n{text}"
        assert not _TROUBLE.search(text), f"{line.printed}\n{text}"
        return text

    async def watch(self, expected: str, *, terminal: bool = False) -> Watching:
        """As `run`, for a command that does not end by itself. *terminal*: it runs on a terminal."""
        line = self._next(expected)
        typed = f"script -qfec 'stty rows 30 cols 100; exec {line.command}' /dev/null" if terminal else line.printed
        watching = Watching(await self._shell(typed, None, {}, goes_on=True))
        self._stage.leave.push_async_callback(watching.end)
        return watching

    def finish(self) -> None:
        assert self._left == [], "lines that the test does not come to"

    def _next(self, expected: str) -> Line:
        line = self._left.pop(0)
        plain = re.sub(r"--context \$\w+ ", "", line.command)
        assert plain.startswith(expected), f"the next line is {line.command!r}"
        return line

    async def _shell(
        self, typed: str, server: NatsServer | None, variables: dict[str, object], *, goes_on: bool = False
    ) -> asyncio.subprocess.Process:
        return await in_shell(typed, server or self._stage.gateway.nats, self._stage.folder, variables, goes_on=goes_on)

    async def _http(self, command: str, variables: dict[str, object]) -> httpx.Response:
        request = _CURL.match(command.replace("$ID", str(variables.get("ID"))))
        assert request is not None, command
        return await self._stage.http.request(request[1] or "GET", request[2])

    async def _warmlane(self, arguments: list[str], server: NatsServer | None) -> str:
        environment = environment_for("admin", clean_environment()) | {
            "WARMLANE_URL": self._stage.gateway.url,
            "WARMLANE_NATS_URL": (server or self._stage.gateway.nats).address,
        }
        result = await asyncio.to_thread(CliRunner(env=environment).invoke, cli, arguments)
        assert result.exit_code == 0, result.output
        return result.output


async def in_shell(
    typed: str,
    server: NatsServer,
    folder: Path,
    variables: Mapping[str, object] | None = None,
    *,
    goes_on: bool = False,
    timeout: str = "5s",
) -> asyncio.subprocess.Process:
    """A shell in *folder* in which *typed* runs, after the lines of the runbook that choose the NATS user."""
    made = folder / ".warmlane" / AUTH_FOLDER
    made.mkdir(parents=True, exist_ok=True)
    for role in ("operator", "admin", "system"):
        context = {"url": server.address, "user": role, "password": f"pw-{role}", "inbox_prefix": f"_INBOX_{role}"}
        file, content = made / f"{role}.json", json.dumps(context)
        if not file.exists() or file.read_text() != content:  # another shell may be reading it
            file.write_text(content)
    assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in (variables or {}).items())
    environment = clean_environment() | {
        "PATH": f"{tool('nats').parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "NATS_TIMEOUT": timeout,
        "TERM": "xterm",
    }
    return await asyncio.create_subprocess_exec(
        "bash",
        "-o",
        "pipefail",
        "-c",
        f"set -a\n{switched_over()}\n{assignments}{'exec ' if goes_on else ''}{typed}",
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )


def number(label: str, text: str) -> int:
    """The number that the CLI prints after *label*."""
    found = re.search(rf"^\s*{re.escape(label)}: ([\d,]+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def rows(text: str) -> list[list[str]]:
    """The rows of the table that the CLI draws, without its title and heading."""
    cut = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    width = max(map(len, cut), default=0)
    return [row for row in cut if len(row) == width][1:]


def values(text: str) -> list[Any]:
    """What `jq` prints: one JSON text after the other."""
    found, decoder, text = [], json.JSONDecoder(), text.strip()
    while text:
        value, end_at = decoder.raw_decode(text)
        found.append(value)
        text = text[end_at:].lstrip()
    return found


def json_in(text: str) -> bytes:
    """The JSON object in a message, which follows the CLI's own lines about the message."""
    return text[text.index("\n{") :].strip().encode()


def subjects(text: str) -> dict[str, int]:
    """What `nats stream subjects` draws: three columns of subject and count."""
    found = [row[at : at + 2] for row in rows(text) for at in range(0, len(row), 2)]
    return {subject: int(count) for subject, count in found if subject}
