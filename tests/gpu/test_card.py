"""One pipeline on a card at a time, proven by what the card reports (FR-001..003, FR-019, SC-009); rehearsed on a CPU.

`make gpu-test` runs the tests that need a card, and docs/models/gpu.md keeps their numbers.
"""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from contracts.lanes import LaneState
from contracts.memory import SwapReceipt
from contracts.tasks import GenerationTask, TaskStatus
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, Finished, Generate, StepFinished
from lane_worker.forking.slot import lock_path, read_note
from lane_worker.residence.residence import Residence
from lane_worker.runtime.warm_up import with_picture
from ops.machine.readings import Reading
from ops.nats.link import NatsLink
from tests.bench.peers.heavy import parameters_of
from tests.drills.overload import is_proven
from tests.gpu.filler import PIECE_BYTES, CardTooFull, fill
from tests.gpu.numbers import Numbers
from tests.gpu.scene import MODELS, Scene, filler_command
from tests.kit.degraded import DegradedProcess, becomes, leads, place, task_of
from tests.kit.lanes import heartbeat_of
from tests.kit.support import NatsServer, eventually, is_running, shared_forks
from tests.kit.workers import WorkerProcess

# For swaps of several GB from a cold disk; no test on a CPU comes near this time.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("forks")]

MB = 1_000_000
WITHIN_S = 300.0


class Player:
    """A residence on the slot of the scene, and the reading of the slot's memory from before there was a host."""

    def __init__(self, scene: Scene, fork_server: ForkServer, folder: Path, numbers: Numbers) -> None:
        self.scene, self.folder = scene, folder
        self.probe = scene.probe()
        self._numbers = numbers
        self.host = Host(
            slot=scene.where.slot,
            lock_dir=folder / "locks",
            models_dir=scene.models_dir,
            role="degraded",
            fork_server=fork_server,
        )
        self.residence = Residence(
            host=self.host,
            slot=scene.where.slot,
            models=scene.models,
            probe=self.probe,
            on_state=lambda *_: None,
        )
        self.before = self.read()

    def read(self) -> Reading:
        """The memory in use now."""
        reading = self.probe.read(self.host.pid)
        assert reading is not None
        return reading

    async def generate(self, model: str, prompt: str = "weights") -> float:
        """Runs one task; returns the seconds to its first step."""
        begun_s, first_s = time.perf_counter(), 0.0

        def on_progress(progress: StepFinished) -> None:
            nonlocal first_s
            if progress.step == 1:
                first_s = time.perf_counter() - begun_s

        entry = self.scene.models[model]
        request = Generate("task", 1, parameters_of(entry, prompt), str(self.folder / "video.mp4"))
        outcome = await self.host.generate(with_picture(request, entry, self.folder), on_progress)
        assert isinstance(outcome, Finished), outcome
        assert first_s
        return first_s

    async def ready(self, model: str) -> SwapReceipt:
        receipt = (await self.residence.ready(model)).receipt
        assert is_proven(receipt), receipt
        assert receipt.probe == self.probe.name
        return receipt

    def report(self, what: str, value: str) -> None:
        """Keeps a figure for docs/models/gpu.md."""
        where = self.scene.where
        self._numbers.add(where.device, what, value, is_card=where.kind == "card")


@pytest.fixture
async def player(scene: Scene, rogues: ForkServer, tmp_path: Path, numbers: Numbers) -> AsyncIterator[Player]:
    player = Player(scene, rogues, tmp_path, numbers)
    yield player
    await player.residence.close()


async def test_what_an_empty_host_holds(player: Player) -> None:
    """An empty host holds the context, which counts as no leak. What a release leaves beyond it is less than the noise
    of the probe."""
    await player.residence.open()
    context_bytes = player.read().used_bytes - player.before.used_bytes
    assert 0 < context_bytes < player.scene.where.context_max_bytes
    await player.ready("anisora")
    await player.generate("anisora")
    await player.residence.evict()
    residue_bytes = player.read().used_bytes - player.before.used_bytes - context_bytes
    assert residue_bytes < player.probe.absolute_bytes
    await player.residence.close()

    async def gave_all_back() -> bool:
        return player.read().used_bytes <= player.before.used_bytes

    await eventually(gave_all_back)
    sizes = ", ".join(
        f"{name} {entry.checkpoint.expected_bytes / MB:,.0f} MB" for name, entry in player.scene.models.items()
    )
    player.report("pipelines, as they are on disk", sizes)
    player.report("context of an empty host", f"{context_bytes / MB:,.0f} MB")
    player.report("left by a release beyond that", f"{residue_bytes / MB:,.0f} MB")


