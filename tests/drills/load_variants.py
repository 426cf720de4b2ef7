"""One way to load a transformer, in a process of its own.

`python -m tests.drills.load_variants VARIANT FOLDER DEVICE ROUNDS` prints a `Best`, as JSON. After each load it copies
the tensors one by one: to the card, or on a CPU to other memory, which stands in for the card. So the time to read
weights that are only mapped counts as well.
"""

import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

# The first one is how the product loads.
VARIANTS: Final = (
    "as it is",
    "device_map",
    "parallel",
    "parallel, device_map",
    "disable_mmap",
    "pread",
)
READ_BYTES: Final = 8 << 20
PARALLEL: Final = "HF_ENABLE_PARALLEL_LOADING"  # read when diffusers is imported; the number of threads is fixed at 8


class Took(Struct, frozen=True):
    """Seconds of `from_pretrained` (or of what replaces it), and of the copy."""

    read_s: float
    copy_s: float


class Best(Struct, frozen=True, kw_only=True):
    """The fastest round with the weights in the page cache, the fastest without, and the peak resident set size."""

    warm: Took
    cold: Took
    peak_bytes: int


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def throw_out(folder: Path) -> None:
    """Drops *folder*'s weights from the page cache. What a process has mapped stays there."""
    for path in weights_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(folder: Path) -> float:
    """Bytes a second, read in sequence into one buffer, and not processed."""
    buffer, total_bytes = bytearray(READ_BYTES), 0
    begun_s = time.perf_counter()
    for path in weights_of(folder):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total_bytes += count
    return total_bytes / (time.perf_counter() - begun_s)


def load(variant: str, folder: Path, device: str) -> Any:
    """The transformer in *folder*, as bfloat16. For `pread` it is the tensors alone: diffusers has no option for it."""
    import diffusers
    import torch

    if variant == "pread":
        from safetensors.torch import load_file

        files = sorted(folder.glob("*.safetensors"))
        return {name: each for file in files for name, each in load_file(file, backend="pread").items()}
    options: dict[str, Any] = {}
    if "device_map" in variant:
        options["device_map"] = device
    if variant == "disable_mmap":
        options["disable_mmap"] = True
    return diffusers.WanTransformer3DModel.from_pretrained(
        folder, local_files_only=True, torch_dtype=torch.bfloat16, **options
    )


def copy(loaded: Any, device: str) -> None:
    """Copies every tensor to *device*, one after the other, as `Module.to` does."""
    import torch

    tensors = loaded.values() if isinstance(loaded, dict) else [*loaded.parameters(), *loaded.buffers()]
    with torch.no_grad():
        for tensor in tensors:
            if device == "cpu":
                tensor.detach().clone()
            else:
                tensor.data = tensor.to(device)
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    variant, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if variant.startswith("parallel"):
        os.environ[PARALLEL] = "1"
    import diffusers
    import torch
    from diffusers import WanTransformer3DModel  # noqa: F401  # imported lazily otherwise, within the time

    torch.set_num_threads(1)  # as the pipeline host
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    if device != "cpu":
        torch.ones(1, device=device)
    best = {
        prepare: min((_round(prepare, variant, folder, device) for _ in range(int(sys.argv[4]))), key=sum_s)
        for prepare in (throw_out, read_rate)
    }
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(msgspec.json.encode(Best(warm=best[read_rate], cold=best[throw_out], peak_bytes=peak_bytes)).decode())


def _round(prepare: Callable[[Path], object], variant: str, folder: Path, device: str) -> Took:
    gc.collect()  # frees what the last round loaded: mapped pages cannot be dropped from the cache
    prepare(folder)
    begun_s = time.perf_counter()
    loaded = load(variant, folder, device)
    read_s = time.perf_counter() - begun_s
    copy(loaded, device)
    return Took(read_s, time.perf_counter() - begun_s - read_s)


def sum_s(took: Took) -> float:
    return took.read_s + took.copy_s


if __name__ == "__main__":
    main()
