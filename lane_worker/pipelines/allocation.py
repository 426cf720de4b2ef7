"""Asks torch itself whether it runs with the allocator that Warmlane set (FR-010)."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from lane_worker.forking.allocator import NAMES, WANTED, AllocatorMisconfigured


def check_allocator(device: str) -> None:
    """Reads the setting back from torch (FR-010). The environment alone proves nothing: torch's CPU build ignores a
    name that it does not know, its CUDA build refuses it, and both let a later call change the setting.

    On a CPU only the text that torch took is read. Raises AllocatorMisconfigured.
    """
    try:
        taken = str(torch._C._accelerator_getAllocatorSettings())
    except ValueError as error:  # torch parses the text when it is first asked for
        setting = f"{NAMES[0]}={os.environ.get(NAMES[0])}"
        raise AllocatorMisconfigured(
            f"torch does not understand {setting}: {str(error).rstrip('.')}. Warmlane needs {WANTED} there"
        ) from error
    if WANTED not in taken.replace(" ", ""):
        raise AllocatorMisconfigured(f"torch runs with the allocator setting {taken!r}, without {WANTED}")
    if device == "cuda":
        require_expandable(torch.cuda.memory._snapshot().get("allocator_settings", {}))


def require_expandable(settings: Mapping[str, Any]) -> None:
    """Raises AllocatorMisconfigured where the CUDA allocator says, in a snapshot's *settings*, that expandable
    segments are off."""
    if settings.get("expandable_segments") is False:
        raise AllocatorMisconfigured(
            f"expandable segments are off although {WANTED} was asked for: this driver or platform has none"
        )
