"""`ops/runbook.md`, line by line: the calls that each `nats` line makes, on a real server, as the user that it names,
and what becomes of it. The tool itself is not needed: `tests/nats_cli.py` makes its requests.

A section without a test here fails, and so does a line that its test does not come to.
"""

import asyncio
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Any, Final

import click
import httpx
import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Struct

from contracts import lifecycle
from contracts.lanes import ColdStart, LaneState, Leadership, SlotState, decode_episode
from contracts.settings import load_settings
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import (
    COLD_STARTS,
    CONTROL,
    DEADLINES,
    DEGRADED,
    FALLBACKS,
    LANES,
    LEADER,
    LEADER_KEY,
    TASKS,
    lane_stream,
    work_subject,
)
from lane_worker.runtime.heartbeat import Heartbeat
from lane_worker.runtime.slot_display import SlotDisplay
from ops.cli import cli
from ops.ending import end
from ops.nats_access import NatsAccess, Role, environment_for
from ops.nats_client import Denied
from ops.nats_link import NatsLink
from ops.provision import differences, wanted
from tests.conftest import KEEP_S
from tests.integration.conftest import GatewayProcess
from tests.nats_cli import Entry, User, Watch, call
from tests.records import pending_task
from tests.support import NatsServer, clean_environment, eventually
from tests.unit.samples import data_uri, picture

