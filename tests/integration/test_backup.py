"""A backup that is taken while tasks go on, and its restore on a server that lost everything."""

import asyncio
import contextlib
import shutil
import stat
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from nats.js.api import StreamConfig

from contracts import lifecycle
from contracts.lanes import LaneState
from contracts.settings import Catalog, load_settings
from contracts.tasks import FailureCode, GenerationTask, TaskStatus, decode_task, encode_task
from contracts.topology import RETIRED, TASKS, StreamSpec, lane_stream, work_subject
from ops.commands.backup.command import backup_command, restore_command
from ops.commands.backup.layout import BackupError, BackupManifest, restore_order, snapshot_order
from ops.commands.backup.restoring import restore
from ops.commands.backup.saving import backup
from ops.nats.entry import Entry
from ops.nats.errors import TransportUnavailable
from ops.nats.link import NatsLink
from ops.nats.provisioning import differences, provision, wanted
from ops.nats.retired import retired
from tests.kit.behind import js_of
from tests.kit.gateway import GatewayProcess, System
from tests.kit.lanes import Lane, SharedForkServer
from tests.kit.patient import connected
from tests.kit.records import after, pending_task, processing_task
from tests.kit.support import KEEP_S, NatsServer, eventually, settings_file

pytestmark = pytest.mark.usefixtures("rogue_forks")

S2_MAGIC: Final = b"\xff\x06\x00\x00S2sTwO"
SMALL: Final = {"model": "phr00t", "prompt": "x", "num_frames": 9, "width": 32, "height": 32}


def wipe(server: NatsServer) -> None:
    """kill -9, and the disk is gone too: the same address with an empty store."""
    server.kill()
    shutil.rmtree(server._folder)
    server._folder.mkdir()
    server.start()


async def save(link: NatsLink, catalog: Catalog, folder: Path) -> BackupManifest:
    return await backup(link, wanted(catalog, keep_s=KEEP_S), folder, lambda *_: None)


async def bring_back(link: NatsLink, folder: Path) -> int:
    """Restores, and returns how many tasks have not ended."""
    return (await restore(link, folder, lambda *_: None, replicas=None))[1]


@contextlib.asynccontextmanager
async def link_to(server: NatsServer) -> AsyncIterator[NatsLink]:
    link = await connected(server.url)
    yield link
    await link.close()


async def history(link: NatsLink) -> dict[str, list[Entry]]:
    """Every revision of every record that the bucket holds."""
    seen: dict[str, list[Entry]] = defaultdict(list)
    await (await link.watches.start(TASKS, lambda entry: seen[entry.key].append(entry), history=True)).wait()
    return seen


def states(entries: list[Entry]) -> list[TaskStatus]:
    return [decode_task(entry.value or b"").status for entry in entries]


# ── a disaster ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def fork_server() -> AsyncIterator[SharedForkServer]:
    server = SharedForkServer()
    yield server
    await server.close_at_last()


async def is_over(link: NatsLink, task_id: str, what: str) -> None:
    """A lease or a wait that ended while the server was gone: the test need not wait for that."""
    entry = await link.entries.get(TASKS, task_id)
    assert entry is not None
    task = replace(decode_task(entry.value or b""), **{what: datetime.now(UTC)})
    await link.entries.update(TASKS, task_id, encode_task(task), revision=entry.revision)


# How many tasks are submitted during the backup: no more than the lane takes later within the wait limit, on a busy
# machine.
MEANWHILE_MAX: Final = 5


