"""One slot, one pipeline, and proof in between, on a CPU: real hosts, pipelines and memory (FR-001..003, design §7)."""

import itertools
import re
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lane_worker.forking.outcome import LoadFailed
from lane_worker.residence.read_ahead import ReadAhead
from tests.kit.measured import Measured
from tests.kit.yard import CATALOG, SLOT, Yard, changed, released, rss

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


async def test_a_swap_exports_three_spans(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


class ReadAheadCalls(ReadAhead):
    """Reads nothing, and keeps the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Path | None] = []

    def begin(self, folder: Path) -> None:
        self.calls.append(folder)

    def stop(self) -> None:
        self.calls.append(None)


async def test_the_wanted_checkpoint_is_read_ahead_until_a_swap_fails(yard: Yard, tmp_path: Path) -> None:
    """ADR 0023."""
    models = dict(CATALOG.models) | changed("phr00t", "oom-in-load")
    slot = yard.slot(tmp_path, probe=rss(), rogue=True, models=models)
    read_ahead = slot.residence.read_ahead = ReadAheadCalls()
    await slot.residence.open()
    await slot.ready("anisora")
    wanted = yard.folder / models["anisora"].checkpoint.folder
    assert read_ahead.calls == [wanted]
    loaded = slot.residence.resident
    assert await slot.residence.ready("anisora") is loaded  # the model is not loaded a second time
    assert read_ahead.calls == [wanted], "it is resident"
    with pytest.raises(LoadFailed):
        await slot.ready("phr00t")
    assert read_ahead.calls == [wanted, yard.folder / "oom-in-load", None]


async def test_a_host_that_leaks_is_killed(yard: Yard, tmp_path: Path, measured: Measured) -> None:
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
    assert receipt.after_bytes == 0  # a process that is gone holds nothing
    assert receipt.samples >= 4
    assert slot.host.pid != pid
    await slot.generate(CATALOG.models["phr00t"])
    assert released(measured, "escalated") == before["escalated"] + 1
    assert released(measured, "unloaded") == before["unloaded"]
    assert (await slot.ready("anisora")).how == "unloaded"  # the fresh host has a base of its own
    assert released(measured, "escalated") == before["escalated"] + 1
    assert released(measured, "unloaded") == before["unloaded"] + 1


async def test_a_host_that_leaks_slowly_is_renewed(yard: Yard, tmp_path: Path, measured: Measured) -> None:
    """ADR 0029: the worker renews it within 10 swaps, before a release fails. The fresh host's trend starts anew."""
    before = {outcome: released(measured, outcome) for outcome in ("renewed", "escalated", "quarantined")}
    probe = rss()
    probe.absolute_bytes = 512 * MIB  # as on a card: a CPU's tolerance would end at the second leak
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


async def test_a_failed_rehearsal_is_logged_and_the_slot_still_serves(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / f"{SLOT}.rehearsal").write_text("in the way")
    slot = yard.slot(tmp_path, probe=rss())
    with structlog.testing.capture_logs() as logs:
        await slot.residence.open()
    (failure,) = (line for line in logs if line["event"] == "not_rehearsed")
    assert "FileExistsError" in failure["error"] or "NotADirectoryError" in failure["error"]
    await slot.ready("anisora")
    await slot.generate(CATALOG.models["anisora"])


@pytest.mark.parametrize(
    ("misdeed", "alive"), [("leak tensor", ("transformer",)), ("keep component", ("text_encoder",))]
)
async def test_the_receipt_names_what_the_host_still_holds(
    yard: Yard, tmp_path: Path, misdeed: str, alive: tuple[str, ...]
) -> None:
    """Resident memory does not show tiny pipelines: weak references prove that they are gone."""
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
