"""Holds memory of a card, so that no more than LEAVE bytes are free (`python -m tests.gpu.filler UUID LEAVE`).

Prints how much it holds and what is free then, as JSON, and keeps it until its standard input ends.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

import msgspec

PIECE_BYTES: Final = 64 << 20


class CardTooFull(Exception):
    """Less memory was free from the start than the filler is to leave."""


def fill(free_bytes: Callable[[], int], take: Callable[[int], object], *, leave_bytes: int) -> list[object]:
    """Takes pieces until at most *leave_bytes* are free, and no more than one piece less. Returns what *take* returned
    for each piece, which the caller has to keep. Raises CardTooFull."""
    kept: list[object] = []
    if free_bytes() < leave_bytes:
        raise CardTooFull(f"{free_bytes()} bytes are free, and {leave_bytes} are to be left: end what holds the card")
    while (too_much := free_bytes() - leave_bytes) > 0:
        kept.append(take(min(PIECE_BYTES, too_much)))
    return kept


def main() -> None:
    slot, leave_bytes = sys.argv[1], int(sys.argv[2])
    os.environ["CUDA_VISIBLE_DEVICES"] = slot
    import torch

    from ops.machine.memory import probe_for

    probe = probe_for(slot)
    assert probe is not None

    def free_bytes() -> int:
        reading = probe.read(None)
        assert reading is not None
        return reading.free_bytes

    torch.empty(1, device="cuda")  # makes the context before the first reading
    kept = fill(free_bytes, lambda size: torch.empty(size, dtype=torch.uint8, device="cuda"), leave_bytes=leave_bytes)
    print(msgspec.json.encode({"pieces": len(kept), "free_bytes": free_bytes()}).decode(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
