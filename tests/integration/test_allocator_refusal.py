"""A worker whose environment asks for another allocator does not serve, and says why (FR-010)."""

import asyncio
from pathlib import Path

import click
import pytest

from contracts.settings import Catalog
from degraded_worker.worker import DegradedWorker
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.runtime.process import run_to_end
from ops.nats.link import NatsLink
from tests.kit.degraded import setup_of
from tests.kit.lanes import Lane

WORDS = "PYTORCH_ALLOC_CONF has expandable_segments:False: remove it"


@pytest.fixture(autouse=True)
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARMLANE_FORK_SERVER", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:False")


async def test_a_lane_ends(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    lane = Lane(link, catalog, tmp_path)
    with pytest.raises(AllocatorMisconfigured, match=WORDS):
        await lane._worker.run(asyncio.Event())


async def test_a_degraded_worker_ends(link: NatsLink, catalog: Catalog, tmp_path: Path) -> None:
    worker = DegradedWorker(setup_of(link, catalog, tmp_path, "cpu-0"))
    with pytest.raises(AllocatorMisconfigured, match=WORDS):
        await worker.run(asyncio.Event())


def test_the_command_says_why() -> None:
    async def run() -> None:
        raise AllocatorMisconfigured(WORDS)

    with pytest.raises(click.ClickException, match=WORDS):
        run_to_end("lane", run(), instance="lane-0", listen=None)
