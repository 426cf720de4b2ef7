"""The bytes on the pipe, pinned: a change here is a change of the protocol between a worker and its host."""

import pytest

from contracts.settings import Checkpoint, RandomWeights, Scheduler
from contracts.tasks import GenerationParameters, ImageReference, MemoryReading
from lane_worker.runtime import host_messages as m

MEMORY = MemoryReading(rss_bytes=1, cleanup_s=0.5)
CHECKPOINT = Checkpoint(
    pipeline="WanPipeline",
    folder="tiny",
    dtype="float32",
    scheduler=Scheduler(kind="UniPC", flow_shift=3.0),
    random_weights=RandomWeights(seed=1),
)
PARAMETERS = GenerationParameters(
    prompt="é",
    negative_prompt="",
    image=ImageReference(sha256="ab", media_type="image/png", bytes=2, width=3, height=4),
    width=32,
    height=16,
    num_frames=5,
    fps=8,
    seed=4294967295,
    steps=4,
    cfg=1.0,
)
TO_CHILD: list[tuple[m.ToChild, str]] = []
FROM_CHILD: list[tuple[m.FromChild, str]] = []
