"""One shard: its tensors read and converted one after the other, and written so that it is whole or not there."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from lane_worker.checkpoints.folder import PART, PreparedFile, sha256_of
from lane_worker.checkpoints.found import CheckpointRefused, Tensor
from lane_worker.checkpoints.plan import Shard
from lane_worker.pipelines.preparing.torch_files import read_torch
from lane_worker.pipelines.preparing.work_folder import STATE, sync, sync_folder

DTYPES: Final = {"BF16": torch.bfloat16, "F32": torch.float32}
# How safetensors reports a failure of the disk.
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def write_shard(part: Path, shard: Shard) -> PreparedFile:
    """Writes *shard* into the work folder *part*. Raises CheckpointRefused, OSError."""
    path = part / shard.path
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_name(path.name + PART)
    values = _values(shard)
    with _disk_errors(arriving):
        safetensors.torch.save_file(values, arriving, metadata={"format": "pt"})
    # safetensors made it as a temporary file, which nobody but its owner may read
    shutil.copymode(part / STATE, arriving)
    file = PreparedFile(shard.path, arriving.stat().st_size, sha256_of(arriving))
    sync(arriving)
    os.replace(arriving, path)
    sync_folder(path.parent)
    return file


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raises OSError for a failure of the disk at *path* that safetensors reports as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _values(shard: Shard) -> dict[str, torch.Tensor]:
    """The tensors of one shard, read and converted one after the other."""
    values: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as opened:
        files: dict[str, Callable[[str], torch.Tensor]] = {}
        for move in shard.moves:
            path = move.tensor.file
            if path not in files:
                files[path] = _reader(Path(path), opened)
            with _disk_errors(Path(path)):
                value = files[path](move.tensor.name)
                if move.scale is not None:
                    value = value.to(torch.float32) * _scale(files[path](move.scale.name), move.scale)
            # a copy in any case: neither the mapping nor a larger storage is held on to
            values[move.parameter] = value.to(DTYPES[move.dtype], copy=True).contiguous()
    return values


def _scale(value: torch.Tensor, scale: Tensor) -> torch.Tensor:
    """What a weight is multiplied by: the published rule, in float32 (ADR 0028). `scaled` has checked its shape."""
    if not torch.isfinite(value).all():
        raise CheckpointRefused(
            f"{scale.file} has a scale that is not a finite number: {scale.name}; download it again"
        )
    return value.to(torch.float32) if value.numel() > 1 else value.to(torch.float32).reshape(())


def _reader(path: Path, opened: contextlib.ExitStack) -> Callable[[str], torch.Tensor]:
    if path.suffix == ".pth":
        return read_torch(path).__getitem__
    # read, not mapped: the pages of a mapping would count as memory of this process until it is closed
    file = opened.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
    read: Callable[[str], torch.Tensor] = file.get_tensor
    return read
