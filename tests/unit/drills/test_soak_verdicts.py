"""The verdicts of `make soak`: each can fail."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.drills.soak_report import MB, Seen, judge, markdown, sentences_of
from tests.drills.soak_samples import Sample, as_columns, label, thinned

COUNT = 1_000
STEP = 5
FLAT = {
    "rss gateway": 90 * MB,
    "rss anisora-0": 60 * MB,
    "files gateway": 40.0,
    "messages KV_tasks": 10_000.0,
    "bytes KV_tasks": 20 * MB,
    "objects artifacts": 5_000.0,
    "disk nats": 80 * MB,
    "disk logs": 5 * MB,
}


def seen(*, at_s: Callable[[int], float] = float, **grows: Callable[[float], float]) -> Seen:
    """A run of 1,000 tasks, 5 between two samples. *grows* changes a series, by the part of the run that is over."""
    samples = []
    for number in range(COUNT // STEP + 1):
        values = dict(FLAT) | {"cpu gateway": number / 20}
        for name, grow in grows.items():
            values[name.replace("_", " ", 1)] = grow(number * STEP / COUNT)
        samples.append(Sample(at_s(number), number * STEP, values))
    return Seen(
        samples=tuple(samples),
        accepted=COUNT,
        ends={"done": 990, "failed: cancelled": 10},
        lost=0,
        moved_after_end=0,
        refused={"queue_overloaded": 3},
        asked={"videos": 20},
        seconds=at_s(COUNT // STEP),
        keep_s=40,
        processes={"gateway": 1, "anisora-0": 1, "anisora-0's host": 3},
    )


GOOD = seen()


def missed(run: Seen) -> list[str]:
    return [line.what for line in judge(run) if not line.is_met]


def test_a_flat_run_passes_and_is_described() -> None:
    assert missed(GOOD) == []
    text = markdown(GOOD, judge(GOOD), {"machine": "a machine"})
    assert "Nothing was lost, and nothing grew." in text
    sentences = " ".join(sentences_of(GOOD))
    assert "990 done, 10 failed: cancelled" in sentences
    assert "3 queue_overloaded" in sentences
    assert "gateway 10.0" in sentences
    assert "2 anisora-0's host" in sentences


GATEWAY = "resident memory of gateway, after the first tenth and at the end"


@pytest.mark.parametrize(
    ("run", "what"),
    [
        pytest.param(replace(GOOD, ends={"done": 999}), ["accepted tasks without an end"], id="one-is-lost"),
        pytest.param(replace(GOOD, moved_after_end=1), ["tasks that moved after their end"], id="moved-again"),
        pytest.param(
            replace(GOOD, processes=dict(GOOD.processes) | {"gateway": 2}),
            ["processes that ended by themselves"],
            id="the-gateway-was-started-again",
        ),
        pytest.param(
            seen(rss_gateway=lambda part: (90 + 25 * part) * MB),
            [GATEWAY, "resident memory of gateway"],
            id="the-gateway-leaks",
        ),
        pytest.param(
            seen(rss_gateway=lambda part: (90 if part < 0.8 else 115) * MB),
            [GATEWAY, "resident memory of gateway"],
            id="the-gateway-grows-late",
        ),
        pytest.param(
            seen(**{"rss_anisora-0": lambda part: (60 + 20 * part) * MB}),
            ["resident memory of anisora-0"],
            id="a-lane-leaks",
        ),
        pytest.param(seen(files_gateway=lambda part: 40 + 20 * part), ["open files of gateway"], id="files-stay-open"),
        pytest.param(
            seen(messages_KV_tasks=lambda part: 10_000 + 10_000 * part), ["messages in KV_tasks"], id="records-stay"
        ),
        pytest.param(
            seen(bytes_KV_tasks=lambda part: (20 + 20 * part) * MB), ["bytes in KV_tasks"], id="records-become-larger"
        ),
        pytest.param(
            seen(objects_artifacts=lambda part: 5_000 + 5_000 * part), ["files in folder artifacts"], id="videos-stay"
        ),
        pytest.param(
            seen(disk_nats=lambda part: (80 + 80 * part) * MB), ["disk taken by folder nats"], id="the-store-grows"
        ),
    ],
)
def test_what_grows_or_is_lost_is_missed(run: Seen, what: list[str]) -> None:
    assert missed(run) == what
    assert f"Missed: {'; '.join(what)}." in markdown(run, judge(run), {})


def test_logs_may_grow_and_what_is_kept_follows_the_rate() -> None:
    assert missed(seen(disk_logs=lambda part: part * 500 * MB)) == []

    def faster(number: int) -> float:
        return number if number < 120 else 120 + (number - 120) / 2

    doubled = {"messages_KV_tasks": lambda part: 10_000.0 if part < 0.6 else 20_000.0}
    assert missed(seen(at_s=faster, **doubled)) == []
    assert missed(seen(**doubled)) == ["messages in KV_tasks"]


def test_a_run_that_is_too_short_is_not_judged() -> None:
    few = replace(GOOD, samples=GOOD.samples[::40])
    assert GATEWAY in missed(few)
    assert {line.verdict for line in judge(few) if line.limit is None} == {"not judged: too few samples"}


def test_processes_are_labelled_by_what_they_are() -> None:
    assert label(["/usr/bin/nats-server", "-c", "nats.conf"], "warmlane up") == "nats-server"
    assert label(["python", "bin/warmlane", "gateway", "--port", "8000"], "warmlane up") == "gateway"
    assert label(["python", "-m", "tests.kit.noop", "supervisor", "--lanes", "a=1"], "warmlane up") == "supervisor"
    assert label(["python", "-m", "tests.kit.noop", "lane", "--name", "anisora-0"], "supervisor") == "anisora-0"
    server = label(["python", "-m", "lane_worker.pipelines.forkserver", "7"], "anisora-0")
    assert server == "anisora-0's fork server"
    assert label(["python", "-m", "lane_worker.pipelines.forkserver", "7"], server) == "anisora-0's host"
    assert label(["sh"], "gateway") == "a child of gateway"


def test_samples_are_thinned_and_kept(tmp_path: Path) -> None:
    kept = thinned(list(GOOD.samples), 11)
    assert [sample.accepted for sample in kept] == list(range(0, COUNT + 1, 100))
    columns = json.loads(msgspec.json.encode(as_columns([*kept, Sample(101.0, COUNT, {"rss new": 1.4})])))
    assert columns["series"]["rss new"] == [None] * 11 + [1]
    assert columns["series"]["files gateway"] == [40] * 11 + [None]
