"""The generation that warms a lane up: what a client could send, with a picture where the model takes one."""

import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from contracts.checkpoints import Checkpoint
from contracts.geometry import Size, largest_sizes, values
from contracts.images import PNG_MAGIC
from contracts.settings import ModelEntry
from contracts.tasks import GenerationParameters, ImageReference
from lane_worker.forking.host_messages import Failed, Generate
from lane_worker.forking.outcome import HostLost, Outcome, TimedOut

WARM_UP_TASK: Final = "warmup"
PICTURE_PIXELS: Final = 64  # of a side


class WarmUpFailed(HostLost):
    """The warm-up made no video, so the lane is not warm; its host is gone."""


class TooLargeForCard(WarmUpFailed):
    """The card ran out of memory in the warm-up: it can never serve what the settings admit."""


def warm_up_request(model: ModelEntry, folder: Path) -> Generate:
    """The warm-up of *model*, with its files in *folder*: the largest or the smallest video, as its profile says."""
    request = Generate(
        task_id=WARM_UP_TASK,
        attempt=0,  # and therefore not slowed down by --step-seconds
        parameters=warm_up_parameters(model),
        video_path=str(folder / f"{WARM_UP_TASK}.mp4"),
    )
    return with_picture(request, model, folder)


def warm_up_parameters(model: ModelEntry) -> GenerationParameters:
    """A generation within the limits of *model*, except for its steps: for the largest video it runs the fewest that
    use every transformer, since one step more needs no more memory."""
    limits = model.constraints
    size = warm_up_size(model)
    steps = int(limits.steps.value_when_absent or 1)
    return GenerationParameters(
        prompt="warm-up",
        negative_prompt="",
        image=None,
        width=size.width,
        height=size.height,
        num_frames=size.num_frames,
        fps=int(limits.fps.value_when_absent or 1),
        seed=0,
        steps=fewest_steps(model.checkpoint, steps) if model.warm_up == "largest" else steps,
        cfg=float(limits.cfg.value_when_absent or 1.0),
    )


def warm_up_size(model: ModelEntry) -> Size:
    """The video that warms *model* up: the smallest that its limits admit, or the one that needs most memory.

    `largest_sizes` names two: with VAE tiling the transformer decides which it is, without it the VAE's frame.
    """
    limits = model.constraints
    if model.warm_up == "smallest":
        return Size(*(values(field)[0] for field in (limits.width, limits.height, limits.num_frames)))
    return largest_sizes(limits)[0 if model.checkpoint.vae_tiling else -1]


def fewest_steps(checkpoint: Checkpoint, steps: int) -> int:
    """How many steps use every transformer of *checkpoint*; *steps* where that is not less.

    The last of n steps stands at about 1/n of the noise, before the flow shift s moves it to s/(n + s - 1); the second
    of two transformers takes over below the boundary.
    """
    if checkpoint.boundary_ratio is None:
        return 1
    shift, boundary = checkpoint.scheduler.flow_shift, checkpoint.boundary_ratio
    return min(steps, max(2, math.floor(shift / boundary - shift + 1) + 1))


def with_picture(request: Generate, model: ModelEntry, folder: Path) -> Generate:
    """*request* with a picture in a file in *folder*, as a client's would come; unchanged where *model* takes none."""
    if model.constraints.image.presence == "unsupported":
        return request
    content = picture()
    path = folder / f"{request.task_id}.image"
    path.write_bytes(content)
    reference = ImageReference(
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="image/png",
        bytes=len(content),
        width=PICTURE_PIXELS,
        height=PICTURE_PIXELS,
    )
    return replace(request, parameters=replace(request.parameters, image=reference), image_path=str(path))


def picture() -> bytes:
    """A PNG with a gradient in two of its colours. Written by hand: a worker has no Pillow in its memory."""
    side = range(PICTURE_PIXELS)
    scale = 255 // (PICTURE_PIXELS - 1)
    rows = b"".join(b"\0" + b"".join(bytes((x * scale, y * scale, 128)) for x in side) for y in side)
    header = struct.pack(">IIBBBBB", PICTURE_PIXELS, PICTURE_PIXELS, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return PNG_MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def warm_up_failure(model: ModelEntry, outcome: Outcome) -> WarmUpFailed:
    """The error of a warm-up that ended as *outcome*. It says what to do where the card is too small."""
    size = warm_up_size(model)
    if isinstance(outcome, TimedOut):
        limit = f"timeouts.{outcome.limit} of {outcome.seconds:g} s"
        return WarmUpFailed(
            f"the warm-up generation ({size}) took longer than {limit}: raise that, or lower the limits"
        )
    reason = str(getattr(outcome, "message", None) or getattr(outcome, "reason", type(outcome).__name__))
    if not isinstance(outcome, Failed) or outcome.code != "out_of_memory":
        return WarmUpFailed(f"the warm-up generation ({size}) did not succeed: {reason}")
    which = f"the {model.warm_up} video that the settings of {model.name} admit"
    return TooLargeForCard(
        f"this slot cannot serve {which}: {size} ran out of memory in the warm-up; {'; or '.join(_remedies(model))}"
    )


def _remedies(model: ModelEntry) -> list[str]:
    checkpoint = model.checkpoint
    found = ["lower max_volume, or the limits of width, height and num_frames"]
    if not checkpoint.vae_tiling:
        found.append('set "vae_tiling": true')
    if checkpoint.offload != "group":
        found.append('set "offload": "group"' if checkpoint.offload == "model" else 'set "offload": "model" or "group"')
    return found
