"""An NVML without a card: `fake_nvml.c`, compiled, in the place of the driver's library."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pynvml
import pytest

UUID: Final = "GPU-fake-1"
SOURCE: Final = Path(__file__).with_name("fake_nvml.c")
GIB: Final = 1 << 30


class FakeNvml:
    """The figures of the cards, GPU-fake-1 and so on. A figure that is set counts from the next call of the library."""

    def __init__(self, figures: Path) -> None:
        self._figures = figures
        self.set(used_bytes=GIB)

    def set(self, devices: Mapping[str, Mapping[str, int]] | None = None, /, **figures: int) -> None:
        """Any of: used_bytes, which falls by fall_bytes with every read after the first, down to least_bytes;
        reserved_bytes, total_bytes; processes, process_0, process_0_bytes and so on; the NVML error codes init_error,
        read_error, v2_error, mig_error, processes_error; first_fail, the number of first inits that fail with
        first_error; hangs: as long as it is set, the driver does not answer; cards; mig, 1 for a card in MIG mode, and
        instances, the set of its instances as bits (MIG-fake-1-0, the first one of the first card, is 1).

        *devices*: figures of single devices, by UUID, which replace those for all devices.
        """
        lines = [f"{name} {value}\n" for name, value in ({"total_bytes": 80 * GIB} | figures).items()]
        for uuid, its in (devices or {}).items():
            lines += [f"{uuid}.{name} {value}\n" for name, value in its.items()]
        part = self._figures.with_suffix(".part")
        part.write_text("".join(lines))
        part.rename(self._figures)  # never read half-written


def compile_fake_nvml(folder: Path, *, old: bool = False) -> Path:
    """The compiled library; that of an *old* driver lacks the newer functions. Skips the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang): the fake NVML cannot be built")
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", *(["-DWITHOUT_NEW"] if old else [])]
    subprocess.run([compiler, *flags, "-o", library, SOURCE], check=True)
    return library


@contextmanager
def fake_nvml(folder: Path, monkeypatch: pytest.MonkeyPatch, *, old: bool = False) -> Iterator[FakeNvml]:
    """While the block runs, pynvml in this process calls the fake library; *old*: that of an old driver."""
    library = compile_fake_nvml(folder, old=old)
    monkeypatch.setenv("FAKE_NVML", str(folder / "nvml"))
    cards = FakeNvml(folder / "nvml")
    with monkeypatch.context() as patch:
        patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        yield cards