async def test_a_second_request_needs_no_load(player: Player) -> None:
    """FR-019: the resident pipeline is not touched, and the first step comes as soon as inference allows."""
    await player.residence.open()
    begun_s = time.perf_counter()
    await player.ready("phr00t")
    loaded_s = time.perf_counter() - begun_s
    cold_s = loaded_s + await player.generate("phr00t")
    pid = player.host.pid
    loaded = player.residence.resident
    assert await player.residence.ready("phr00t") is loaded
    warm_s = await player.generate("phr00t")
    assert player.host.pid == pid
    player.report("to the first step, with the load", f"{cold_s:.2f} s")
    player.report("to the first step of the second request", f"{warm_s:.2f} s, {warm_s / cold_s:.0%} of that")


async def test_a_warm_lane_loads_once(scene: Scene, nats_server: NatsServer, link: NatsLink, tmp_path: Path) -> None:
    """The log of a lane as it is deployed: one load in its life."""
    (tmp_path / "models").symlink_to(scene.models_dir, target_is_directory=True)
    lane = WorkerProcess(
        "lane",
        nats_server.address,
        tmp_path,
        *("--model", "phr00t", "--settings", str(scene.settings)),
        name="phr00t-0",
        slot=scene.where.slot,
        **shared_forks(),
    )
    try:
        await eventually(lambda: lane_is_warm(link), within_s=WITHIN_S)
        hosts = host_of(tmp_path, scene)
        tasks = [await done(link, replace(task_of("phr00t", number), route="lane")) for number in (1, 2)]
        assert [task.swap for task in tasks] == [None, None]
        assert host_of(tmp_path, scene) == hosts
        assert [line["outcome"] for line in lane.log_lines("swap")] == ["loaded"]
        assert lane.stop() == 0
    finally:
        lane.kill()


async def lane_is_warm(link: NatsLink) -> bool:
    heartbeat = await heartbeat_of(link, "phr00t-0")
    return heartbeat is not None and heartbeat.state is LaneState.WARM


async def done(link: NatsLink, task: GenerationTask) -> GenerationTask:
    """Places *task*, and returns it when it is done."""
    ended = await becomes(link, await place(link, task), TaskStatus.DONE, TaskStatus.FAILED, within_s=WITHIN_S)
    assert ended.status is TaskStatus.DONE, ended.error
    return ended


def host_of(folder: Path, scene: Scene) -> int:
    """The process that holds the slot."""
    note = read_note(lock_path(folder / "locks", scene.where.slot))
    assert note is not None
    return note.pid


async def test_two_models_take_turns_where_only_one_fits(
    scene: Scene,
    rogues: ForkServer,
    numbers: Numbers,
    nats_server: NatsServer,
    link: NatsLink,
    tmp_path: Path,
) -> None:
    """SC-009: the degraded worker as it is deployed. Not one out-of-memory error, even if a second try recovered."""
    empty = Player(scene, rogues, tmp_path, numbers)
    await empty.residence.open()
    context_bytes = empty.read().used_bytes - empty.before.used_bytes
    await empty.residence.close()
    (tmp_path / "models").symlink_to(scene.models_dir, target_is_directory=True)
    async with only(scene, scene.room_bytes + context_bytes) as free_bytes:
        worker = DegradedProcess(
            nats_server.address,
            tmp_path,
            "degraded-0",
            scene.where.slot,
            *("--settings", str(scene.settings)),
            **shared_forks(),
        )
        try:
            await leads(link, worker.name)
            await done(link, task_of(MODELS[0], 0))
            host, receipts = host_of(tmp_path, scene), []
            for number in range(1, scene.where.swaps + 1):
                task = await done(link, task_of(MODELS[number % 2], number))
                receipt = task.swap
                assert receipt is not None
                assert (receipt.how, receipt.alive, receipt.probe) == ("unloaded", (), empty.probe.name), receipt
                assert (receipt.released_model, receipt.loaded_model) == (MODELS[number % 2 - 1], MODELS[number % 2])
                assert is_proven(receipt), receipt
                if scene.where.kind == "card":
                    assert task.memory is not None
                    assert task.memory.cuda_allocated_bytes, "it ran on the card"
                receipts.append(receipt)
            assert host_of(tmp_path, scene) == host
            if scene.where.kind == "cpu":  # no filler on a CPU: the peak shows that there were never two
                assert peak_bytes(host) < context_bytes + scene.room_bytes + empty.probe.absolute_bytes
            assert worker.log_lines("out_of_memory_so_once_more") == []
            assert {line["outcome"] for line in worker.log_lines("memory_after_cleanup")} == {"done"}
            assert worker.stop() == 0
        finally:
            worker.kill()
    if free_bytes is not None:
        empty.report("free for both models, context included", f"{free_bytes / MB:,.0f} MB")
    empty.report("swaps, each proven, without an out-of-memory error", str(len(receipts)))
    for part in ("release", "verify", "read", "copy", "load", "first_step"):
        seconds = statistics.median(getattr(receipt, f"{part}_s") for receipt in receipts)
        empty.report(f"{part.replace('_', ' ')}, median", f"{seconds:.3f} s")