async def test_every_task_ends_once_after_the_server_lost_its_disk(
    tmp_path: Path, fork_server: SharedForkServer
) -> None:
    """The backup is taken while clients submit. Done records come back byte for byte; unfinished tasks end, once."""
    settings = settings_file(tmp_path, reconnect_grace_s=0.5)
    catalog = load_settings(settings).catalog("tiny")
    gateway = GatewayProcess(tmp_path)
    gateway.nats.start()
    link = await connected(gateway.nats.url)
    await provision(link, wanted(catalog, keep_s=KEEP_S))
    gateway.start("--settings", str(settings))
    lane = Lane(link, catalog, tmp_path, fork_server=fork_server)
    lane.start()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as http:
        system = System(gateway, link, http)

        async def submit() -> str:
            response = await http.post("/generate", json=SMALL)
            assert response.status_code == 202, response.text
            return str(response.json()["id"])

        await lane.becomes(LaneState.WARM)
        await system.lane_is(LaneState.WARM, model="phr00t")
        finished = [await submit() for _ in range(3)]
        for task_id in finished:
            await system.becomes(task_id, TaskStatus.DONE, epoch=0)
        await lane.leave()
        await system.lane_is(LaneState.WARM, model="phr00t")  # no worker takes the next tasks
        waiting = [await submit() for _ in range(5)]
        running = [await submit() for _ in range(2)]
        for task_id in running:
            await system.claim(task_id)
        held = (await system.submit("anisora"))["id"]  # no lane: the degraded queue
        before = {task_id: await link.entries.get(TASKS, task_id) for task_id in finished}

        meanwhile: list[str] = []
        saved = asyncio.Event()

        async def go_on() -> None:
            while not saved.is_set():
                if len(meanwhile) < MEANWHILE_MAX:
                    meanwhile.append(await submit())
                else:
                    await asyncio.sleep(0.01)

        client = asyncio.create_task(go_on())

        async def begun() -> bool:
            return len(meanwhile) > 2

        await eventually(begun)
        await save(link, catalog, tmp_path / "backup")
        saved.set()
        await client
        gateway.stop()
        await link.close()
        wipe(gateway.nats)

        result = await asyncio.to_thread(
            CliRunner().invoke, restore_command, [str(tmp_path / "backup"), "--nats-url", gateway.nats.url]
        )
        assert result.exit_code == 0, result.output
        assert "tasks had not ended and go on" in result.output
        assert "forgotten since the backup are back" in result.output
        system.link = link = await connected(gateway.nats.url)
        assert await differences(link, wanted(catalog, keep_s=KEEP_S)) == []
        assert {task_id: await link.entries.get(TASKS, task_id) for task_id in finished} == before
        came_back = {
            task_id: decode_task(entries[-1].value or b"") for task_id, entries in (await history(link)).items()
        }
        assert {came_back[task_id].status for task_id in running} == {TaskStatus.PROCESSING}
        assert {came_back[task_id].status for task_id in [*waiting, held]} == {TaskStatus.PENDING}
        for task_id in running:
            await is_over(link, task_id, "lease_expires_at")
        await is_over(link, held, "deadline_at")

        lane = Lane(link, catalog, tmp_path, fork_server=fork_server)
        lane.start()
        for task_id in waiting:
            await system.becomes(task_id, TaskStatus.DONE, epoch=0)
        gateway.start("--settings", str(settings))

        async def all_ended() -> bool:
            try:
                known = await history(link)
            except TransportUnavailable:  # the server is back, and busy
                return False
            return all(states(entries)[-1].is_terminal for entries in known.values())

        await eventually(all_ended, within_s=90)
        await lane.leave()
    gateway.stop()
    seen = await history(link)
    assert {*finished, *waiting, *running, held} <= set(seen)
    for task_id, entries in seen.items():
        ended = [status for status in states(entries) if status.is_terminal]
        assert (len(ended), states(entries)[-1]) == (1, ended[0]), task_id
    for task_id in running:
        task = decode_task(seen[task_id][-1].value or b"")
        assert (task.status, task.epoch, task.attempt) == (TaskStatus.DONE, 1, 2)
    overdue = decode_task(seen[held][-1].value or b"").error
    assert overdue is not None
    assert overdue.code is FailureCode.QUEUE_OVERLOADED
    await link.close()
    gateway.nats.stop()


