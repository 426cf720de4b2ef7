"""The page on which a gateway of `warmlane up` shows the metrics of every process (`ops/telemetry/page.py`)."""

import asyncio
import os
import socket
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from contracts.tasks import FailureCode
from ops.telemetry import instruments, unreadable
from ops.telemetry import page as metrics_page
from ops.telemetry.metrics import CATALOGUE, ENDED_BY_GATEWAYS, ENDED_BY_WORKERS
from ops.telemetry.page import Family, ProcessPage, Sample, answer_in, joined, page_of_all
from tests.kit.clock import let_pass
from tests.kit.support import BOUND_S, eventually

OF_ITSELF = "process_cpu_seconds_total"


def page_of(
    role: str, instance: str, value: float, *, began_s: float = 0.0, type_: str = "gauge", label: str = "a"
) -> ProcessPage:
    samples = (Sample("warmlane_some", {"model": label}, value),)
    return ProcessPage(role, instance, began_s, (Family("warmlane_some", "Some", type_, samples),))


def series(pages: list[ProcessPage]) -> dict[tuple[str, str, str], float]:
    return {
        (sample.labels["job"], sample.labels["instance"], sample.labels["model"]): sample.value
        for family in joined(pages)
        for sample in family.samples
    }


def test_each_series_has_the_name_of_its_process() -> None:
    pages = [page_of("lane", "anisora-0", 1), page_of("lane", "phr00t-0", 2), page_of("degraded", "degraded-0", 3)]
    assert series(pages) == {
        ("warmlane/warmlane-degraded", "degraded-0", "a"): 3,
        ("warmlane/warmlane-lane", "anisora-0", "a"): 1,
        ("warmlane/warmlane-lane", "phr00t-0", "a"): 2,
    }
    (family,) = joined(pages)
    assert (family.name, family.documentation, family.type) == ("warmlane_some", "Some", "gauge")


def test_of_two_processes_with_one_name_the_newer_reports() -> None:
    """One that drains beside the one that took its place: together they would count twice, and Prometheus takes no
    series twice."""
    pages = [
        page_of("lane", "anisora-0", 2, began_s=20),
        page_of("lane", "anisora-0", 1, began_s=10),
        page_of("lane", "anisora-0", 5, began_s=15, label="b"),
    ]
    assert series(pages) == {("warmlane/warmlane-lane", "anisora-0", "a"): 2}


def test_a_family_is_of_one_type() -> None:
    pages = [page_of("lane", "anisora-0", 1), page_of("lane", "phr00t-0", 2, type_="counter")]
    assert series(pages) == {("warmlane/warmlane-lane", "anisora-0", "a"): 1}


async def test_a_process_that_is_dead_stopped_or_answers_nonsense_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process does not delay the others. The folder has a path that is too long for a socket's name."""
    monkeypatch.setattr(metrics_page, "ASK_S", BOUND_S)
    answered: list[str] = []
    ask = metrics_page._ask

    async def noted(path: Path) -> ProcessPage | None:
        page = await ask(path)
        answered.append(path.name)
        return page

    monkeypatch.setattr(metrics_page, "_ask", noted)
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    stop = answer_in(folder, "lane", "anisora-0")
    own = folder / f"{os.getpid()}.sock"
    monkeypatch.chdir(folder)
    listening = {}
    for name in ("dead", "stopped", "clogged", "nonsense", "gone"):
        listening[name] = socket.socket(socket.AF_UNIX)
        listening[name].bind(f"{name}.sock")
        listening[name].listen(0 if name == "clogged" else 5)
    listening["dead"].close()
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect("clogged.sock")  # and there is no room for another
    answering = [
        asyncio.create_task(asyncio.to_thread(answer, listening[name], said))
        for name, said in (("nonsense", b"\xc1no page"), ("gone", b""))
    ]
    try:
        asking = asyncio.create_task(page_of_all(folder))
        await eventually(lambda: asyncio.sleep(0, len(answered) == 5))
        let_pass(BOUND_S, monkeypatch)
        page = await asking
    finally:
        await asyncio.gather(*answering)
        waiting.close()
        for each in listening.values():
            each.close()
    names = {
        (sample.labels["job"], sample.labels["instance"])
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert answered[5:] == ["stopped.sock"]
    assert names == {("warmlane/warmlane-lane", "anisora-0")}
    assert OF_ITSELF in page.decode()
    assert own.exists()
    assert not (folder / "dead.sock").exists(), "nobody listens there again"
    assert (folder / "stopped.sock").exists(), "it may go on"
    stop()
    assert not own.exists()
    assert await page_of_all(folder) == b""


def answer(listening: socket.socket, said: bytes) -> None:
    asked, _ = listening.accept()
    asked.sendall(said)
    asked.close()


def test_a_loop_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of such a process are still shown; reading each of its gauges would take a second."""
    monkeypatch.setattr(instruments, "ANSWER_S", 0.05)
    asked = []

    def source() -> list[tuple[float, tuple[str, ...]]]:
        asked.append(True)
        return [(1.0, ())]

    loop = asyncio.new_event_loop()  # nobody runs it
    try:
        assert [instruments._asked_in(loop, source) for _ in range(3)] == [[], [], []]
        loop.run_until_complete(asyncio.sleep(0))
        assert len(asked) == 1, "of the three looks only the first one was left with the loop"
        monkeypatch.setattr(instruments, "ANSWER_S", BOUND_S)
        again = asyncio.to_thread(instruments._asked_in, loop, source)
        assert loop.run_until_complete(again) == [(1.0, ())]
    finally:
        loop.close()
    assert instruments._asked_in(loop, source) == []


def test_an_end_is_begun_at_0_only_by_who_may_store_it() -> None:
    """A gateway that shows `done` at 0 would contradict its workers."""
    assert {*ENDED_BY_GATEWAYS, *ENDED_BY_WORKERS} == {"done", *(code.value for code in FailureCode)}
    assert "done" not in ENDED_BY_GATEWAYS
    assert not {"cancelled", "worker_lost"} & set(ENDED_BY_WORKERS)
    assert {kind for kinds in unreadable.READ.values() for kind in kinds} == set(get_args(unreadable.Kind))


def test_every_metric_says_whose_it_is() -> None:
    roles = set(get_args(unreadable.Role))
    for metric in CATALOGUE.values():
        assert metric.by, metric.name
        assert set(metric.by) <= roles, metric.name


def test_an_empty_page_is_a_page() -> None:
    assert generate_latest(metrics_page._Joined([])) == b""