@asynccontextmanager
async def only(scene: Scene, leave_bytes: int) -> AsyncIterator[int | None]:
    """Until the block ends, another process holds all of the card but *leave_bytes*. Yields what is free then."""
    if scene.where.kind == "cpu":
        yield None
        return
    filler = await asyncio.create_subprocess_exec(
        *filler_command(scene.where.slot, leave_bytes), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert filler.stdout is not None
        answer: dict[str, Any] = msgspec.json.decode(await filler.stdout.readline())
        yield answer["free_bytes"]
    finally:
        filler.kill()
        await filler.wait()


def peak_bytes(pid: int) -> int:
    """The peak resident set size of *pid*."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) * 1024


@pytest.mark.parametrize("leak", ["component", "memory"])
async def test_a_leak_is_caught_and_the_host_killed(player: Player, leak: str) -> None:
    """There are two leaks: one that weak references show, and one that only a probe can show."""
    await player.residence.open()
    await player.ready("anisora")
    pid = player.host.pid
    assert pid is not None
    await player.generate("anisora", "keep component" if leak == "component" else player.scene.where.leak)
    receipt = await player.ready("phr00t")
    assert receipt.how == "killed"
    if leak == "component":
        assert receipt.alive == ("text_encoder",)
        assert "still alive after the release" in receipt.reason
    else:
        assert receipt.alive == ()
        assert "more were in use" in receipt.reason
    assert not is_running(pid)
    await player.generate("phr00t")
    player.report(f"a leaked {leak}: the host is killed, proof after", f"{receipt.verify_s:.2f} s")


@pytest.mark.parametrize(
    ("misdeed", "code"), [("assert on the card", "inference_failed"), ("fill the card", "out_of_memory")]
)
async def test_what_a_card_says_when_it_breaks(player: Player, misdeed: str, code: str) -> None:
    """The card's own texts; `tests/e2e/test_faults.py` has those of the libraries. The next task finds a good host."""
    if player.scene.where.kind == "cpu":
        pytest.skip("only a card breaks like that")
    await player.residence.open()
    await player.ready("phr00t")
    entry = player.scene.models["phr00t"]
    request = Generate("task", 1, parameters_of(entry, misdeed), str(player.folder / "video.mp4"))
    outcome = await player.host.generate(with_picture(request, entry, player.folder), lambda _: None)
    assert isinstance(outcome, Failed), outcome
    player.report(f"{misdeed}: what it is taken for", f"{outcome.code}, {outcome.message}")
    assert outcome.code == code
    await player.residence.ready("phr00t", renew_because="it broke")
    await player.generate("phr00t")


async def test_kill_9_gives_everything_back(player: Player) -> None:
    await player.residence.open()
    await player.ready("phr00t")
    await player.generate("phr00t")
    pid, held = player.host.pid, player.read()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    begun_s = time.perf_counter()

    async def free() -> bool:
        return not is_running(pid) and player.read().used_bytes <= player.before.used_bytes

    await eventually(free)
    seconds = time.perf_counter() - begun_s
    assert held.used_bytes - player.before.used_bytes > player.scene.models["phr00t"].checkpoint.expected_bytes
    receipt = await player.ready("anisora")
    assert (receipt.how, receipt.released_model) == ("killed", "phr00t")
    gave = (held.used_bytes - player.before.used_bytes) / MB
    player.report("`kill -9` of a host", f"{gave:,.0f} MB back within {seconds:.2f} s")


# The tools of these scenarios, which need no card


async def test_the_filler_leaves_what_it_is_asked_to() -> None:
    free = 10 * PIECE_BYTES + 5
    kept: list[int] = []

    def take(size_bytes: int) -> int:
        nonlocal free
        free -= size_bytes
        kept.append(size_bytes)
        return size_bytes

    assert fill(lambda: free, take, leave_bytes=3 * PIECE_BYTES) == kept
    assert (free, len(kept)) == (3 * PIECE_BYTES, 8)
    with pytest.raises(CardTooFull, match="end what holds the card"):
        fill(lambda: free, take, leave_bytes=free + 1)


async def test_the_page_says_whether_there_was_a_card(tmp_path: Path) -> None:
    for is_card in (False, True):
        numbers = Numbers()
        written = tmp_path / f"{is_card}.md"
        numbers.write(written)
        assert not written.exists(), "a run in which all was skipped overwrites nothing"
        numbers.add("H100", "context", "500 MB", is_card=is_card)
        numbers.write(written)
        text = written.read_text()
        assert ("No card was available" in text) is not is_card
        assert "## H100\n\n| what | measured |\n|---|---|\n| context | 500 MB |\n" in text
