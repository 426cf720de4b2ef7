"""One slot, one pipeline, and proof in between: real children, real pipelines, real memory (FR-001..003, design §7)."""

import asyncio
import io
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pynvml
import pytest
import pytest_asyncio
import structlog
from msgspec.structs import replace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console

from contracts.checkpoints import Checkpoint
from contracts.lanes import SlotState
from contracts.settings import Catalog, ModelEntry, load_settings
from contracts.tasks import FailureCode, GenerationTask, SwapReceipt
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Finished, Generate, Ready, SlotNote
from lane_worker.forking.outcome import HostLost, LoadFailed, LoadTimedOut, SlotTaken
from lane_worker.forking.slot import lock_path, process_start
from lane_worker.residence.patience import PatientProbe
from lane_worker.residence.quarantine import MemoryUnreadable, Quarantined
from lane_worker.residence.read_ahead import ReadAhead
from lane_worker.residence.residence import Residence
from lane_worker.runtime.host_runner import HostRunner
from lane_worker.runtime.outcome import GaveUp, Result, Stopped, Succeeded, Unsuccessful
from ops.machine.memory import RssProbe
from ops.machine.nvml import NvmlProbe
from ops.machine.readings import MemoryProbe
from tests.bench.peers.heavy import heavy_models, parameters_of
from tests.drills import swap_parts
from tests.drills.swap import alternate, judge
from tests.kit import rogue_host
from tests.kit.fake_nvml import GIB, UUID, FakeNvml, fake_nvml
from tests.kit.measured import Measured
from tests.kit.records import pending_task
from tests.kit.support import eventually, is_running

pytestmark = pytest.mark.asyncio(loop_scope="module")

CATALOG: Catalog = load_settings().catalog("tiny")
SLOT = "cpu-0"
FULL = 80 * GIB  # all that the fake card has
PROMPT = "a lighthouse"
MB = 1_000_000
MIB = 1 << 20


class Slot:
    """A residence on a slot of the yard, and everything that it showed."""

    def __init__(self, residence: Residence, folder: Path) -> None:
        self.residence = residence
        self.host = residence.host
        self.folder = folder
        self.runner = HostRunner(residence=residence, models=CATALOG.models, slot=SLOT, scratch=folder)

    async def ready(self, model: str) -> SwapReceipt:
        return (await self.residence.ready(model)).receipt

    @property
    def model(self) -> str | None:
        resident = self.residence.resident
        return None if resident is None else resident.model

    async def generate(self, entry: ModelEntry, prompt: str = PROMPT) -> None:
        request = Generate("task", 1, parameters_of(entry, prompt), str(self.folder / "video.mp4"))
        outcome = await self.host.generate(request, lambda _: None)
        assert isinstance(outcome, Finished), outcome

    async def run(self, model: str, prompt: str = PROMPT) -> Result:
        return await self.runner.run(task_of(model, prompt), None, lambda _: None)


def task_of(model: str, prompt: str = PROMPT) -> GenerationTask:
    now = datetime.now(UTC)
    parameters = parameters_of(CATALOG.models[model], prompt)
    task = pending_task(created_at=now, queued_at=now, deadline_at=now + timedelta(seconds=30))
    return replace(task, model=model, parameters=parameters, attempt=1)


