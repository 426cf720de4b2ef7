"""Which tensors lie in a diffusers folder, by the headers of its safetensors files. Reads no tensor, needs no torch.

It reads the headers without the package `safetensors`: `warmlane doctor` also counts weights where only the gateway is
installed, and that installation does not have the package.
"""

import math
import struct
from pathlib import Path
from typing import Any, Final

from contracts.fit import Components, StoredTensor
from contracts.nesting import loads

MODEL_INDEX: Final = "model_index.json"
# As diffusers and transformers name them, without a variant.
STEMS: Final = ("diffusion_pytorch_model.safetensors", "model.safetensors")
HEADER_MAX_BYTES: Final = 100_000_000
# The floating-point types of safetensors, by torch's names; others keep their own.
NAMES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn"}


class WeightsUnreadable(Exception):
    """The headers of the folder's files cannot be read. The text names the file."""


def weights_of(folder: Path) -> Components | None:
    """The tensors of each component of the diffusers folder *folder*; None where there is no such folder.

    Raises WeightsUnreadable.
    """
    path = folder / MODEL_INDEX
    try:
        index = loads(path.read_bytes())
        named = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise WeightsUnreadable(f"{path} cannot be read: {error}") from error
    found = {name: files for name in named if (files := _files(folder / name))}
    return {name: tuple(tensor for file in files for tensor in _tensors(file)) for name, files in found.items()}


def missing_folder(model: str, folder: Path) -> str:
    """Where the converted checkpoint of *model* belongs, and the command that makes it."""
    return (
        f"no diffusers folder at {folder}: make it from the published files with "
        f"`warmlane models prepare {model} --from PATH --to {folder}`"
    )


def _files(folder: Path) -> tuple[Path, ...]:
    """The files with the weights of one component; none for a scheduler or a tokenizer."""
    for stem in STEMS:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            try:
                return tuple(folder / Path(name).name for name in sorted(set(_map(index).values())))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise WeightsUnreadable(f"{index} cannot be read: {error!r}") from error
        if (folder / stem).is_file():
            return (folder / stem,)
    return ()


def _map(index: Path) -> dict[str, str]:
    places: dict[str, str] = loads(index.read_bytes())["weight_map"]
    return places


def _tensors(path: Path) -> tuple[StoredTensor, ...]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER_MAX_BYTES:
                raise ValueError(f"its header claims {length:,} bytes")
            header: dict[str, Any] = loads(file.read(length))
        header.pop("__metadata__", None)
        return tuple(
            StoredTensor(name, NAMES.get(stored["dtype"], stored["dtype"]), math.prod(stored["shape"]))
            for name, stored in header.items()
        )
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsUnreadable(f"{path} is truncated or not a safetensors file: {error!r}") from error
