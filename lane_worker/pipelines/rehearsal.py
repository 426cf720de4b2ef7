"""Runs tiny pipelines before memory is measured: a process takes some of its memory only once (ADR 0029)."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from contracts.checkpoints import Checkpoint, RandomWeights
from contracts.tasks import GenerationParameters
from lane_worker.forking.host_messages import Rehearsed
from lane_worker.pipelines.cleanup import forget, release
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.video import write_video

TINY: Final = RandomWeights(seed=0)
SMALLEST: Final = GenerationParameters(
    prompt="rehearsal",
    negative_prompt="",
    image=None,
    width=32,
    height=32,
    num_frames=5,
    fps=8,
    seed=0,
    steps=2,
    cfg=1.0,
)


def rehearse(checkpoints: Sequence[Checkpoint], folder: Path, device: str) -> Rehearsed:
    """Loads, runs and releases a tiny pipeline with the options of each of *checkpoints*, whose files lie in *folder*.

    *folder* is this process's alone, and gone afterwards. Never raises: the load reports a device that is broken or
    full, to a worker that waits for the answer, and in more detail.
    """
    begun_s = time.perf_counter()
    error = ""
    try:
        release(device)
        for checkpoint in checkpoints:
            error = _one(checkpoint, folder, device) or error
        release(device)
    except Exception as broken:
        error = error or _described(broken)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Rehearsed(round(time.perf_counter() - begun_s, 4), error)


def _one(checkpoint: Checkpoint, folder: Path, device: str) -> str:
    """What went wrong; empty where nothing did. On return nothing holds the pipeline."""
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    try:
        pipeline = load_pipeline(replace(checkpoint, random_weights=TINY), folder, device=device)
        frames = run_pipeline(pipeline, SMALLEST, None, lambda _: None)
        write_video(frames, folder / "rehearsal.mp4", fps=SMALLEST.fps)
        pipeline.remove_all_hooks()
    except Exception as error:
        forget(error)
        return _described(error)
    return ""


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