class Yard:
    """What the tests share: fork servers, good and rogue, and a cache of tiny pipelines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = ForkServer()
        self.rogue = ForkServer(rogue_host.COMMAND)
        self._open: list[Residence] = []

    def slot(
        self,
        folder: Path,
        *,
        probe: MemoryProbe | None,
        slot: str = SLOT,
        models: dict[str, ModelEntry] | None = None,
        models_dir: Path | None = None,
        rogue: bool = False,
        role: Any = "degraded",
        on_state: Callable[[SlotState, str | None, str], None] = lambda *_: None,
    ) -> Slot:
        """A residence with the lock folder *folder*; not opened yet."""
        host = Host(
            slot=slot,
            lock_dir=folder,
            models_dir=models_dir or self.folder,
            role=role,
            lock_wait_s=0.3,
            fork_server=self.rogue if rogue else self.good,
        )
        residence = Residence(
            host=host,
            slot=slot,
            models=models or dict(CATALOG.models),
            probe=probe,
            on_state=on_state,
            after_kill_s=0.5,
        )
        self._open.append(residence)
        return Slot(residence, folder)

    async def close_slots(self) -> None:
        while self._open:
            await self._open.pop().close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Yard]:
    yard = Yard(tmp_path_factory.mktemp("models"))
    await yard.good.start()
    await yard.rogue.start()
    yield yard
    await yard.good.close()
    await yard.rogue.close()


@pytest_asyncio.fixture(loop_scope="module")
async def yard(shared: Yard) -> AsyncIterator[Yard]:
    yield shared
    await shared.close_slots()


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    with fake_nvml(tmp_path, monkeypatch) as card:
        yield card


def rss() -> RssProbe:
    """The probe of a CPU slot; it gives up sooner."""
    probe = RssProbe()
    probe.deadline_s = 0.5
    return probe


def nvml() -> NvmlProbe:
    """The probe of a card that looks more often, and gives up sooner."""
    probe = NvmlProbe(UUID)
    probe.poll_s, probe.deadline_s = 0.02, 0.3
    return probe


def figures(receipt: SwapReceipt) -> tuple[int, int, int, int]:
    """base, before, after, tolerance"""
    assert receipt.base_bytes is not None
    assert receipt.before_bytes is not None
    assert receipt.after_bytes is not None
    assert receipt.tolerance_bytes is not None
    return receipt.base_bytes, receipt.before_bytes, receipt.after_bytes, receipt.tolerance_bytes


# Proof by resident memory


@pytest.mark.timeout(600)  # a bound, on a machine that is busy with other tests
async def test_heavy_pipelines_are_released_each_time(heavy_folder: Path) -> None:
    """FR-002: `make swap`, shortened."""
    alternations = await alternate(heavy_folder, count=3, leak=False, console=Console(quiet=True))
    assert [verdict.passed for verdict in judge(alternations)[:2]] == [True, True]


async def test_a_swap_is_measured_by_part(yard: Yard) -> None:
    """`make swap-parts`, with tiny pipelines: every part of every swap, and a limit beside what has one."""
    models = {name: CATALOG.models[name] for name in ("anisora", "phr00t")}
    warmed = yard.slot(yard.folder / "locks", probe=rss())  # which makes the pipelines, if nobody has yet
    await warmed.residence.open()
    for name in models:
        await warmed.ready(name)
    await warmed.residence.close()
    found = await swap_parts.swaps(models, yard.folder, yard.good, slot=SLOT, count=1)
    assert {cache: len(receipts) for cache, receipts in found.items()} == dict.fromkeys(swap_parts.CACHES, 1)
    for (receipt,) in found.values():
        assert receipt.how == "unloaded"
        assert receipt.read_s
        assert receipt.first_step_s
    limits = swap_parts.limits_of(yard.folder / models["phr00t"].checkpoint.folder, slot=SLOT)
    assert min(limits.cold_read, limits.warm_read) > 0
    lines = swap_parts.beside_limits(found, limits, weights_bytes=1, poll_s=0.1)
    told = Console(record=True, width=200, file=io.StringIO())
    for table in swap_parts.tables(found, lines):
        told.print(table)
    text = told.export_text()
    assert all(part in text for part in ("release", "proof", "read", "copy", "first step", "no card"))


async def test_two_heavy_pipelines_take_turns(yard: Yard, heavy_folder: Path, tmp_path: Path) -> None:
    """SC-009 on a CPU: each release is seen in resident memory, and one process does it all."""
    models = heavy_models(heavy_folder)
    shown: list[tuple[SlotState, str | None]] = []
    slot = yard.slot(
        tmp_path,
        probe=RssProbe(),
        models=models,
        models_dir=heavy_folder,
        on_state=lambda state, model, _: shown.append((state, model)),
    )
    await slot.residence.open()
    pid = slot.host.pid
    first = await slot.ready("anisora")
    assert (first.how, first.released_model, first.loaded_model) == ("nothing_resident", None, "anisora")
    held = sum(path.stat().st_size for path in (heavy_folder / "heavy-anisora").rglob("*.safetensors"))
    assert first.probe == "rss"
    assert first.needed_bytes == pytest.approx(held, rel=0.001)  # counted in the folder, and not `expected_bytes`
    assert first.samples >= 2
    await slot.generate(models["anisora"])
    resident = "anisora"
    for following in ("phr00t", "anisora"):
        receipt = await slot.ready(following)
        assert (receipt.how, receipt.alive, receipt.reason) == ("unloaded", (), "")
        assert (receipt.released_model, receipt.loaded_model) == (resident, following)
        base, before, after, tolerance = figures(receipt)
        assert before - base > 300 * MB
        assert after <= base + tolerance
        assert tolerance == 48 * MB
        assert receipt.samples >= 2
        assert receipt.free_bytes is not None
        assert receipt.free_bytes >= receipt.needed_bytes > 300 * MB
        await slot.generate(models[following])
        resident = following
    assert slot.host.pid == pid
    assert slot.model == "anisora"
    loaded = slot.residence.resident
    assert await slot.residence.ready("anisora") is loaded  # and is not loaded again
    assert shown[:3] == [
        (SlotState.EMPTY, None),
        (SlotState.LOADING, "anisora"),
        (SlotState.RESIDENT, "anisora"),
    ]
    assert shown[3:6] == [
        (SlotState.RELEASING, "anisora"),
        (SlotState.LOADING, "phr00t"),
        (SlotState.RESIDENT, "phr00t"),
    ]


async def test_a_swap_is_three_spans(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("ops.telemetry.tracing._tracer", provider.get_tracer("test"))
    monkeypatch.setattr("ops.telemetry.tracing._is_on", True)
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    spans.clear()
    receipt = await slot.ready("phr00t")
    finished = spans.get_finished_spans()
    assert [span.name for span in finished] == ["swap.release", "swap.verify", "load"]
    attributes = dict(finished[-1].attributes or {})
    assert attributes["warmlane.swap.how"] == "unloaded"
    assert attributes["warmlane.swap.after_bytes"] == receipt.after_bytes
    assert attributes["warmlane.swap.load_s"] == receipt.load_s
    assert (attributes["warmlane.swap.read_s"], attributes["warmlane.swap.copy_s"]) == (receipt.read_s, receipt.copy_s)
    assert receipt.read_s is not None
    assert 0 < receipt.read_s <= receipt.load_s
    assert (receipt.copy_s, receipt.first_step_s) == (0, None), "no card, and nothing has run yet"


class Told(ReadAhead):
    """Reads nothing ahead, and knows what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Path | None] = []

    def begin(self, folder: Path) -> None:
        self.calls.append(folder)

    def stop(self) -> None:
        self.calls.append(None)


