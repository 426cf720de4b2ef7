"""Published files in torch's own format."""

import pickle
import zipfile
from pathlib import Path
from typing import Final

import torch

from lane_worker.checkpoints.found import CheckpointRefused, Tensor

NAMES: Final = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# torch's old format cannot be mapped; the published files that may have it are smaller.
LEGACY_BYTES: Final = 2_000_000_000


def headers_of_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, by name. Raises CheckpointRefused."""
    # a type that cannot be written keeps torch's name, by which `matched` refuses it
    return {
        name: Tensor(name, NAMES.get(value.dtype, str(value.dtype)), tuple(value.shape), str(path))
        for name, value in read_torch(path).items()
    }


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch file, mapped and not read. Runs no code from the file. Raises CheckpointRefused."""
    mapped = zipfile.is_zipfile(path)
    if not mapped and path.stat().st_size > LEGACY_BYTES:
        raise CheckpointRefused(f"{path} is truncated, or in torch's format of before 1.6; download it again")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointRefused(
            f"{path} is truncated, or holds more than tensors ({first_line(error)}); compare its size with the "
            "published one, and download it again"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise CheckpointRefused(f"{path} is not a plain set of named tensors; take the published file")
    return values


def first_line(error: Exception) -> str:
    """The first line of the text of *error*; its type where there is no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
