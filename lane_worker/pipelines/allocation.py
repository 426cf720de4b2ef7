"""Whether torch runs with the allocator that it was asked to run with (FR-010): torch itself is asked."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from lane_worker.forking.allocator import NAMES, WANTED, AllocatorMisconfigured


def check_allocator(device: str) -> None:
    """FR-010, read back from torch. Its CPU build ignores a name that it does not know, its CUDA build refuses it, and
    both take what they are given later on.

    Raises AllocatorMisconfigured. On a CPU it is asked for the text alone that it took.
    """
    try:
        taken = str(torch._C._accelerator_getAllocatorSettings())
    except ValueError as error:  # the text is parsed when it is asked for first
        setting = f"{NAMES[0]}={os.environ.get(NAMES[0])}"
        raise AllocatorMisconfigured(
            f"torch does not understand {setting}: {str(error).rstrip('.')}. Warmlane needs {WANTED} there"
        ) from error
    if WANTED not in taken.replace(" ", ""):
        raise AllocatorMisconfigured(f"torch runs with the allocator setting {taken!r}, without {WANTED}")
    if device == "cuda":
        require_expandable(torch.cuda.memory._snapshot().get("allocator_settings", {}))


def require_expandable(settings: Mapping[str, Any]) -> None:
    """Raises AllocatorMisconfigured where the CUDA allocator says, in a snapshot's *settings*, that they are off."""
    if settings.get("expandable_segments") is False:
        raise AllocatorMisconfigured(
            f"expandable segments are off although {WANTED} was asked for: this driver or platform has none"
        )