async def test_what_is_wanted_is_read_ahead_until_a_swap_fails(yard: Yard, tmp_path: Path) -> None:
    """ADR 0023."""
    models = dict(CATALOG.models) | changed("phr00t", "oom-in-load")
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    told = slot.residence.read_ahead = Told()
    await slot.residence.open()
    await slot.ready("anisora")
    wanted = yard.folder / models["anisora"].checkpoint.folder
    assert told.calls == [wanted]
    loaded = slot.residence.resident
    assert await slot.residence.ready("anisora") is loaded  # and is not loaded again
    assert told.calls == [wanted], "it is resident"
    with pytest.raises(LoadFailed):
        await slot.ready("phr00t")
    assert told.calls == [wanted, yard.folder / "oom-in-load", None]


def released(measured: Measured, outcome: str) -> float:
    return measured.value("warmlane.releases", outcome=outcome)


async def test_a_leak_is_seen_and_the_host_is_killed_for_it(yard: Yard, tmp_path: Path, measured: Measured) -> None:
    before = {outcome: released(measured, outcome) for outcome in ("escalated", "unloaded")}
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    await slot.generate(CATALOG.models["anisora"], "leak 200 MB")
    receipt = await slot.ready("phr00t")
    assert receipt.how == "killed"
    assert "more were in use" in receipt.reason
    assert receipt.alive == ()
    assert receipt.after_bytes == 0  # what a process that is gone holds
    assert receipt.samples >= 4
    assert slot.host.pid != pid
    await slot.generate(CATALOG.models["phr00t"])
    assert released(measured, "escalated") == before["escalated"] + 1
    assert released(measured, "unloaded") == before["unloaded"]
    assert (await slot.ready("anisora")).how == "unloaded"  # the base is that of the fresh host
    assert released(measured, "escalated") == before["escalated"] + 1
    assert released(measured, "unloaded") == before["unloaded"] + 1


async def test_a_slow_leak_is_found_by_its_trend_and_the_host_renewed(
    yard: Yard, tmp_path: Path, measured: Measured
) -> None:
    """ADR 0029: within 10 swaps, before it is a failed release. And a host that was renewed is judged anew."""
    before = {outcome: released(measured, outcome) for outcome in ("renewed", "escalated", "quarantined")}
    probe = rss()
    probe.absolute_bytes = 512 * MIB  # as on a card: on a CPU the second such leak is over what is allowed
    slot = yard.slot(tmp_path, probe=probe, rogue=True)
    await slot.residence.open()
    pid, reasons = slot.host.pid, []
    for _, model in zip(range(11), itertools.cycle(("anisora", "phr00t")), strict=False):
        receipt = await slot.ready(model)
        await slot.generate(CATALOG.models[model], "leak 32 MB")
        reasons.append(receipt.reason)
        assert receipt.how in ("nothing_resident", "unloaded")
    assert [bool(reason) for reason in reasons] == [False] * 9 + [True, False]
    assert re.search(r"each release left \d+ MB more .* renewed", reasons[9])
    assert slot.host.pid != pid
    changed = {outcome: released(measured, outcome) - was for outcome, was in before.items()}
    assert changed == {"renewed": 1, "escalated": 0, "quarantined": 0}


async def test_a_rehearsal_that_fails_is_told_and_hides_nothing(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / f"{SLOT}.rehearsal").write_text("in the way")
    slot = yard.slot(tmp_path, probe=rss())
    with structlog.testing.capture_logs() as logs:
        await slot.residence.open()
    (told,) = (line for line in logs if line["event"] == "not_rehearsed")
    assert "FileExistsError" in told["error"] or "NotADirectoryError" in told["error"]
    await slot.ready("anisora")
    await slot.generate(CATALOG.models["anisora"])


@pytest.mark.parametrize(
    ("misdeed", "alive"), [("leak tensor", ("transformer",)), ("keep component", ("text_encoder",))]
)
async def test_what_the_host_cannot_let_go_of_is_named(
    yard: Yard, tmp_path: Path, misdeed: str, alive: tuple[str, ...]
) -> None:
    """Tiny pipelines are invisible in resident memory: weak references are the proof."""
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    await slot.ready("phr00t")
    pid = slot.host.pid
    await slot.generate(CATALOG.models["phr00t"], misdeed)
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.alive) == ("killed", alive)
    assert alive[0] in receipt.reason
    assert slot.host.pid != pid
    await slot.generate(CATALOG.models["anisora"])


# Proof by the card


async def test_a_card_whose_figure_falls_is_released(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=61 * GIB, fall_bytes=10 * GIB, least_bytes=GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.probe) == ("unloaded", "nvml")
    assert figures(receipt) == (GIB, 61 * GIB, GIB, GIB // 2), "whatever was held"
    assert receipt.samples == 7


async def test_a_card_that_stays_full_is_quarantined(
    yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured
) -> None:
    before = released(measured, "quarantined")
    shown: list[tuple[SlotState, str]] = []
    slot = yard.slot(tmp_path, probe=nvml(), on_state=lambda state, _, detail: shown.append((state, detail)))
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    with pytest.raises(Quarantined, match="lift the quarantine") as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.how, receipt.after_bytes, receipt.load_s) == ("killed", FULL, 0.0)
    assert slot.residence.quarantined
    assert slot.residence.resident is None
    assert slot.host.pid is None
    assert shown[-1] == (SlotState.QUARANTINED, refusal.value.detail)
    assert released(measured, "quarantined") == before + 1

    card.set(used_bytes=GIB)  # even so: nothing loads until an operator has said so
    for refused in (slot.residence.ready("phr00t"), slot.residence.ready("phr00t", renew_because="it failed")):
        with pytest.raises(Quarantined):
            await refused
    with pytest.raises(Quarantined):
        await slot.residence.open()
    assert slot.host.pid is None

    slot.residence.lift()
    assert shown[-1] == (SlotState.EMPTY, "")
    assert (await slot.ready("phr00t")).how == "nothing_resident"
    await slot.generate(CATALOG.models["phr00t"])


