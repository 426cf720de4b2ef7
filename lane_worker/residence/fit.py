"""Whether a slot can serve a model with the options of its checkpoint: checked before anything is loaded.

The arithmetic is in `contracts/fit.py`; here it is applied to the folder, the packages and the memory of this machine.
"""

import importlib.util
import os
from pathlib import Path
from typing import Final, Literal

import psutil
from msgspec import Struct

from contracts import fit
from contracts.checkpoints import Checkpoint
from contracts.settings import ModelEntry
from lane_worker.residence.kernels import BACKENDS, BuildPlace, cannot_build
from ops.machine.host_memory import available_bytes, total_bytes
from ops.machine.readings import Reading
from ops.machine.weights import MODEL_INDEX, WeightsUnreadable, missing_folder, weights_of

# The package that an attention backend of diffusers needs beside torch. diffusers checks its version at the load.
PACKAGES: Final = {
    "flash": "flash_attn",
    "flash_varlen": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "_flash_varlen_3": "flash_attn_interface",
    "sage": "sageattention",
    "sage_varlen": "sageattention",
    "_sage_qk_int8_pv_fp8_cuda": "sageattention",
    "_sage_qk_int8_pv_fp8_cuda_sm90": "sageattention",
    "_sage_qk_int8_pv_fp16_cuda": "sageattention",
    "_sage_qk_int8_pv_fp16_triton": "sageattention",
    "xformers": "xformers",
}


class LoadRefusal(Struct, frozen=True):
    """Why a model is not loaded, for the operator, under the code that its tasks end with."""

    code: Literal["out_of_memory", "storage_failed"]
    message: str


class SlotDemand(Struct, frozen=True):
    """What loading *checkpoint* asks of a slot. *components* is None where the folder is not there, or unreadable."""

    model: str
    checkpoint: Checkpoint
    folder: Path
    need: fit.Need
    components: fit.Components | None

    @classmethod
    def of(cls, entry: ModelEntry, models_dir: Path, *, slot: str, unified: bool = False) -> "SlotDemand":
        """Reads the headers of the folder's files. Raises nothing: the load reports what is wrong with them.

        *unified*: the slot's card has no memory of its own, and shares the host's.
        """
        folder = models_dir / entry.checkpoint.folder
        try:
            components = weights_of(folder)
        except WeightsUnreadable:
            components = None
        on_card = not slot.startswith("cpu-")
        need = fit.need(components, entry.checkpoint, on_card=on_card)
        return cls(entry.name, entry.checkpoint, folder, fit.pooled(need) if unified else need, components)

    def refusal(self, reading: Reading | None) -> LoadRefusal | None:
        """A refusal that no waiting would change, or None; *reading* is the slot's memory, None where it cannot be
        read.

        1. There is no folder, and no recipe to make one.
        2. The attention backend's package is not installed, or its kernels cannot be built here.
        3. The slot is too small, even when all of it is free.
        4. The host is too small for the weights that are not on the card, even when nothing else uses it.
        """
        if self.checkpoint.random_weights is None and not (self.folder / MODEL_INDEX).is_file():  # 1
            return LoadRefusal("storage_failed", missing_folder(self.model, self.folder))
        objection = _backend_objection(self.checkpoint.attention_backend)
        if objection is not None:  # 2
            instead = f"or set checkpoint.attention_backend of {self.model} to native"
            return LoadRefusal("storage_failed", f"{objection}, {instead}")
        if reading is None:
            return None
        text = fit.never_fits(  # 3
            self.need,
            self.components,
            self.checkpoint,
            room_bytes=reading.used_bytes + reading.free_bytes,
            free_bytes=reading.free_bytes,
        )
        text = text or self._host_never_holds()  # 4
        return None if text is None else LoadRefusal("out_of_memory", f"{self.model} does not fit: {text}")

    def _host_never_holds(self) -> str | None:
        try:
            return fit.host_never_holds(self.need, total_bytes=total_bytes())
        except (OSError, ValueError, psutil.Error):  # another kernel's wording
            return None

    def host_refusal(self) -> LoadRefusal | None:
        """A refusal where the host cannot take its part now, when nothing is resident: for a slot with a card."""
        if not self.need.on_card:
            return None  # the slot's own memory, which is proven to be there
        try:
            free_bytes = available_bytes()
        except (OSError, ValueError, KeyError, psutil.Error):  # another kernel's wording
            return None
        text = fit.host_shortage(self.need, free_bytes=free_bytes)
        return None if text is None else LoadRefusal("out_of_memory", f"{self.model} is not loaded: {text}")


def _backend_objection(backend: str) -> str | None:
    package = PACKAGES.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the attention backend {backend} needs the package {package}, which is not installed: install it"
    if backend not in BACKENDS:
        return None
    why_not = cannot_build(BuildPlace.of(os.environ))
    return (
        why_not and f"the attention backend {backend} has Triton build its kernels, which it cannot do here: {why_not}"
    )
