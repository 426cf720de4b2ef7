"""SC-006: the share of cold starts that reached `warm` within ten minutes."""

import msgspec
import pytest

from contracts.lanes import ColdStart
from gateway.boards.cold_starts import STARTS_MAX, TARGET_S, ColdStarts, share_within
from ops.nats.bucket import Versioned
from ops.nats.buckets import STARTS
from ops.nats.entry import Entry
from tests.kit.records import NOW, after


def start(seconds: float | None, ended_s: float = 0, model: str = "anisora") -> ColdStart:
    return ColdStart(model=model, worker=f"{model}-0", started_at=NOW, ended_at=after(ended_s), seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "share"),
    [
        ([], None),
        ([12.0], 1.0),
        ([600.0], 1.0),
        ([600.001], 0.0),
        ([None], 0.0),
        ([5.0, 5.0, 5.0, None], 0.75),
    ],
)
def test_the_share(seconds: list[float | None], share: float | None) -> None:
    assert share_within([start(taken_s) for taken_s in seconds], TARGET_S) == share


def test_the_newest_starts_of_every_model_are_kept_once() -> None:
    board = ColdStarts()
    revision = 0
    for number in range(STARTS_MAX + 1):
        for model in ("anisora", "phr00t"):
            revision += 1
            entry = Entry(model, msgspec.json.encode(start(1.0, number, model)), revision, NOW)
            board.on_entry(Versioned(STARTS, entry))
            board.on_entry(Versioned(STARTS, entry))  # a watch that resumes may repeat its last one
    board.on_entry(Versioned(STARTS, Entry("anisora", b"?", revision + 1, NOW)))
    starts = board.newest_first()
    assert len(starts) == 2 * STARTS_MAX
    assert starts[0].ended_at == after(STARTS_MAX)
    assert starts[-1].ended_at == after(1)


def test_a_start_of_one_model_hides_none_of_another() -> None:
    board = ColdStarts()
    for model, revision in (("anisora", 2), ("phr00t", 1)):
        board.on_entry(Versioned(STARTS, Entry(model, msgspec.json.encode(start(1.0, 1, model)), revision, NOW)))
    assert {known.model for known in board.newest_first()} == {"anisora", "phr00t"}
