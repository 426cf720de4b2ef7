"""Both models take turns on a real card, and NVML proves each release (FR-001..003)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from contracts.tasks import TaskStatus
from ops.memory import list_gpus
from ops.nats_link import NatsLink
from tests.degraded import DegradedProcess, becomes, leads, place, task_of
from tests.support import NatsServer

MODELS = ("anisora", "phr00t")
SWAPS = 6


@pytest.fixture
def card() -> str:
    """The UUID of a card that this machine has and this torch can use."""
    cards = list_gpus()
    if not cards:
        pytest.skip("no NVIDIA card")
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    return cards[0].uuid


@pytest.fixture
def worker(card: str, nats_server: NatsServer, link: NatsLink, tmp_path: Path) -> Iterator[DegradedProcess]:
    """A degraded worker on the card, with real hosts and the product's own limits."""
    process = DegradedProcess(nats_server.address, tmp_path, "degraded-0", card)
    yield process
    process.stop()


@pytest.mark.gpu
async def test_models_alternate_on_a_card(worker: DegradedProcess, link: NatsLink) -> None:
    await leads(link, worker.name)
    first = await becomes(link, await place(link, task_of(MODELS[0], 0)), TaskStatus.DONE, TaskStatus.FAILED)
    assert first.status is TaskStatus.DONE, first.error
    for number in range(1, SWAPS + 1):
        task = await place(link, task_of(MODELS[number % 2], number))
        done = await becomes(link, task, TaskStatus.DONE, TaskStatus.FAILED)
        assert done.status is TaskStatus.DONE, done.error
        receipt = done.swap
        assert receipt is not None
        assert (receipt.probe, receipt.how, receipt.alive) == ("nvml", "unloaded", ()), receipt
        assert (receipt.released_model, receipt.loaded_model) == (MODELS[(number + 1) % 2], MODELS[number % 2])
        assert receipt.samples >= 2
        assert receipt.after_bytes is not None
        assert receipt.base_bytes is not None
        assert receipt.tolerance_bytes is not None
        assert receipt.after_bytes <= receipt.base_bytes + receipt.tolerance_bytes
        assert done.memory is not None
        assert done.memory.cuda_allocated_bytes, "it ran on the card"
    assert worker.stop() == 0
