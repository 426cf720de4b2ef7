"""The options of a checkpoint on a real card, where group offloading has streams and pinned memory."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from contracts.checkpoints import GroupOffload
from contracts.fit import need
from lane_worker.pipelines.cleanup import Watched, clean, release
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from ops.machine.weights import weights_of
from tests.bench.peers.heavy import heavy_models, make_heavy
from tests.kit.records import small_parameters

pytestmark = pytest.mark.gpu

MB = 1_000_000
CAST = {"layerwise_casting": "float8_e4m3fn"}
BLOCK = GroupOffload(level="block")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"device_map": True},
    {"vae_tiling": True},
    {"attention_backend": "_native_flash"},
    CAST,
    {"offload": "model"},
    {"offload": "model", **CAST},
    {"offload": "group"},
    {"offload": "group", **CAST},
    {"offload": "group", "group_offload": GroupOffload(record_stream=True)},
    {"offload": "group", "group_offload": GroupOffload(pinned=False)},
    {"offload": "group", "group_offload": GroupOffload(stream=False)},
    {"offload": "group", "group_offload": BLOCK},
    {"offload": "group", "group_offload": msgspec.structs.replace(BLOCK, blocks=4, stream=False), **CAST},
]
PARAMETERS = small_parameters(width=64, height=64, steps=4)


@pytest.fixture(scope="module", autouse=True)
def _card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA card that this torch can use")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines of several hundred MB, with random weights."""
    folder = tmp_path_factory.mktemp("heavy")
    make_heavy(folder)
    return folder


@pytest.mark.parametrize("model", ["anisora", "phr00t"])
@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_an_option_holds_what_was_counted_makes_the_picture_and_leaves_nothing(
    heavy: Path, model: str, changes: dict[str, Any]
) -> None:
    entry = heavy_models(heavy)[model].checkpoint
    checkpoint = msgspec.structs.replace(entry, **{"dtype": "bfloat16", **changes})
    expected = _frames(msgspec.structs.replace(checkpoint, **_plain()), heavy)
    release("cuda")
    before_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    pipeline = load_pipeline(checkpoint, heavy, device="cuda")
    resident_bytes = torch.cuda.memory_allocated() - before_bytes
    counted = need(weights_of(heavy / checkpoint.folder), checkpoint, on_card=True)
    assert torch.cuda.max_memory_allocated() - before_bytes <= counted.card_bytes + 64 * MB, "never whole on the card"
    if counted.pinned:
        locked_bytes = torch.cuda.host_memory_stats()["active_bytes.current"]
        assert locked_bytes == pytest.approx(counted.host_bytes, rel=0.02)  # buffers are locked too, and not counted
    if checkpoint.offload == "none":
        assert resident_bytes == pytest.approx(counted.card_bytes, rel=0.05)
    for _ in range(3):  # the first run of a stream only learns the order of the layers
        frames = run_pipeline(pipeline, PARAMETERS, None, lambda _: None)
        difference = np.abs(frames.astype(int) - expected.astype(int))
        assert difference.mean() < 2, changes
    # beside the weights: activations, and cuBLAS' workspace
    peak_bytes = torch.cuda.max_memory_allocated() - before_bytes
    assert peak_bytes <= counted.card_bytes + 400 * MB
    watched = Watched(pipeline)
    pipeline.remove_all_hooks()
    del pipeline
    release("cuda")
    assert watched.still_alive() == ()
    assert torch.cuda.memory_allocated() - before_bytes < MB
    assert clean("cuda").cuda_allocated_bytes is not None


def _plain() -> dict[str, Any]:
    return {
        "offload": "none",
        "group_offload": None,
        "device_map": False,
        "layerwise_casting": None,
        "vae_tiling": False,
        "attention_backend": "native",
    }


def _frames(checkpoint: Any, folder: Path) -> Any:
    return run_pipeline(load_pipeline(checkpoint, folder, device="cuda"), PARAMETERS, None, lambda _: None)
