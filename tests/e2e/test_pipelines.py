"""The code of the pipeline host, called in this process: folders, frames, images, faults, files."""

import errno
import hashlib
import os
import resource
import weakref
from pathlib import Path

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from diffusers.models import modeling_utils

from contracts.checkpoints import Checkpoint, RandomWeights
from contracts.settings import Catalog
from lane_worker.pipelines import child
from lane_worker.pipelines.child import TaskCancelled
from lane_worker.pipelines.cleanup import HEAP_KEPT_BYTES, Watched, clean, forget, release
from lane_worker.pipelines.faults import inference_fault, load_fault
from lane_worker.pipelines.inputs import BadInput, gradient
from lane_worker.pipelines.load import CheckpointUnusable, load_pipeline, run_pipeline
from lane_worker.pipelines.tiny import ensure_tiny_pipeline
from lane_worker.pipelines.video import Frames, VideoNotWritten, write_video
from tests.drills import load_variants
from tests.kit.records import small_parameters


def noise(count: int = 17, height: int = 64, width: int = 96) -> Frames:
    return np.random.default_rng(0).integers(0, 256, size=(count, height, width, 3), dtype=np.uint8)


# Other ways to load, which `make swap-parts` compares


def test_every_way_to_load_gives_the_same_weights(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_tiny_pipeline(*checkpoint(catalog, "phr00t"), tmp_path / "tiny")
    folder = tmp_path / "shards"
    plain = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "tiny" / "transformer", local_files_only=True)
    plain.save_pretrained(folder, max_shard_size=30_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    wanted = load_variants.load(load_variants.VARIANTS[0], folder, "cpu").state_dict()
    for name in load_variants.VARIANTS[1:]:
        monkeypatch.setattr(modeling_utils, load_variants.PARALLEL, name.startswith("parallel"))
        loaded = load_variants.load(name, folder, "cpu")
        is_plain = isinstance(loaded, dict)  # the tensors as they are in the files
        found, expected = (loaded, plain.state_dict()) if is_plain else (loaded.state_dict(), wanted)
        assert found.keys() == expected.keys(), name
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        load_variants.copy(loaded, "cpu")


# Videos


def test_the_same_frames_always_give_the_same_bytes(tmp_path: Path) -> None:
    # With x264's mbtree on, on a CPU with AVX-512, 2 of 100 encodings came out different.
    frames = noise()
    assert len({write_video(frames, tmp_path / "v.mp4", fps=16).sha256 for _ in range(100)}) == 1


def test_a_folder_that_was_removed_is_made_again_for_the_video(tmp_path: Path) -> None:
    video = write_video(noise(), tmp_path / "scratch" / "v.mp4", fps=16)
    assert (tmp_path / "scratch" / "v.mp4").stat().st_size == video.bytes


def test_a_full_disk_is_a_storage_failure_and_leaves_nothing(tmp_path: Path) -> None:
    # a limit on the size of files stands for the full disk: the write fails in its middle
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(VideoNotWritten):
            write_video(noise(), tmp_path / "v.mp4", fps=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list(tmp_path.iterdir()) == []


# Tiny pipelines


def checkpoint(catalog: Catalog, model: str) -> tuple[Checkpoint, RandomWeights]:
    found = catalog.models[model].checkpoint
    assert found.random_weights is not None
    return found, found.random_weights


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_tiny_pipeline_is_the_same_wherever_it_is_built(catalog: Catalog, tmp_path: Path) -> None:
    found, weights = checkpoint(catalog, "anisora")
    torch.manual_seed(1)
    ensure_tiny_pipeline(found, weights, tmp_path / "a" / "tiny")
    torch.manual_seed(2)
    ensure_tiny_pipeline(found, weights, tmp_path / "b" / "tiny")
    assert digest(tmp_path / "a" / "tiny") == digest(tmp_path / "b" / "tiny")
    assert os.listdir(tmp_path / "a") == ["tiny"]  # no temporary file stays


def test_a_tiny_pipeline_is_built_once_and_again_for_another_recipe(catalog: Catalog, tmp_path: Path) -> None:
    found, weights = checkpoint(catalog, "phr00t")
    folder = tmp_path / "tiny"
    ensure_tiny_pipeline(found, weights, folder)
    first, inode = digest(folder), folder.stat().st_ino
    ensure_tiny_pipeline(found, weights, folder)
    assert folder.stat().st_ino == inode
    ensure_tiny_pipeline(found, msgspec.structs.replace(weights, seed=weights.seed + 1), folder)
    assert digest(folder) != first
    assert os.listdir(tmp_path) == ["tiny"]


def test_a_folder_of_another_class_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    found, weights = checkpoint(catalog, "phr00t")
    ensure_tiny_pipeline(found, weights, tmp_path / found.folder)
    wrong = msgspec.structs.replace(found, pipeline="WanImageToVideoPipeline", random_weights=None)
    with pytest.raises(CheckpointUnusable, match="holds a WanPipeline; expected a WanImageToVideoPipeline"):
        load_pipeline(wrong, tmp_path, device="cpu")


# Memory


@pytest.mark.parametrize("model", ["anisora", "phr00t"])
def test_a_pipeline_that_was_dropped_is_gone(catalog: Catalog, model: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(catalog.models[model].checkpoint, tmp_path, device="cpu")
    run_pipeline(
        pipeline, small_parameters(steps=catalog.models[model].constraints.steps.fixed or 0), None, lambda _: None
    )
    watched = Watched(pipeline)
    whole = set(watched.still_alive())
    assert {"transformer", "text_encoder", "vae", "tokenizer", "scheduler"} <= whole
    assert ("transformer_2" in whole) == (model == "anisora")
    del pipeline
    release("cpu")
    assert watched.still_alive() == ()


def test_one_view_of_one_weight_is_still_alive(catalog: Catalog, tmp_path: Path) -> None:
    """The pipeline has no name for the view, but the view pins the weight all the same."""
    pipeline = load_pipeline(catalog.models["phr00t"].checkpoint, tmp_path, device="cpu")
    watched = Watched(pipeline)
    kept = pipeline.vae.decoder.conv_out.weight.detach()[:1]
    del pipeline
    release("cpu")
    assert watched.still_alive() == ("vae",)
    del kept
    assert watched.still_alive() == ()


class Weights:
    """Something whose release a weak reference can see."""


def test_a_forgotten_error_pins_nothing() -> None:
    def fail() -> None:
        held = Weights()
        seen.append(weakref.ref(held))
        raise ValueError

    def wrap() -> None:
        held = Weights()
        seen.append(weakref.ref(held))
        try:
            fail()
        except ValueError as error:
            raise RuntimeError from error

    seen: list[weakref.ref[Weights]] = []
    kept: list[BaseException] = []
    try:
        wrap()
    except RuntimeError as error:
        kept.append(error)
    assert all(reference() is not None for reference in seen)
    forget(kept[0])
    assert [reference() for reference in seen] == [None, None]


@pytest.mark.parametrize("model", ["anisora", "phr00t"])
def test_a_run_that_is_cut_short_leaves_no_tensor_in_the_pipeline(catalog: Catalog, model: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(catalog.models[model].checkpoint, tmp_path, device="cpu")
    wanted = small_parameters(steps=catalog.models[model].constraints.steps.fixed or 0)

    def stop_at_two(step: int) -> None:
        if step == 2:
            raise TaskCancelled

    with pytest.raises(TaskCancelled):
        run_pipeline(pipeline, wanted, None, stop_at_two)
    if model == "anisora":  # its scheduler keeps references to its input
        assert pipeline.scheduler.last_sample is None
        assert set(pipeline.scheduler.model_outputs) == {None}
    assert pipeline.scheduler.step_index is None
    assert run_pipeline(pipeline, wanted, None, lambda _: None).shape == (5, 32, 32, 3)


def test_a_decoder_that_fails_keeps_no_features(catalog: Catalog, tmp_path: Path) -> None:
    pipeline = load_pipeline(catalog.models["phr00t"].checkpoint, tmp_path, device="cpu")
    pipeline.vae.decoder.conv_out.weight.data = torch.zeros(1)  # fails after everything before it was kept
    with pytest.raises(RuntimeError):
        run_pipeline(pipeline, small_parameters(steps=4), None, lambda _: None)
    assert set(pipeline.vae._feat_map) == {None}


def test_a_heap_of_some_size_is_kept_for_the_next_run_and_a_larger_one_goes_back() -> None:
    def left_by(blocks: int, *, kept_bytes: int) -> tuple[int, int]:
        """Resident memory with *blocks* of 100 kB, and after they were dropped; the last one pins the heap's end."""
        made = [b"\1" * 100_000 for _ in range(blocks)]
        pin = b"\2" * 100_000
        with_them = clean("cpu").rss_bytes
        made.clear()
        without = clean("cpu", heap_kept_bytes=kept_bytes).rss_bytes
        assert len(pin) == 100_000
        return with_them, without

    few, many = HEAP_KEPT_BYTES // 4 // 100_000, HEAP_KEPT_BYTES * 2 // 100_000
    with_few, kept = left_by(few, kept_bytes=1 << 40)
    assert with_few - kept < HEAP_KEPT_BYTES // 16
    with_few, gone = left_by(few, kept_bytes=0)
    assert with_few - gone > HEAP_KEPT_BYTES // 8
    with_many, gone = left_by(many, kept_bytes=HEAP_KEPT_BYTES)
    assert with_many - gone > HEAP_KEPT_BYTES


def test_a_reading_counts_resident_memory() -> None:
    held = np.ones(50 << 20, dtype=np.uint8)
    with_it = clean("cpu").rss_bytes
    del held
    assert with_it - clean("cpu").rss_bytes > 40 << 20


def test_the_gradient_depends_on_the_seed_only() -> None:
    assert gradient(1, 48, 32).tobytes() == gradient(1, 48, 32).tobytes()
    assert gradient(1, 48, 32).tobytes() != gradient(2, 48, 32).tobytes()
    assert (gradient(1, 48, 32).size, gradient(1, 48, 32).mode) == ((48, 32), "RGB")


# Faults other than failures of the device, which are in test_faults.py


@pytest.mark.parametrize(
    ("error", "code", "fatal"),
    [
        pytest.param(ValueError("bad shape"), "inference_failed", False, id="other"),
        pytest.param(OSError(errno.EIO, "Input/output error"), "storage_failed", False, id="disk"),
        pytest.param(VideoNotWritten("no space"), "storage_failed", False, id="video"),
        pytest.param(BadInput("not an image"), "invalid_input", False, id="image"),
    ],
)
def test_faults_of_a_task(error: BaseException, code: str, fatal: bool) -> None:
    fault = inference_fault(error)
    assert (fault.code, fault.fatal) == (code, fatal)


def test_the_message_of_an_inference_fault_quotes_nothing() -> None:
    secret = "what the caller wrote"
    for error in (
        ValueError(secret),
        RuntimeError(f"CUDA error: {secret}"),
        MemoryError(secret),
        OSError(5, "I/O", secret),
    ):
        assert secret not in inference_fault(error).message


@pytest.mark.parametrize(
    ("error", "code", "fatal"),
    [
        (MemoryError(), "out_of_memory", False),
        (CheckpointUnusable("no folder"), "storage_failed", False),
        (FileNotFoundError(2, "missing", "config.json"), "storage_failed", False),
        (KeyError("transformer"), "inference_failed", False),
        (RuntimeError("CUDA error: no device"), "inference_failed", True),
    ],
)
def test_faults_of_a_load(error: BaseException, code: str, fatal: bool) -> None:
    fault = load_fault(error)
    assert (fault.code, fault.fatal) == (code, fatal)


def test_a_host_whose_output_is_full_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host still has to answer its worker. /dev/full is the device of Linux that never has room."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(child, "STANDARD_ERROR", full)
    child._print(ValueError("\ud800"))
    os.close(full)