# ── what lies between two snapshots ──────────────────────────────────────────────────────────────────────────────────


def cancelled_task(task_id: str) -> GenerationTask:
    return lifecycle.fail(pending_task(task_id), code=FailureCode.CANCELLED, message="cancelled", now=after(1))


async def place(link: NatsLink, task: GenerationTask) -> None:
    await link.messages.publish(
        work_subject("lane", task.model, task.id), encode_task(task), message_id=task.message_id
    )
    await link.entries.create(TASKS, task.id, encode_task(task))


async def test_a_record_that_outruns_its_snapshot_comes_back(
    nats_server: NatsServer, link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """A record that moves more often during the snapshot than the bucket's history is long is missing from it."""
    for number in range(40):  # 12 MB before it: more than the server sends ahead of its client
        await link.entries.put(TASKS, f"filler-{number}", bytes([number]) + random_bytes(300_000))
    task = processing_task(lease_s=20)
    await place(link, pending_task(task.id))
    entry = await link.entries.get(TASKS, task.id)
    assert entry is not None
    before = await link.entries.update(TASKS, task.id, encode_task(task), revision=entry.revision)
    moved = threading.Event()

    async def move_on() -> None:
        other = await NatsLink.connect(nats_server.url, name="mover")
        revision = before
        for number in range(30):
            revision = await other.entries.update(
                TASKS, task.id, encode_task(replace(task, traceparent=f"{number}")), revision=revision
            )
        await other.close()

    def on_bytes(name: str, _: int, __: int) -> None:
        if name == "KV_tasks" and not moved.is_set():
            moved.set()
            mover = threading.Thread(target=lambda: asyncio.run(move_on()))
            mover.start()
            mover.join()  # the backup waits meanwhile, and the server with it

    await backup(link, wanted(catalog, keep_s=KEEP_S), tmp_path / "backup", on_bytes)
    assert moved.is_set()
    wipe(nats_server)
    async with link_to(nats_server) as link:
        assert await bring_back(link, tmp_path / "backup") == 1
        entry = await link.entries.get(TASKS, task.id)
    assert entry is not None
    assert entry.value == encode_task(task)


async def test_a_backup_of_an_earlier_version_comes_back_without_its_timers(
    nats_server: NatsServer, link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    """Every task that has not ended is counted: a gateway reads the deadline of each from its record."""
    await js_of(link).add_stream(StreamConfig(name=RETIRED[0], subjects=["deadline.set.>"]))
    for task in (pending_task("waits"), pending_task("ended")):
        await place(link, task)
    running = replace(processing_task(), id="runs")
    await link.entries.create(TASKS, running.id, encode_task(running))
    ended = await link.entries.get(TASKS, "ended")
    assert ended is not None
    await link.entries.update(TASKS, "ended", encode_task(cancelled_task("ended")), revision=ended.revision)
    want = wanted(catalog, keep_s=KEEP_S)
    timers = StreamSpec(name=RETIRED[0], description="", subjects=("deadline.set.>",))
    with_timers = replace(want, streams=(*want.streams, timers))
    await backup(link, with_timers, tmp_path / "backup", lambda *_: None)
    assert (tmp_path / "backup" / RETIRED[0]).is_dir()
    wipe(nats_server)
    async with link_to(nats_server) as link:
        assert await bring_back(link, tmp_path / "backup") == 2
        assert await differences(link, want) == []
        assert await retired(link) == []


def test_the_order(catalog: Catalog) -> None:
    names = snapshot_order(wanted(catalog, keep_s=KEEP_S))
    assert sorted(names) == sorted(set(names)) == sorted(wanted(catalog, keep_s=KEEP_S).names)
    queues = {names.index(name) for name in ("LANE_ANISORA", "LANE_PHR00T", "DEGRADED")}
    assert max(queues) < names.index("KV_tasks")
    back = restore_order(names)
    assert sorted(back) == sorted(names)
    assert back.index("KV_tasks") < min(back.index(name) for name in ("LANE_ANISORA", "LANE_PHR00T", "DEGRADED"))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def random_bytes(size: int) -> bytes:
    with Path("/dev/urandom").open("rb") as source:
        return source.read(size)


async def test_the_layout_is_that_of_the_nats_cli(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    """One folder for each stream with `backup.json`, a restore request, and the server's archive."""
    want = wanted(catalog, keep_s=KEEP_S)
    manifest = await save(link, catalog, tmp_path / "backup")
    assert [stream.name for stream in manifest.streams] == snapshot_order(want)
    for stream in manifest.streams:
        folder = tmp_path / "backup" / stream.name
        assert sorted(path.name for path in folder.iterdir()) == ["backup.json", "stream.arc.s2"]
        meta = (folder / "backup.json").read_text()
        assert f'"name": "{stream.name}"' in meta
        assert '"state"' in meta
        assert (folder / "stream.arc.s2").read_bytes().startswith(S2_MAGIC)
    # the backup contains prompts
    made = [tmp_path / "backup", *(tmp_path / "backup").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600, 0o700}
    assert not (tmp_path / "backup.part").exists()


async def test_what_is_refused_leaves_nothing_behind(
    nats_server: NatsServer, link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(BackupError, match="not empty"):
        await save(link, catalog, full)
    assert [path.name for path in full.iterdir()] == ["mine"]
    (tmp_path / "cut.part").mkdir()
    with pytest.raises(BackupError, match=r"cut\.part is there"):
        await save(link, catalog, tmp_path / "cut")

    folder = tmp_path / "backup"
    await save(link, catalog, folder)
    with pytest.raises(BackupError, match=r"the server holds .*DEGRADED.* already"):
        await bring_back(link, folder)
    await js_of(link).delete_stream("DEGRADED")
    result = await asyncio.to_thread(
        CliRunner().invoke, backup_command, [str(tmp_path / "second"), "--nats-url", nats_server.url]
    )
    assert (result.exit_code, "DEGRADED: stream not found" in result.output) == (1, True)
    assert not (tmp_path / "second").exists()
    assert not (tmp_path / "second.part").exists()

    wipe(nats_server)
    async with link_to(nats_server) as link:
        archive = folder / "KV_tasks" / "stream.arc.s2"
        whole = archive.read_bytes()
        archive.write_bytes(whole[:-1])
        with pytest.raises(BackupError, match="SHA-256"):
            await bring_back(link, folder)
        archive.unlink()
        with pytest.raises(BackupError, match="No such file"):
            await bring_back(link, folder)
        archive.write_bytes(whole)
        with pytest.raises(BackupError, match=r"has no manifest\.json"):
            await bring_back(link, folder / "KV_tasks")
        with pytest.raises(BackupError, match="replicas > 1 not supported"):
            await restore(link, folder, lambda *_: None, replicas=3)
        assert (await js_of(link).account_info()).streams == 0
        assert await bring_back(link, folder) == 0
        assert await differences(link, wanted(catalog, keep_s=KEEP_S)) == []


async def test_a_restore_that_breaks_off_removes_what_it_brought(
    nats_server: NatsServer, link: NatsLink, catalog: Catalog, tmp_path: Path
) -> None:
    await save(link, catalog, tmp_path / "backup")
    wipe(nats_server)

    def break_off(name: str, _: int, __: int) -> None:
        if name == lane_stream("phr00t"):
            raise KeyboardInterrupt

    async with link_to(nats_server) as link:
        with pytest.raises(KeyboardInterrupt):
            await restore(link, tmp_path / "backup", break_off, replicas=None)
        assert (await js_of(link).account_info()).streams == 0
        assert await bring_back(link, tmp_path / "backup") == 0
    nats_server.kill()  # a stop would wait for the rest of the interrupted transfer
