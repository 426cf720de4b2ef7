"""How much memory was in use after a task, and the proof that a slot was empty before a model was loaded."""

from typing import Literal

from msgspec import Struct


class MemoryReading(Struct, frozen=True, kw_only=True, gc=False):
    """Memory of the host child after cleanup (FR-009), in bytes. A figure that the machine does not report is None.

    The peaks, *cuda_alloc_retries* (allocations that torch tried again after it freed its cache) and *cuda_ooms*
    (allocations that failed) cover only the load or inference that the cleanup followed. *cuda_…* is what torch reports
    of its own process. *device_…* is what NVML reports of the whole card; the worker reads it, and it is None on a CPU.
    """

    rss_bytes: int
    cuda_allocated_bytes: int | None = None
    cuda_reserved_bytes: int | None = None
    cuda_peak_allocated_bytes: int | None = None
    cleanup_s: float = 0.0
    rss_peak_bytes: int | None = None
    cuda_peak_reserved_bytes: int | None = None
    cuda_inactive_split_bytes: int | None = None
    cuda_alloc_retries: int | None = None
    cuda_ooms: int | None = None
    device_used_bytes: int | None = None
    device_free_bytes: int | None = None


class SwapReceipt(Struct, frozen=True, kw_only=True, gc=False):
    """Proof that the slot was empty before *loaded_model* was loaded (FR-001..003, design §7).

    *how*: `nothing_resident` (the host held no pipeline), `unloaded` (it gave its pipeline back), `killed` (it had to
    be killed, for *reason*). *alive* names the components that the host could not free. The byte figures are the
    *probe*'s: device memory in use (`nvml`), the system's memory in use if host and card share one memory (`unified`),
    or the resident set size of the host's processes (`rss`); None if the probe had no figure. *own_…* is what the
    driver reports of the host's process alone; None if it does not list processes.
    Released means two samples in a row with *free_bytes* ≥ *needed_bytes*, and the condition of *proof*. `base`:
    *after_bytes* ≤ *base_bytes* + *tolerance_bytes*. `own_figure`: *own_bytes* ≤ *own_base_bytes* + *tolerance_bytes*.
    `no_pipeline`: the host had ended, or was never asked to load, so memory in use beyond the base belongs to another
    process. Empty: nothing was proven, or the record is of a version that knew `base` alone.

    All times are seconds. *load_s* includes *read_s* (files to host tensors) and *copy_s* (host to device, 0 on a CPU).
    Weights are mapped files: pages that are not in the page cache yet are read by the copy or by the first step,
    whichever touches them first. *first_step_s* comes after the swap: the first step of the task that needed it, and
    whatever the pipeline does before that step. None: not measured, or the record is of a version that did not measure
    it.
    """

    slot: str
    released_model: str | None
    loaded_model: str
    how: Literal["nothing_resident", "unloaded", "killed"]
    probe: Literal["nvml", "unified", "rss", "none"]
    proof: Literal["", "base", "own_figure", "no_pipeline"] = ""
    reason: str = ""
    alive: tuple[str, ...] = ()
    base_bytes: int | None = None
    before_bytes: int | None = None
    after_bytes: int | None = None
    tolerance_bytes: int | None = None
    own_base_bytes: int | None = None
    own_bytes: int | None = None
    free_bytes: int | None = None
    needed_bytes: int = 0
    samples: int = 0
    release_s: float = 0.0
    verify_s: float = 0.0
    load_s: float = 0.0
    read_s: float | None = None
    copy_s: float | None = None
    first_step_s: float | None = None

    @property
    def allowed_bytes(self) -> int | None:
        """How much may be in use after the release; None where nothing could be measured."""
        if self.base_bytes is None or self.tolerance_bytes is None:
            return None
        return self.base_bytes + self.tolerance_bytes

    @property
    def excess_bytes(self) -> int | None:
        """How much more was in use than the proof of the release allows; None where nothing could be measured."""
        if self.proof == "no_pipeline":
            return 0
        if self.proof == "own_figure" and self.own_bytes is not None and self.tolerance_bytes is not None:
            return self.own_bytes - (self.own_base_bytes or 0) - self.tolerance_bytes
        if self.after_bytes is None or self.allowed_bytes is None:
            return None
        return self.after_bytes - self.allowed_bytes
