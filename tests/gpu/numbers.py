"""What the scenarios measured, and `docs/models/gpu.md`, which keeps it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

HEAD: Final = """# On a card

`make gpu-test` plays the scenarios of `tests/gpu/test_card.py` on the first NVIDIA card of a machine: random-weight
Wan pipelines of several GB, with layers as wide as those of the real models, made on the spot. It needs a driver, a
torch that is built with CUDA, 20 GB of disk and a card of 24 GiB. `make gpu-test GPU_ARGS='--write docs/models/gpu.md'`
also writes this page, with the card's name. `make test` plays the same scenarios on a CPU, with pipelines of
several hundred MB, whose release is read from resident memory in the place of NVML.

What each shows, beside the numbers:

- An empty pipeline host has a context, which counts as no leak; what a release leaves beyond it is measured.
- A second request starts without a load: no receipt, the same host, and one `swap` in all of a lane's log.
- Models alternate in the degraded worker. On a card another process holds all of it but 1.2 times the larger
  pipeline and an empty host's context, so that two never fit, and a single out-of-memory error fails the test, even
  if a second try recovered from it. On a CPU, where nothing fills the memory, the peak of the host shows that there
  never were two.
- A host that keeps one component is found by its weak reference, one that holds memory outside of torch by the
  probe. Both are killed, and the next model runs.
- `kill -9` of a host gives everything back.
"""
NO_CARD: Final = """\
**No card was available so far.** The numbers here are those of the rehearsal on a CPU. The code is the same, but some
things exist only on a card and were not seen: NVML's figures, the copy to the device, the process that fills the
card, memory that is allocated outside torch, and CUDA's own words for out of memory.
"""


class Figure(Struct, frozen=True):
    """One line: what was measured, and its value as text."""

    what: str
    value: str


class Numbers:
    """Collects figures by device, in the order in which they came."""

    def __init__(self) -> None:
        self._figures: dict[str, list[Figure]] = {}
        self._cards: set[str] = set()

    def add(self, device: str, what: str, value: str, *, is_card: bool) -> None:
        self._figures.setdefault(device, []).append(Figure(what, value))
        if is_card:
            self._cards.add(device)

    def write(self, path: Path) -> None:
        """Writes the page with this run's figures. Without figures the page stays as it is."""
        if self._figures:
            path.write_text(page(self._figures, has_card=bool(self._cards)), encoding="utf-8")


def page(figures: Mapping[str, Iterable[Figure]], *, has_card: bool) -> str:
    """The whole of `docs/models/gpu.md`. If no card was used, the page says so first."""
    tables = [
        f"## {device}\n\n| what | measured |\n|---|---|\n"
        + "".join(f"| {figure.what} | {figure.value} |\n" for figure in found)
        for device, found in figures.items()
    ]
    title, _, rest = HEAD.partition("\n\n")
    return "\n".join([f"{title}\n", *([] if has_card else [NO_CARD]), rest, *tables])
