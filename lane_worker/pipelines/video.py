"""Frames to MP4: H.264, yuv420p, playable from the first byte; the same frames give the same bytes everywhere."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace

from lane_worker.forking.host_messages import WrittenVideo

Frames = npt.NDArray[np.uint8]
"""Frames as (count, height, width, 3), RGB."""

# Both keep the bytes equal. x264 writes its settings into the stream, so "as many threads as there are cores" would
# make the bytes depend on the machine. mbtree reads memory that it never wrote when x264 uses AVX-512: 2 of 100
# encodings of the same frames came out different (measured; with mbtree=0 or asm=avx2, none of 1,500).
ENCODER_THREADS: Final = 1
ENCODER_OPTIONS: Final = {"preset": "fast", "crf": "18", "x264-params": "mbtree=0"}
BT709: Final = 1
LIMITED_RANGE: Final = 1


class VideoNotWritten(Exception):
    """The video could not be written: a full disk, a missing folder, no permission."""


def write_video(frames: Frames, path: Path, *, fps: int) -> WrittenVideo:
    """Encode *frames* to *path*, which appears complete or not at all (it is written beside it as `.part`).

    Width and height must be even. The folder of *path* is made where it is missing. Raises VideoNotWritten when the
    disk is at fault.
    """
    try:
        try:
            return _write(frames, path, fps=fps)
        except FileNotFoundError:  # somebody removed the folder: that must not cost an hour of inference
            path.parent.mkdir(parents=True, exist_ok=True)
            return _write(frames, path, fps=fps)
    except OSError as error:  # the disk errors of PyAV are OSErrors too
        # PyAV's error text holds the path, which says nothing to a client
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise VideoNotWritten(f"the video could not be written: {reason}") from error


def _write(frames: Frames, path: Path, *, fps: int) -> WrittenVideo:
    count, height, width, _ = frames.shape
    part = path.with_name(path.name + ".part")
    try:
        _encode(frames, part, fps=fps)
        digest = hashlib.sha256()
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        size_bytes = part.stat().st_size
        part.rename(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return WrittenVideo(bytes=size_bytes, sha256=digest.hexdigest(), width=width, height=height, frames=count, fps=fps)


def _encode(frames: Frames, path: Path, *, fps: int) -> None:
    _, height, width, _ = frames.shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context: Any = stream.codec_context
        context.thread_count = ENCODER_THREADS
        # written into the file, because players otherwise guess by the height and shift the colours
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
