"""Where the scenarios of this folder run: on a card with pipelines of several GB, or on a CPU with several hundred MB.

The scenarios are the same, so that a machine without a card proves that everything but the card works.
"""

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import pytest
import torch
from msgspec import Struct

from contracts.settings import ModelEntry, load_settings
from ops.machine.memory import probe_for
from ops.machine.nvml import list_gpus
from ops.machine.readings import MemoryProbe
from tests.bench.peers.heavy import NARROW, WIDE, Shape, make_pipelines

MODELS: Final = ("anisora", "phr00t")  # anisora has two transformers
ROOM: Final = 1.2  # times the larger pipeline: what is free for the two of them
GIB: Final = 1 << 30


class Where(Struct, frozen=True, kw_only=True):
    """A slot, the pipelines that are made for it, and how much the scenarios do there."""

    kind: Literal["cpu", "card"]
    slot: str
    device: str
    shape: Shape
    layers: Mapping[str, int]
    swaps: int
    leak: str  # the misdeed that keeps memory which no weak reference sees
    context_max_bytes: int


def on_cpu() -> Where:
    return Where(
        kind="cpu",
        slot="cpu-0",
        device=f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        shape=NARROW,
        layers={"anisora": 4, "phr00t": 8},
        swaps=3,
        leak="leak 200 MB",
        context_max_bytes=2 * GIB,
    )


def on_card() -> Where:
    """The first card. Skips the test where there is none, or where torch cannot use it."""
    cards = list_gpus()
    if not cards:
        pytest.skip("no NVIDIA card: run `make gpu-test` on a machine that has one")
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA: build .venv without PIP_ARGS for the CPU build")
    return Where(
        kind="card",
        slot=cards[0].uuid,
        device=f"{cards[0].name} ({cards[0].total_bytes / GIB:.0f} GiB)",
        shape=WIDE,
        layers={"anisora": 4, "phr00t": 9},
        swaps=20,
        leak="leak outside torch",
        context_max_bytes=2 * GIB,
    )


class Scene(Struct, frozen=True, kw_only=True):
    """A place with its pipelines."""

    where: Where
    settings: Path
    models_dir: Path
    models: dict[str, ModelEntry]

    @property
    def largest_bytes(self) -> int:
        """The size of the larger pipeline."""
        return max(entry.checkpoint.expected_bytes for entry in self.models.values())

    @property
    def room_bytes(self) -> int:
        """Too little for both pipelines."""
        room_bytes = int(ROOM * self.largest_bytes)
        assert room_bytes < sum(entry.checkpoint.expected_bytes for entry in self.models.values())
        return room_bytes

    def probe(self) -> MemoryProbe:
        """The product's own probe."""
        probe = probe_for(self.where.slot)
        assert probe is not None, "this machine does not report what a process holds"
        return probe


def build(where: Where, folder: Path) -> Scene:
    """Makes the pipelines: seconds on a CPU, about a minute for those of a card."""
    settings = make_pipelines(folder, where.layers, where.shape)
    models = dict(load_settings(settings).catalog("tiny").models)
    return Scene(where=where, settings=settings, models_dir=folder, models={name: models[name] for name in MODELS})


def filler_command(slot: str, leave_bytes: int) -> tuple[str, ...]:
    """The command of `tests/gpu/filler.py`, a process of its own, with its own context and nothing of the worker's."""
    return (sys.executable, "-m", "tests.gpu.filler", slot, str(leave_bytes))
