"""What an exception means for the task and for the process: a code, a text without input, and whether it is fatal."""

import traceback
from pathlib import Path
from typing import Final, Literal

import torch
from msgspec import Struct

from lane_worker.pipelines.inputs import BadInput
from lane_worker.pipelines.load import CheckpointUnusable
from lane_worker.pipelines.video import StorageFailed

# Allocation failures that arrive as another type (design §7).
NO_MEMORY: Final = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")
BROKEN_DEVICE: Final = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "cuDNN error", "device-side assert")


class Fault(Struct, frozen=True):
    """How a failure is reported. *fatal*: the process can no longer be trusted."""

    code: Literal["out_of_memory", "inference_failed", "invalid_input", "storage_failed"]
    message: str
    fatal: bool = False


def inference_fault(error: BaseException) -> Fault:
    """The fault of an inference. The message never repeats *error*'s own text, which may quote the prompt."""
    if isinstance(error, BadInput):
        return Fault("invalid_input", str(error))
    if isinstance(error, StorageFailed):
        return Fault("storage_failed", str(error))
    if _is_out_of_memory(error):
        return Fault("out_of_memory", "the device ran out of memory; ask for fewer frames or a smaller size")
    if isinstance(error, OSError):
        return Fault("storage_failed", f"a file could not be read: {error.strerror or type(error).__name__}")
    if _is_broken_device(error):
        return Fault("inference_failed", f"the device reported an error {_place(error)}", fatal=True)
    return Fault("inference_failed", f"the pipeline raised {type(error).__name__} {_place(error)}")


def load_fault(error: BaseException) -> Fault:
    """The fault of a load, which has no input to hide: the message says what *error* says."""
    text = f"{type(error).__name__}: {error}"[:500]
    if _is_out_of_memory(error):
        return Fault("out_of_memory", f"not enough memory to load the model: {text}")
    if isinstance(error, CheckpointUnusable):
        return Fault("storage_failed", str(error))
    if isinstance(error, OSError):
        return Fault("storage_failed", f"the checkpoint cannot be read: {text}")
    return Fault("inference_failed", f"the model cannot be loaded: {text}", fatal=_is_broken_device(error))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in NO_MEMORY)


def _is_broken_device(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in BROKEN_DEVICE)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