async def test_a_quarantine_names_who_is_on_the_card(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """And is not talked out of it by them: to the driver they hold nothing."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    there = {f"process_{n}": 4_000_000_000 + n for n in range(7)} | {f"process_{n}_bytes": n for n in range(6)}
    card.set(used_bytes=FULL, processes=7, **there)
    with structlog.testing.capture_logs() as logs, pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    assert "process 4000000005 holds 0.00 GiB; process 4000000004 holds" in refusal.value.detail
    assert refusal.value.detail.count("holds 0.00 GiB") == 5
    assert "process" not in str(refusal.value)  # what a client may come to read
    (line,) = (line for line in logs if line["event"] == "swap")
    assert len(line["holders"]) == 7
    assert line["holders"][-1] == "process 4000000006 holds an unknown amount"


async def test_who_is_on_the_card_is_no_part_of_the_proof(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=GIB, processes=1, process_0=4_000_000_000, process_0_bytes=60 * GIB)
    assert (await slot.ready("phr00t")).how == "unloaded"


async def test_a_driver_that_hangs_is_no_release(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    slot.residence.memory._patient = PatientProbe(probe, answer_s=0.1)
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(hangs=1)
    try:
        with pytest.raises(MemoryUnreadable, match=r"did not answer within 0\.1 s"):
            await slot.residence.ready("phr00t")
        asked = [thread for thread in threading.enumerate() if thread.name == "memory-probe"]
        assert len(asked) == 1
    finally:
        card.set(used_bytes=GIB)
    assert (slot.residence.quarantined, slot.host.pid) == (False, None)
    for thread in asked:
        thread.join()
    assert (await slot.ready("phr00t")).proof == "base"  # it is asked again, by itself


async def test_a_lift_takes_the_card_as_it_is(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """What another program holds there for good is no leftover of ours."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    with pytest.raises(Quarantined):
        await slot.residence.ready("phr00t")
    card.set(used_bytes=21 * GIB)
    slot.residence.lift()
    assert (await slot.ready("phr00t")).base_bytes == 21 * GIB


async def test_a_driver_that_wakes_up_slowly_is_waited_for(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """Without persistence mode. What was not read before the host started, no later release could be compared with."""
    told: list[str] = []

    def on_wait(text: str) -> None:
        told.append(text)
        card.set(used_bytes=GIB)

    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    slot.residence.memory._patient, slot.residence.memory._on_wait = PatientProbe(probe, answer_s=0.1), on_wait
    card.set(hangs=1)
    await slot.residence.open()
    assert told == ["the memory could not be read (the driver did not answer within 0.1 s); it is asked for 30 s"]
    await slot.ready("anisora")
    await killed(slot.host)
    assert ((await slot.ready("anisora")).how, slot.residence.quarantined) == ("killed", False)


async def test_a_driver_that_fails_at_first_is_asked_again(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(used_bytes=GIB, first_fail=3, first_error=pynvml.NVML_ERROR_UNKNOWN)
    await slot.residence.open()
    assert (await slot.ready("anisora")).base_bytes == GIB


async def test_a_driver_that_never_answers_starts_no_host_and_is_no_quarantine(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    slot.residence.memory._first_answer_s = 0.05
    card.set(init_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(MemoryUnreadable, match="restart the machine"):
        await slot.residence.open()
    assert (slot.host.pid, slot.residence.quarantined) == (None, False)
    card.set(used_bytes=GIB)
    await slot.residence.open()


# Others on the card (ADR 0027)


def shows_hosts(slot: Slot, card: FakeNvml, *, own_bytes: int, **figures: int) -> None:
    """From the start of its host on, the driver names that, with *own_bytes*, and shows *figures*."""
    start = slot.host.start

    async def started(*, term: int = 0, rehearse: tuple[Checkpoint, ...] = ()) -> Ready:
        ready = await start(term=term, rehearse=rehearse)
        card.set(processes=1, process_0=ready.pid, process_0_bytes=own_bytes, **figures)
        return ready

    slot.host.start = started  # type: ignore[method-assign]


async def test_another_s_growth_is_not_blamed_on_a_host_that_the_driver_names(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    shows_hosts(slot, card, own_bytes=GIB, used_bytes=2 * GIB)
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid or 0
    card.set(used_bytes=62 * GIB, processes=1, process_0=pid, process_0_bytes=GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.proof, slot.host.pid) == ("unloaded", "own_figure", pid)
    assert (receipt.base_bytes, receipt.after_bytes) == (2 * GIB, 62 * GIB)
    assert (receipt.own_base_bytes, receipt.own_bytes) == (GIB, GIB)


async def test_what_another_gives_back_does_not_hide_what_the_host_keeps(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """And when the host is killed, the driver's word that it still holds something counts more than the kernel's."""
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(used_bytes=40 * GIB)
    shows_hosts(slot, card, own_bytes=GIB, used_bytes=41 * GIB)
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=21 * GIB, processes=1, process_0=slot.host.pid or 0, process_0_bytes=20 * GIB)
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.how, receipt.base_bytes, receipt.own_base_bytes) == ("killed", 40 * GIB, 0)
    assert (receipt.own_bytes, receipt.free_bytes, receipt.proof) == (20 * GIB, 59 * GIB, "")


async def test_another_s_growth_costs_the_host_but_not_the_slot_where_nobody_is_named(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    """In a container or a MIG instance. What has ended holds nothing, and there is room."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    card.set(used_bytes=6 * GIB)
    receipt = await slot.ready("phr00t")
    assert (receipt.how, receipt.proof, receipt.free_bytes) == ("killed", "no_pipeline", 74 * GIB)
    assert slot.host.pid not in {None, pid}
    receipt = await slot.ready("anisora")  # the base was read again
    assert (receipt.how, receipt.proof, receipt.base_bytes) == ("unloaded", "base", 6 * GIB)


async def test_another_s_growth_before_the_first_load_is_no_leftover(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    pid = slot.host.pid
    card.set(used_bytes=20 * GIB)
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.proof, slot.host.pid) == ("nothing_resident", "no_pipeline", pid)
    assert (await slot.ready("phr00t")).base_bytes == 20 * GIB


async def test_an_error_of_the_card_is_no_release(
    yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured
) -> None:
    before = released(measured, "unreadable")
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(read_error=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(MemoryUnreadable, match="fallen off its bus") as unreadable:
        await slot.residence.ready("phr00t")
    assert unreadable.value.receipt is not None
    assert (unreadable.value.receipt.how, unreadable.value.receipt.after_bytes) == ("killed", None)
    assert (slot.residence.quarantined, slot.host.pid) == (False, None)
    assert released(measured, "unreadable") == before + 1
    with pytest.raises(MemoryUnreadable):
        await slot.residence.ready("phr00t")
    assert slot.residence.resident is None


async def test_a_card_that_answers_again_after_the_kill_is_released(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    probe = nvml()
    slot = yard.slot(tmp_path, probe=probe)
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    card.set(used_bytes=FULL)
    swap = asyncio.create_task(slot.residence.ready("phr00t"))
    await eventually(lambda: asyncio.to_thread(lambda: pid is not None and not is_running(pid)))
    card.set(used_bytes=GIB)
    receipt = (await swap).receipt
    assert receipt.how == "killed"
    assert "more were in use" in receipt.reason
    assert slot.model == "phr00t"


async def test_nothing_is_loaded_where_it_does_not_fit(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """Also at the start: somebody else's memory is missing to the pipeline all the same."""
    entry = CATALOG.models["phr00t"]
    large = replace(entry, checkpoint=replace(entry.checkpoint, activation_bytes=70 * GIB))
    slot = yard.slot(tmp_path, probe=nvml(), models={"phr00t": large})
    card.set(used_bytes=20 * GIB)
    await slot.residence.open()
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("phr00t")
    receipt = refusal.value.receipt
    assert (receipt.released_model, receipt.free_bytes) == (None, 60 * GIB)
    assert receipt.needed_bytes >= 70 * GIB
    assert f"{receipt.needed_bytes:,} bytes are needed and {60 * GIB:,} are free" in refusal.value.detail


async def test_what_a_card_can_never_serve_is_told_at_the_start_and_changes_nothing(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    entry = CATALOG.models["phr00t"]
    large = replace(entry, checkpoint=replace(entry.checkpoint, activation_bytes=81 * GIB))
    shown: list[tuple[SlotState, str]] = []
    slot = yard.slot(
        tmp_path,
        probe=nvml(),
        slot="cpu-0",
        models={**CATALOG.models, "phr00t": large},
        on_state=lambda state, _, detail: shown.append((state, detail)),
    )
    await slot.residence.open()
    state, detail = shown[-1]
    assert state is SlotState.EMPTY
    assert re.match(r"phr00t does not fit: with offload none it needs [\d,]+ bytes on the .*, which has", detail)
    await slot.ready("anisora")
    pid, count = slot.host.pid, len(shown)
    with pytest.raises(LoadFailed, match=rf"{80 * GIB:,} in all and {79 * GIB:,} free") as refusal:
        await slot.residence.ready("phr00t")
    assert refusal.value.failure.code == "out_of_memory"
    assert refusal.value.failure.memory.rss_bytes > 0
    assert (slot.model, slot.host.pid, len(shown)) == ("anisora", pid, count)
    assert isinstance(await slot.run("phr00t"), Unsuccessful)  # is tried once more, which changes nothing either
    assert (slot.model, slot.host.pid) == ("anisora", pid)


async def test_what_the_host_has_no_room_for_is_not_loaded(
    yard: Yard, card: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a card, weights that are moved to and fro are in the host's memory."""
    entry = CATALOG.models["phr00t"]
    moved = replace(entry, checkpoint=replace(entry.checkpoint, offload="model"))
    slot = yard.slot(tmp_path, probe=nvml(), models={**CATALOG.models, "phr00t": moved})
    await slot.residence.open()
    await slot.ready("anisora")
    slot.residence._slot = UUID  # the host stays on the CPU; what it is asked for is that of a card
    monkeypatch.setattr("lane_worker.residence.fit.available_bytes", lambda: 1000)
    with pytest.raises(LoadFailed, match=r"of the host's memory, of which 1,000 are available") as refusal:
        await slot.residence.ready("phr00t")
    assert refusal.value.failure.code == "out_of_memory"
    assert slot.residence.resident is None  # it was released for this one
    await slot.ready("anisora")


async def test_memory_on_its_way_out_does_not_count_as_empty(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """The slot's last holder was killed a moment ago: its lock is free before its memory is."""
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(used_bytes=61 * GIB, fall_bytes=6 * GIB, least_bytes=GIB)
    await slot.residence.open()
    assert (await slot.ready("phr00t")).base_bytes == GIB


async def test_a_restart_does_not_raise_the_base(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    """A host that died leaves its memory unproven: a fresh one may not take it for the empty card."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    await killed(slot.host)
    await slot.residence.open()
    with pytest.raises(Quarantined) as refusal:
        await slot.residence.ready("anisora")
    assert refusal.value.receipt.base_bytes == GIB


async def test_a_card_without_memory_of_its_own_is_proven_by_the_systems(
    yard: Yard, card: FakeNvml, tmp_path: Path
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    card.set(v2_error=pynvml.NVML_ERROR_NOT_SUPPORTED, read_error=pynvml.NVML_ERROR_NOT_SUPPORTED)
    await slot.residence.open()
    receipt = await slot.ready("anisora")
    assert (receipt.probe, receipt.free_bytes is not None) == ("unified", True)
    assert await slot.runner.accounts.device() is not None


# Without a probe


async def test_without_a_probe_the_host_is_killed_between_models(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=None)
    await slot.residence.open()
    first = await slot.ready("anisora")
    assert (first.how, first.probe, first.samples) == ("nothing_resident", "none", 0)
    for following in ("phr00t", "anisora"):
        pid = slot.host.pid
        receipt = await slot.ready(following)
        assert (receipt.how, receipt.probe, receipt.samples) == ("killed", "none", 0)
        assert "nothing here can measure memory" in receipt.reason
        assert receipt.base_bytes is None
        assert slot.host.pid != pid
        await slot.generate(CATALOG.models[following])


# Hosts that die, loads that fail


async def killed(host: Host) -> None:
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    await eventually(lambda: asyncio.sleep(0, host.pid is None))


async def test_a_host_that_died_is_started_again(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    await killed(slot.host)
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.released_model, receipt.after_bytes) == ("killed", "anisora", 0)
    assert receipt.reason == "the host had ended before"
    await slot.generate(CATALOG.models["anisora"])


async def test_the_memory_of_a_host_that_died_is_proven_free_first(yard: Yard, card: FakeNvml, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    await killed(slot.host)
    with pytest.raises(Quarantined):
        await slot.residence.ready("anisora")
    assert slot.host.pid is None


async def test_renew_runs_in_a_fresh_host(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    pid = slot.host.pid
    receipt = (await slot.residence.ready("anisora", renew_because="it ran out of memory")).receipt
    assert (receipt.how, receipt.reason) == ("killed", "it ran out of memory")
    assert slot.model == "anisora"
    assert slot.host.pid != pid


def changed(model: str, folder: str | None = None, **timeouts: float) -> dict[str, ModelEntry]:
    """All models; *model* has other timeouts, or its checkpoint in another folder, whose name may be a misdeed."""
    entry = CATALOG.models[model]
    entry = replace(entry, timeouts=replace(entry.timeouts, **timeouts))
    if folder is not None:
        entry = replace(entry, checkpoint=replace(entry.checkpoint, folder=folder))
    return {**CATALOG.models, model: entry}


async def test_after_a_failed_load_another_model_loads(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load"))
    await slot.residence.open()
    await slot.ready("anisora")
    with pytest.raises(LoadFailed) as failure:
        await slot.residence.ready("phr00t")
    assert failure.value.failure.code == "out_of_memory"
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert (receipt.how, receipt.released_model) == ("unloaded", None)  # what the failed load left is released, too
    await slot.generate(CATALOG.models["anisora"])


async def test_a_model_that_is_not_in_the_settings_does_not_load(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    await slot.ready("anisora")
    with pytest.raises(LoadFailed, match="no model wan") as refused:
        await slot.residence.ready("wan")
    assert refused.value.receipt is None
    assert slot.model == "anisora"


async def test_a_load_that_hangs_ends_the_host(yard: Yard, tmp_path: Path) -> None:
    models = changed("phr00t", "hang-in-load", load_s=0.3)
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    await slot.residence.open()
    with pytest.raises(LoadTimedOut):
        await slot.residence.ready("phr00t")
    assert slot.host.pid is None
    await slot.ready("anisora")


async def test_a_caller_that_goes_away_in_mid_swap_leaves_nothing(yard: Yard, tmp_path: Path) -> None:
    loading = asyncio.Event()

    def on_state(state: SlotState, _model: str | None, _detail: str) -> None:
        if state is SlotState.LOADING:
            loading.set()

    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "hang-in-load"), on_state=on_state)
    await slot.residence.open()
    swap = asyncio.create_task(slot.residence.ready("phr00t"))
    await loading.wait()
    swap.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swap
    assert slot.residence.resident is None
    receipt = await slot.ready("anisora")
    assert receipt.how == "killed"
    await slot.generate(CATALOG.models["anisora"])


# One slot, several leaders


async def test_a_new_leader_puts_the_host_of_a_stopped_one_aside(yard: Yard, tmp_path: Path) -> None:
    old, new = (yard.slot(tmp_path, probe=rss()) for _ in range(2))
    await old.residence.open(term=4)
    await old.ready("anisora")
    pid = old.host.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # as its worker: it would hold the card for ever

    await new.residence.open(term=9)
    assert not is_running(pid)
    await new.ready("phr00t")
    await eventually(lambda: asyncio.sleep(0, old.host.pid is None))
    assert old.residence.resident is None
    with pytest.raises(HostLost, match="is held by process"):  # it does not put the new one's aside in turn
        await old.residence.ready("anisora")
    assert new.model == "phr00t"
    await new.generate(CATALOG.models["phr00t"])


@pytest.mark.parametrize(("role", "term"), [("degraded", 9), ("degraded", 10), ("lane", 0)])
async def test_nobody_else_is_put_aside(yard: Yard, tmp_path: Path, role: str, term: int) -> None:
    shown: list[SlotState] = []
    holder = yard.slot(tmp_path, probe=rss(), role=role)
    rival = yard.slot(tmp_path, probe=rss(), on_state=lambda state, *_: shown.append(state))
    await holder.residence.open(term=term)
    with pytest.raises(SlotTaken):
        await rival.residence.open(term=9)
    await rival.residence.close()
    assert shown == []  # the slot is not its to speak of
    await holder.ready("phr00t")


async def test_a_process_that_got_the_pid_of_a_dead_host_is_left_alone(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    bystander = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    started = process_start(bystander.pid)
    assert started is not None
    note = SlotNote(bystander.pid, started - 1, "degraded", 1)
    lock_path(tmp_path, SLOT).write_bytes(msgspec.json.encode(note) + b"\n")
    await slot.residence.open(term=2)
    assert is_running(bystander.pid)
    bystander.kill()
    await bystander.wait()


# Tasks


@pytest.fixture
def lines() -> Iterator[list[tuple[Any, bool]]]:
    """The memory lines so far: the outcome, and whether the process was gone."""
    found: list[tuple[Any, bool]] = []
    with structlog.testing.capture_logs([lambda _, __, event: _memory_line(event, found)]):
        yield found


def _memory_line(event: Any, found: list[tuple[Any, bool]]) -> Any:
    if event["event"] == "memory_after_cleanup":
        assert event["rss_bytes"] > 0 or event["process_gone"]
        found.append((event["outcome"], "process_gone" in event))
    return event


async def test_a_task_brings_its_receipt(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    first, second = await slot.run("phr00t"), await slot.run("phr00t")
    assert isinstance(first, Succeeded)
    assert first.swap is not None
    assert first.swap.loaded_model == "phr00t"
    assert first.swap.first_step_s is not None
    assert 0 < first.swap.first_step_s <= first.inference_s
    assert isinstance(second, Succeeded)
    assert second.swap is None  # it was resident
    assert lines == [("done", False), ("done", False)]


@pytest.mark.parametrize("where", ["text encoder", "step 3", "vae"])
async def test_out_of_memory_is_tried_once_more_in_a_fresh_host(
    yard: Yard, tmp_path: Path, where: str, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    await slot.run("phr00t")
    pid = slot.host.pid
    result = await slot.run("phr00t", f"oom in {where} in a used host")
    assert isinstance(result, Succeeded), result
    assert result.swap is not None
    assert (result.swap.how, result.swap.reason) == ("killed", "it ran out of memory")
    assert slot.host.pid != pid
    assert lines == [("done", False), ("out_of_memory", False), ("done", False)]

    hopeless = await slot.run("phr00t", f"oom in {where}")
    assert isinstance(hopeless, Unsuccessful)
    assert hopeless.code is FailureCode.OUT_OF_MEMORY
    assert lines[3:] == [("out_of_memory", False)] * 2
    assert isinstance(await slot.run("phr00t"), Succeeded)


async def test_out_of_memory_in_a_load_is_tried_once_more(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load-in-a-used-host"))
    await slot.residence.open()
    await slot.run("anisora")
    result = await slot.run("phr00t")
    assert isinstance(result, Succeeded), result
    assert lines == [("done", False), ("out_of_memory", False), ("done", False)]


async def test_a_model_that_never_fits(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", "oom-in-load"))
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert (result.code, result.swap and result.swap.how) == (FailureCode.OUT_OF_MEMORY, "killed")
    assert lines == [("out_of_memory", False)] * 2
    assert isinstance(await slot.run("anisora"), Succeeded)


@pytest.mark.parametrize("misdeed", ["segfault", "garbage"])
async def test_a_host_that_dies_gives_the_task_to_another_attempt(
    yard: Yard, tmp_path: Path, misdeed: str, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    assert isinstance(await slot.run("phr00t", misdeed), GaveUp)
    assert lines == [("host_lost", True)]
    assert isinstance(await slot.run("anisora"), Succeeded)


async def test_a_broken_device_ends_the_host_but_not_the_next_task(
    yard: Yard, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True)
    await slot.residence.open()
    result = await slot.run("phr00t", "cuda error")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_FAILED
    assert slot.host.pid is None
    after = await slot.run("phr00t")
    assert isinstance(after, Succeeded)
    assert after.swap is not None
    assert after.swap.how == "killed"
    assert lines == [("inference_failed", True), ("done", False)]


async def test_a_host_that_hangs_is_killed_within_its_limits(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", step_s=0.5))
    await slot.residence.open()
    result = await slot.run("phr00t", "ignore SIGTERM")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_TIMEOUT
    assert lines == [("inference_timeout", True)]
    assert slot.host.pid is None


async def test_a_host_that_ignores_its_cancel_is_killed_after_one_step(
    yard: Yard, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=changed("phr00t", step_s=0.5))
    await slot.residence.open()
    task = task_of("phr00t", "ignore cancel")
    result = await slot.runner.run(task, None, lambda _: slot.runner.stop(task.id))
    assert isinstance(result, GaveUp)
    assert "ignored its cancel" in result.reason
    assert lines == [("host_lost", True)]
    assert slot.host.pid is None


async def test_a_load_that_takes_too_long_is_the_tasks_end(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    models = changed("phr00t", "hang-in-load", load_s=0.3)
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.INFERENCE_TIMEOUT
    assert lines == [("inference_timeout", True)]


async def test_a_missing_checkpoint_is_named_in_the_log_only(yard: Yard, tmp_path: Path, lines: list[Any]) -> None:
    entry = CATALOG.models["phr00t"]
    absent = replace(entry, checkpoint=replace(entry.checkpoint, random_weights=None, folder="nowhere"))
    slot = yard.slot(tmp_path, probe=rss(), models={"phr00t": absent})
    await slot.residence.open()
    result = await slot.run("phr00t")
    assert isinstance(result, Unsuccessful)
    assert result.code is FailureCode.STORAGE_FAILED
    assert "nowhere" not in result.message
    assert lines == [("storage_failed", False)]


async def test_the_memory_line_tells_the_card(yard: Yard, card: FakeNvml, tmp_path: Path, measured: Measured) -> None:
    """As the worker reads it, also when the host is gone; and so does the task's record."""
    slot = yard.slot(tmp_path, probe=nvml(), rogue=True)
    await slot.residence.open()
    await slot.ready("phr00t")
    card.set(used_bytes=2 * GIB, reserved_bytes=GIB)
    with structlog.testing.capture_logs() as logs:
        done = await slot.run("phr00t")
        assert isinstance(await slot.run("phr00t", "segfault"), GaveUp)
    assert isinstance(done, Succeeded)
    assert (done.memory.device_used_bytes, done.memory.device_free_bytes) == (2 * GIB, 77 * GIB)
    assert done.memory.cuda_allocated_bytes is None  # the host ran on the CPU
    assert slot.runner.accounts.memory is None
    first, second = (line for line in logs if line["event"] == "memory_after_cleanup")
    assert (first["device_used_bytes"], first["device_free_bytes"]) == (2 * GIB, 77 * GIB)
    assert first["rss_peak_bytes"] >= first["rss_bytes"]
    assert (second["process_gone"], second["rss_bytes"], second["device_used_bytes"]) == (True, 0, 2 * GIB)
    assert "cuda_allocated_bytes" not in second
    told = {"slot": SLOT, "model": "phr00t"}
    assert measured.value("warmlane.memory.after_cleanup", kind="device_free", **told) == 77 * GIB


async def test_on_a_cpu_the_memory_line_tells_no_card(yard: Yard, tmp_path: Path) -> None:
    slot = yard.slot(tmp_path, probe=rss())
    await slot.residence.open()
    done = await slot.run("phr00t")
    assert isinstance(done, Succeeded)
    assert done.memory.device_used_bytes is None
    assert done.memory.rss_bytes > 0


async def test_a_task_that_is_cut_off_while_the_card_is_asked_has_its_line(
    yard: Yard, card: FakeNvml, tmp_path: Path, lines: list[Any]
) -> None:
    """SC-003: the line is written, without the card's figures."""
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("phr00t")
    running = asyncio.create_task(slot.runner.run(task_of("phr00t"), None, lambda _: card.set(hangs=1)))
    try:
        await eventually(lambda: asyncio.sleep(0, any(t.name == "memory-probe" for t in threading.enumerate())))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    finally:
        card.set(used_bytes=GIB)
    assert lines == [("done", False)]


async def test_a_quarantine_gives_the_task_to_another_attempt(
    yard: Yard, card: FakeNvml, tmp_path: Path, lines: list[Any]
) -> None:
    slot = yard.slot(tmp_path, probe=nvml())
    await slot.residence.open()
    await slot.ready("anisora")
    card.set(used_bytes=FULL)
    assert isinstance(await slot.run("phr00t"), GaveUp)
    assert isinstance(await slot.run("phr00t"), GaveUp)
    assert lines == [("quarantined", True)] * 2


@pytest.mark.parametrize(
    ("leaving", "expected"), [(False, Stopped()), (True, GaveUp("the worker is leaving", on_purpose=True))]
)
async def test_a_stop_in_mid_swap_lets_the_swap_end_and_runs_nothing(
    yard: Yard, tmp_path: Path, lines: list[Any], leaving: bool, expected: Result
) -> None:
    def on_state(state: SlotState, model: str | None, _detail: str) -> None:
        if (state, model) == (SlotState.LOADING, "phr00t"):
            slot.runner.stop("another task")  # nobody's: no effect
            if leaving:
                slot.runner.leave("the worker is leaving")
            else:
                slot.runner.stop(task_of("phr00t").id)

    slot = yard.slot(tmp_path, probe=rss(), on_state=on_state)
    await slot.residence.open()
    await slot.ready("anisora")
    assert await slot.run("phr00t") == expected
    assert slot.model == "phr00t"
    assert lines == [("cancelled", False)]
    assert list(tmp_path.glob("*.mp4*")) == []
