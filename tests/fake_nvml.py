"""An NVML without a card: `fake_nvml.c`, compiled, in the place of the driver's library."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pynvml
import pytest

UUID: Final = "GPU-fake-1"
SOURCE: Final = Path(__file__).with_name("fake_nvml.c")
GIB: Final = 1 << 30


class FakeNvml:
    """The card's figures. What is set holds from the next call of the library on."""

    def __init__(self, figures: Path) -> None:
        self._figures = figures
        self.set(used_bytes=GIB)

    def set(self, **figures: int) -> None:
        """Any of: used_bytes, free to fall by fall_bytes with every read down to least_bytes; reserved_bytes,
        total_bytes; and init_error, read_error, v2_error, codes of NVML."""
        lines = [f"{name} {value}\n" for name, value in ({"total_bytes": 80 * GIB} | figures).items()]
        part = self._figures.with_suffix(".part")
        part.write_text("".join(lines))
        part.rename(self._figures)  # never read half-written


def compile_fake_nvml(folder: Path) -> Path:
    """The compiled library. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang): the fake NVML cannot be built")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    return library


@contextmanager
def fake_nvml(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """While the block runs, pynvml in this process talks to the fake library."""
    library = compile_fake_nvml(folder)
    monkeypatch.setenv("FAKE_NVML", str(folder / "nvml"))
    cards = FakeNvml(folder / "nvml")
    with monkeypatch.context() as patch:
        patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        yield cards
