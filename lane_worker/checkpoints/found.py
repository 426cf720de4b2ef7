"""What lies on the disk: the tensors that published files name in their headers. Reads no weight, needs no torch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from safetensors import SafetensorError, safe_open

from contracts.nesting import loads

INDEX: Final = ".safetensors.index.json"
# Where ComfyUI records how the weight of a layer is packed: in the file's metadata, or in a tensor beside the weight.
# https://github.com/comfyanonymous/ComfyUI/blob/7f75cc2bc260f954677d3d1ddcab94f7f63d1738/QUANTIZATION.md
QUANTIZED: Final = "_quantization_metadata"
QUANTIZED_LAYER: Final = ".comfy_quant"

Shape = tuple[int, ...]


class CheckpointRefused(Exception):
    """These files cannot be prepared, or this folder cannot be used. The text is one line: what is wrong, where, and
    what to do."""


class Tensor(Struct, frozen=True):
    """A tensor of a published file, by its header: *dtype* as safetensors writes it (`BF16`, `F8_E4M3`).

    *packing*: how it is packed, as ComfyUI writes that; None where the file does not say.
    """

    name: str
    dtype: str
    shape: Shape
    file: str
    packing: str | None = None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name. Raises CheckpointRefused for a truncated or foreign file."""
    try:
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                raise CheckpointRefused(
                    f"{path} is a GGUF file, packed for llama.cpp; take the safetensors file instead"
                )
        with safe_open(path, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
            packings = _packings(opened, slices, path)
            return {
                name: Tensor(name, part.get_dtype(), tuple(part.get_shape()), str(path), packings.get(name))
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise CheckpointRefused(
            f"{path} is truncated or not a safetensors file ({error}); compare its size with the published one, and "
            "download it again"
        ) from error
    except OSError as error:
        raise CheckpointRefused(f"{path} cannot be read: {error.strerror or error}") from error


def _packings(opened: Any, names: Collection[str], path: Path) -> dict[str, str]:
    """How weights are packed, by their names, where the file records that. Reads only those few bytes of it."""
    try:
        layers = loads((opened.metadata() or {}).get(QUANTIZED, "{}").encode()).get("layers", {})
        for name in names:
            if name.endswith(QUANTIZED_LAYER):
                layers[name.removesuffix(QUANTIZED_LAYER)] = loads(opened.get_tensor(name).tobytes())
        packings = {f"{layer}.weight": str(words["format"]) for layer, words in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(
            f"{path} says how its weights are packed, but in a form that cannot be read ({error!r}); take another build"
        ) from error
    absent = sorted(packings.keys() - set(names))
    if absent:
        raise CheckpointRefused(
            f"{path} says how {some(absent)} are packed, but does not hold them; take another build"
        )
    return packings


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder with one safetensors file, or several and an index. Raises CheckpointRefused."""
    if not folder.is_dir():
        raise CheckpointRefused(f"{folder} is missing; give --from the folder that holds the published files")
    indexes = sorted(folder.glob(f"*{INDEX}"))
    if len(indexes) == 1:
        return _read_indexed(indexes[0])
    files = sorted(folder.glob("*.safetensors"))
    if indexes or len(files) != 1:
        found = f"{len(files)} safetensors files and {len(indexes)} indexes"
        raise CheckpointRefused(
            f"{folder} holds {found}; expected: one *{INDEX} and the files it names, or one file; download the rest"
        )
    return read_safetensors(files[0])


def _read_indexed(index: Path) -> dict[str, Tensor]:
    try:
        places: Mapping[str, str] = loads(index.read_bytes())["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(f"{index} cannot be read ({error!r}); download it again") from error
    if any(Path(name).name != name for name in files):
        raise CheckpointRefused(f"{index} names files outside its folder; it is not the published one")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointRefused(f"{index.parent} lacks {some(missing)}, which {index.name} names; download the rest")
    found: dict[str, Tensor] = {}
    for name in files:
        found.update(read_safetensors(index.parent / name))
    lost = sorted(name for name, file in places.items() if name not in found or Path(found[name].file).name != file)
    if lost:
        raise CheckpointRefused(
            f"{index.parent}: {some(lost)} are not where {index.name} says; download the files again"
        )
    return found


def some(names: list[str], count: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