RUNBOOK: Final = Path(__file__).parents[2] / "ops" / "runbook.md"
LANE: Final = lane_stream("anisora")
_SECTION: Final = re.compile(r"^##? (.+)$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CURL: Final = re.compile(r"curl -s (?:-X (\w+) )?http://127\.0\.0\.1:8000(\S+)$")
# What a section may hold besides `nats`, `warmlane` and `curl`.
_OTHER: Final = re.compile(r"export NATS_CONTEXT=|[A-Z]+=|grep |nvidia-smi")


class Line(Struct, frozen=True):
    """A command of the runbook: without its comment, and the program that reads what it prints."""

    command: str
    read_by: str = ""


def sections() -> dict[str, list[Line]]:
    """The commands of each section that are carried out here, in their order."""
    parts = _SECTION.split(RUNBOOK.read_text())[1:]
    return {
        heading: [line for block in _BLOCK.findall(text) for line in _lines(block)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _lines(block: str) -> Iterator[Line]:
    for text in block.splitlines():
        command, _, read_by = re.sub(r"(^|\s)#\s.*", "", text).strip().partition(" | ")
        if re.match(r"(nats|warmlane|curl) ", command):
            yield Line(command, read_by)
        else:
            assert not command or _OTHER.match(command), f"not carried out by any test: {text}"


class Stage:
    """The system that the runbook is about: a server, a gateway, whose lanes are reported warm, and no worker."""

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
        entry = await self.link.get(TASKS, task_id)
        assert entry is not None
        return decode_task(entry.value or b"")

    async def route(self) -> str:
        """Where a request goes now."""
        return (await self.record(await self.submit())).route

    async def says(self, wanted: str) -> None:
        """Returns when the gateway says that requests go to *wanted*."""

        async def look() -> bool:
            models = (await self.http.get("/admin/lanes")).json()["models"]
            outcome: str = next(each for each in models if each["model"] == "anisora")["route"]["outcome"]
            return outcome.partition(":")[0] == wanted

        await eventually(look)

    async def routes(self, wanted: str) -> None:
        """Returns when the gateway says so, and does it."""
        await self.says(wanted)
        assert await self.route() == wanted

    async def queued(self, route: str, task_id: str) -> int:
        """A message as a gateway sends it, of a task that it does not know; its sequence."""
        now = datetime.now(UTC)
        deadline = now + timedelta(seconds=30)
        task = pending_task(task_id, created_at=now, queued_at=now, deadline_at=deadline, route=route)
        assert route in ("lane", "degraded")
        ack = await self.link.publish(work_subject(route, "anisora", task_id), encode_task(task))  # type: ignore[arg-type]
        return ack.seq

    async def put(self, bucket: str, key: str, value: object) -> None:
        await self.link.put(bucket, key, msgspec.json.encode(value))


class Page:
    """One section, whose commands are carried out one after the other."""

    def __init__(self, stage: Stage, lines: list[Line]) -> None:
        self._stage = stage
        self._left = lines
        self._users: dict[tuple[Role, NatsServer | None], User] = {}

    async def run(self, expected: str, *, on: NatsServer | None = None, **variables: object) -> Any:
        """Carries out the next command, which has to begin with *expected*, and returns what it shows.

        A `nats` command that the section gives to `admin` has to be denied to `operator`.
        """
        line = self._left.pop(0)
        command = Template(line.command).substitute(ADMIN="admin", **{k: str(v) for k, v in variables.items()})
        plain = command.replace("--context admin ", "")
        assert plain.startswith(expected), f"the next line is {line.command!r}"
        if command.startswith("curl"):
            return await self._http(command)
        if command.startswith("warmlane"):
            return await self._warmlane(shlex.split(command)[1:], on)
        arguments = shlex.split(plain)[1:]
        if plain != command:
            with pytest.raises(Denied):
                await call(arguments, await self._user("operator", on))
        shown = await call(arguments, await self._user("operator" if plain == command else "admin", on))
        if line.read_by:
            self._read(line.read_by, shown)
        return shown

    def finish(self) -> None:
        assert self._left == [], "lines that the test does not come to"

    async def _user(self, role: Role, server: NatsServer | None) -> User:
        if (role, server) not in self._users:
            self._users[role, server] = User(await self._stage.as_role(role, server))
        return self._users[role, server]

    async def _http(self, command: str) -> httpx.Response:
        told = _CURL.match(command)
        assert told is not None, command
        return await self._stage.http.request(told[1] or "GET", told[2])

    async def _warmlane(self, arguments: list[str], server: NatsServer | None) -> str:
        environment = environment_for("admin", clean_environment()) | {
            "WARMLANE_URL": self._stage.gateway.url,
            "WARMLANE_NATS_URL": (server or self._stage.gateway.nats).address,
        }
        result = await asyncio.to_thread(CliRunner(env=environment).invoke, cli, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    @staticmethod
    def _read(program: str, shown: bytes) -> None:
        """The fields that `jq` is to show are there."""
        assert program.startswith("jq"), program
        fields = re.findall(r"\.(\w+)", program)
        assert set(fields) <= set(json.loads(shown)), program


@pytest.fixture
async def stage(
    gateway: GatewayProcess,
    http: httpx.AsyncClient,
    gateway_link: NatsLink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    monkeypatch.chdir(tmp_path)
    for stream in (LANE, DEGRADED):
        await gateway_link.js.purge_stream(stream)
    await gateway_link.put(CONTROL, "lanes.anisora", b"auto")
    stage = Stage(gateway, http, gateway_link, tmp_path)
    await stage.says("lane")
    async with stage.leave:
        yield stage


# ── the sections ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def the_context(stage: Stage, page: Page) -> None:
    names = await page.run("nats stream ls --all")
    assert set(names) == set(wanted(load_settings().catalog("tiny"), keep_s=KEEP_S).names)


async def what_is_waiting(stage: Stage, page: Page) -> None:
    ids = [await stage.submit(), await stage.submit()]
    await stage.queued("degraded", "waits")
    assert re.search(rf"{DEGRADED}\W+1 of 25\b", await page.run("warmlane status"))
    state = await page.run("nats stream info DEGRADED")
    assert state["messages"] == 1
    state = await page.run("nats stream info LANE_ANISORA")
    assert state["messages"] == 2
    assert "first_ts" in state
    assert await page.run("nats stream subjects DEGRADED") == {"degraded.anisora.waits": 1}
    assert await page.run("nats stream subjects LANE_ANISORA") == {f"lane.anisora.{task_id}": 1 for task_id in ids}
    _, subject, content = await page.run("nats stream get LANE_ANISORA", SEQ=state["first_seq"])
    assert (subject, decode_task(content).id) == (f"lane.anisora.{ids[0]}", ids[0])
    info = await page.run("nats consumer info LANE_ANISORA worker")
    assert (info["num_pending"], info["num_ack_pending"]) == (2, 0)
    assert "num_waiting" in info
    assert (await page.run("nats consumer info DEGRADED worker"))["num_pending"] == 1
    for kind in ("admit", "lease"):  # the gateway asks for due timers
        assert (await page.run(f"nats consumer info DEADLINES sweep-{kind}"))["name"] == f"sweep-{kind}"


async def who_is_warm(stage: Stage, page: Page) -> None:
    now = datetime.now(UTC)
    await stage.put(LEADER, LEADER_KEY, Leadership(worker="degraded-0", owner="o", slot="cpu-2", pid=1, since=now))
    await stage.link.put(CONTROL, "lanes.anisora", b"degraded")
    await stage.routes("degraded")

    async def falls_back() -> bool:
        entry = await stage.link.get(FALLBACKS, "anisora")
        return entry is not None and decode_episode(entry.value or b"").until is None

    await eventually(falls_back)
    for seconds in (4.0, 5.0):
        start = ColdStart(model="anisora", worker="anisora-0", started_at=now, ended_at=now, seconds=seconds)
        await stage.put(COLD_STARTS, "anisora", start)
    shown = SlotDisplay(await stage.as_role("degraded"), slot="cpu-2", worker="degraded-0")
    running = asyncio.create_task(shown.run())
    stage.leave.push_async_callback(end, running)
    shown.show(SlotState.RESIDENT, "phr00t")
    await shown.settled()

    lanes = await page.run("nats kv ls lanes")
    assert json.loads(lanes["anisora.anisora-0"].value)["state"] == "warm"
    assert {"state", "detail", "health_age_s", "slot", "pid", "in_hand"} <= set(
        json.loads(await page.run("nats kv get lanes anisora.anisora-0"))
    )
    watch: Watch = await page.run("nats kv watch lanes")
    assert {(await watch.next()).key for _ in lanes} == set(lanes)
    assert json.loads(await page.run("nats kv get leader degraded"))["worker"] == "degraded-0"
    slots = await page.run("nats kv ls slots")
    assert json.loads(slots["cpu-2"].value)["model"] == "phr00t"
    told = json.loads(await page.run("nats kv get fallbacks anisora"))
    assert (told["cause"], told["until"]) == ("manual", None)
    starts: list[Entry] = await page.run("nats kv history cold_starts anisora")
    assert [json.loads(entry.value or b"")["seconds"] for entry in starts[-2:]] == [4.0, 5.0]


async def a_tasks_timeline(stage: Stage, page: Page) -> None:
    task_id = await stage.submit()
    await stage.http.delete(f"/tasks/{task_id}")
    told = json.loads(await page.run("nats kv get tasks", ID=task_id))
    assert [event["event"] for event in told["timeline"]] == ["accepted", "fail"]
    assert {"memory", "swap"} <= set(told)
    moves: list[Entry] = await page.run("nats kv history tasks", ID=task_id)
    assert [decode_task(entry.value or b"").status for entry in moves] == [TaskStatus.PENDING, TaskStatus.FAILED]
    before = await page.run("nats kv get tasks", ID=task_id, REVISION=moves[0].revision)
    assert decode_task(before).status is TaskStatus.PENDING
    waits = await stage.submit()
    _, _, content = await page.run("nats stream get LANE_ANISORA --last-for", ID=waits)
    assert decode_task(content).id == waits
    assert await page.run("nats stream subjects DEADLINES", ID=waits) == {f"deadline.set.admit.{waits}": 1}
    explained = await page.run("curl", ID=task_id)
    assert explained.json()["decision"]["outcome"] == "lane"


async def force_and_lift(stage: Stage, page: Page) -> None:
    await stage.routes("lane")
    await page.run("warmlane lane-mode anisora degraded")
    assert await stage.route() == "degraded"
    await stage.link.put(CONTROL, "lanes.anisora", b"auto")
    await stage.routes("lane")
    await page.run("nats kv put control lanes.anisora degraded")
    await stage.routes("degraded")
    assert await page.run("nats kv get control lanes.anisora") == b"degraded"
    await page.run("warmlane lane-mode anisora auto")
    assert await stage.route() == "lane"
    await stage.link.put(CONTROL, "lanes.anisora", b"degraded")
    await stage.routes("degraded")
    await page.run("nats kv put control lanes.anisora auto")
    await stage.routes("lane")


async def pause(stage: Stage, page: Page) -> None:
    """Also a worker that asked before the pause gets nothing, and a provisioned server stays one."""
    lane = await stage.as_role("lane")
    early, late = [await lane.pull(LANE, "worker") for _ in range(2)]
    await page.run("nats kv put control lanes.anisora degraded")
    await stage.routes("degraded")
    asking = asyncio.create_task(early.fetch())

    async def asks() -> bool:
        return bool((await stage.link.js.consumer_info(LANE, "worker")).num_waiting)

    await eventually(asks)
    await page.run("nats consumer pause")
    await stage.queued("lane", "paused")
    assert [*await asking, *await late.fetch()] == []
    info = await page.run("nats consumer info LANE_ANISORA worker")
    assert info["paused"]
    assert info["num_pending"] == 1
    assert await differences(stage.link, wanted(load_settings().catalog("tiny"), keep_s=KEEP_S)) == []
    await page.run("nats consumer resume")
    (message,) = await late.fetch()
    assert message.subject == "lane.anisora.paused"
    await message.ack()
    await page.run("nats kv put control lanes.anisora auto")
    await stage.routes("lane")


async def drain(stage: Stage, page: Page) -> None:
    """What is seen of a lane that leaves: `tests/integration/test_lane_worker.py` has lanes that do."""
    heartbeat = Heartbeat(
        await stage.as_role("lane"),
        model="anisora",
        worker="anisora-0",
        slot="cpu-0",
        interval_s=60,
        health_age_s=lambda: 0.0,
        started_at=datetime.now(UTC),
    )
    running = asyncio.create_task(heartbeat.run())
    stage.leave.push_async_callback(end, running)
    heartbeat.set(LaneState.DRAINING)
    await heartbeat.told()
    told = json.loads(await page.run("nats kv get lanes anisora.anisora-0"))
    assert (told["state"], told["pid"]) == ("draining", os.getpid())
    watch: Watch = await page.run("nats kv watch lanes anisora.anisora-0")
    assert json.loads((await watch.next()).value or b"")["state"] == "draining"
    await end(running)
    await heartbeat.leave()
    gone = await watch.next()
    assert (gone.key, gone.value) == ("anisora.anisora-0", None)
    await leads(stage, "degraded-1")
    assert json.loads(await page.run("nats kv get leader degraded"))["worker"] == "degraded-1"


async def a_poisoned_message(stage: Stage, page: Page) -> None:
    poison = await stage.link.publish(f"lane.anisora.{'poison'}", b"\0\xff")
    await stage.queued("lane", "good")
    assert "lane.anisora.poison" in await page.run("nats stream subjects LANE_ANISORA")
    sequence, _, content = await page.run("nats stream get LANE_ANISORA --last-for lane.anisora.poison")
    assert (sequence, content) == (poison.seq, b"\0\xff")
    await page.run("nats stream rmm", SEQ=sequence)
    pull = await (await stage.as_role("lane")).pull(LANE, "worker")
    (message,) = await pull.fetch()
    assert message.subject == "lane.anisora.good"
    await message.ack()

    task_id = await stage.submit()
    before = await stage.link.get(TASKS, task_id)
    assert before is not None
    await stage.link.put(TASKS, task_id, b"\0\xff")
    assert (await stage.http.delete(f"/tasks/{task_id}")).status_code == 404  # nobody can read it
    moves: list[Entry] = await page.run("nats kv history tasks", ID=task_id)
    assert [entry.value for entry in moves] == [before.value, b"\0\xff"]
    good = await page.run("nats kv get tasks", ID=task_id, REVISION=moves[0].revision)
    assert good == before.value
    await page.run("nats kv revert tasks", ID=task_id, REVISION=moves[0].revision)
    assert await stage.record(task_id) == decode_task(before.value or b"")
    ended = await page.run("curl", ID=task_id)
    assert (ended.status_code, ended.json()["error"]["code"]) == (200, "cancelled")

    await stage.link.put(LANES, "anisora.poison", b"\0\xff")
    await page.run("nats kv del lanes anisora.poison")
    entry = await stage.link.get(LANES, "anisora.poison")
    assert entry is not None
    assert entry.value is None
    await stage.link.js.purge_stream(f"KV_{LANES}", subject=f"$KV.{LANES}.anisora.poison")


async def requeue(stage: Stage, page: Page) -> None:
    task_id = await stage.submit(prompt="a red fox", seed=7, num_frames=33)
    await stage.http.delete(f"/tasks/{task_id}")
    told = json.loads(await page.run("nats kv get tasks", ID=task_id))
    assert (told["error"]["code"], told["parameters"]["seed"]) == ("cancelled", 7)
    printed = await page.run("warmlane resubmit", ID=task_id)
    again = await stage.record(printed.split()[0])
    assert again.id != task_id
    assert (again.status, again.parameters) == (TaskStatus.PENDING, (await stage.record(task_id)).parameters)
    assert (await stage.record(task_id)).status is TaskStatus.FAILED
    content = picture("PNG")
    (stage.folder / "boat.png").write_bytes(content)
    with_image = await stage.submit(image=data_uri(content))
    await stage.http.delete(f"/tasks/{with_image}")
    printed = await page.run("warmlane resubmit", ID=with_image)
    assert (await stage.record(printed.split()[0])).parameters == (await stage.record(with_image)).parameters


async def lift_a_quarantine(stage: Stage, page: Page) -> None:
    shown = SlotDisplay(await stage.as_role("degraded"), slot="cpu-2", worker="degraded-0")
    await shown.start()
    running = asyncio.create_task(shown.run())
    stage.leave.push_async_callback(end, running)

    async def quarantine() -> None:
        shown.take()
        shown.show(SlotState.QUARANTINED, None, "3 GiB are still held")
        await shown.settled()

    await quarantine()
    assert "quarantined" in await page.run("warmlane slots")
    told = json.loads(await page.run("nats kv get slots cpu-2"))
    assert (told["state"], told["detail"]) == ("quarantined", "3 GiB are still held")
    await page.run("warmlane slots lift cpu-2")
    await asyncio.wait_for(shown.usable(), 20)
    await quarantine()
    assert await shown.look() is not None
    await page.run("nats kv del slots cpu-2")
    await asyncio.wait_for(shown.usable(), 20)


async def back_up_and_restore(stage: Stage, page: Page) -> None:
    task_id = await stage.submit()
    await stage.link.put(CONTROL, "lanes.phr00t", b"auto")
    (stage.folder / "empty").mkdir()
    empty = NatsServer(stage.folder / "empty")
    empty.start()
    stage.leave.callback(empty.stop)
    await page.run("warmlane backup")
    await page.run("warmlane restore", on=empty)
    restored = await stage.as_role("admin", empty)
    entry = await restored.get(TASKS, task_id)
    assert entry is not None
    assert decode_task(entry.value or b"").id == task_id

    for stream in ("KV_control", "KV_slots"):
        await restored.js.delete_stream(stream)
    await page.run("nats stream backup KV_control")
    await page.run("nats stream restore backups/control", on=empty)
    entry = await restored.get(CONTROL, "lanes.phr00t")
    assert entry is not None
    assert entry.value == b"auto"
    await page.run("nats stream restore backups/monday/KV_slots", on=empty)
    assert (await restored.js.stream_info("KV_slots")).config.name == "KV_slots"


async def upgrade(stage: Stage, page: Page) -> None:
    watch: Watch = await page.run("nats kv watch lanes")
    seen = [await watch.next() for _ in range(2)]
    assert {json.loads(entry.value or b"")["state"] for entry in seen} == {"warm"}
    await leads(stage, "degraded-2")
    assert json.loads(await page.run("nats kv get leader degraded"))["worker"] == "degraded-2"

    async def asks() -> bool:  # the gateway does, again and again
        return bool((await stage.link.js.consumer_info(DEADLINES, "sweep-lease")).num_waiting)

    await eventually(asks)
    assert "num_waiting" in await page.run("nats consumer info DEADLINES sweep-lease")


async def roll_back(stage: Stage, page: Page) -> None:
    before = (await stage.link.js.stream_info("KV_tasks")).state.messages
    assert (await page.run("nats stream info KV_tasks"))["messages"] == before


async def leads(stage: Stage, worker: str) -> None:
    now = datetime.now(UTC)
    await stage.put(LEADER, LEADER_KEY, Leadership(worker=worker, owner="o", slot="cpu-2", pid=1, since=now))


async def a_queue_that_does_not_work(stage: Stage, page: Page) -> None:
    assert (await stage.http.get("/readyz")).json()["troubles"] == []
    await page.run("nats consumer info DEADLINES sweep-admit")
    streams = await page.run("nats stream ls --all")
    assert {"DEADLINES", "DEGRADED", "LANE_ANISORA", "KV_tasks"} <= set(streams)


async def a_worker_that_fails(stage: Stage, page: Page) -> None:
    assert json.loads(await page.run("nats kv get lanes anisora.anisora-0"))["state"] == "warm"
    task_id = await stage.submit()
    task, entry = await stage.record(task_id), await stage.link.get(TASKS, task_id)
    now = datetime.now(UTC)
    claimed = lifecycle.claim(task, owner="o", worker="anisora-0", lease_s=20, now=now)
    failed = lifecycle.fail(claimed, code=FailureCode.INFERENCE_FAILED, message="x", now=now)
    assert entry is not None
    await stage.link.update(TASKS, task_id, encode_task(failed), revision=entry.revision)
    told = json.loads(await page.run("nats kv get tasks", ID=task_id))
    assert (told["error"]["code"], told["worker"]) == ("inference_failed", "anisora-0")


SECTIONS: Final[dict[str, Callable[[Stage, Page], Awaitable[None]]]] = {
    "Runbook": the_context,
    "What is waiting": what_is_waiting,
    "Who is warm": who_is_warm,
    "A task's timeline": a_tasks_timeline,
    "Force and lift the fallback": force_and_lift,
    "Pause": pause,
    "Drain": drain,
    "A poisoned message": a_poisoned_message,
    "A queue that does not work": a_queue_that_does_not_work,
    "A worker that fails every task": a_worker_that_fails,
    "Requeue a failed task": requeue,
    "Lift a quarantine": lift_a_quarantine,
    "Back up and restore": back_up_and_restore,
    "Upgrade": upgrade,
    "Roll back": roll_back,
}


@pytest.mark.parametrize("heading", sections())
async def test_section(heading: str, stage: Stage) -> None:
    page = Page(stage, sections()[heading])
    await SECTIONS[heading](stage, page)
    page.finish()


def test_the_headings_stay() -> None:
    """Alerts point to them, and so does the text."""
    assert list(sections()) == list(SECTIONS)
    anchors = {re.sub(r"[^a-z-]", "", heading.lower().replace(" ", "-")) for heading in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text())) <= anchors


@pytest.mark.parametrize(
    "line",
    [
        "stream veiw LANE_ANISORA",
        "stream view LANE_ANISORA",
        "stream info",
        "stream get LANE_ANISORA",
        "kv get tasks ID --last",
        "kv put control lanes.anisora",
        "kv ls lanes --display-value",
        "consumer pause LANE_ANISORA worker soon",
    ],
)
def test_what_the_tool_does_not_have_is_refused(line: str) -> None:
    with pytest.raises(click.UsageError):
        asyncio.run(call(line.split(), User.__new__(User)))
