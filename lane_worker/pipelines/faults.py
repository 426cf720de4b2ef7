"""What an exception means for the task and for the process: a code, a text without input, and whether it is fatal.

`TABLE` lists the texts and types by which torch, CUDA's libraries and Python report a failure, each row with its
source. A failure that no row names counts as the task's own; after several of those in a row the worker renews the host
(ADR 0026).
"""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from lane_worker.pipelines.inputs import BadInput
from lane_worker.pipelines.load import CheckpointUnusable
from lane_worker.pipelines.video import VideoNotWritten

Verdict = Literal["out_of_memory", "out_of_memory_and_fatal", "fatal", "harmless"]
"""*fatal*: the process can no longer be trusted, and is replaced. Memory that ran out in torch's own allocator, or in
Python, leaves the process as it was. Where it cut off a call into a library or the driver, the state is unknown."""


class FaultRow(Struct, frozen=True):
    """Exceptions whose class, or a base class of it, is named in *types*, and whose message has the pattern *text*."""

    name: str
    verdict: Verdict
    text: str
    source: str
    types: tuple[str, ...] = ("RuntimeError",)  # not every type: the message of a Python error may quote a prompt

    def is_of(self, error: BaseException) -> bool:
        """Whether *error* is one of these."""
        names = {each.__name__ for each in type(error).__mro__}
        return not names.isdisjoint(self.types) and re.search(self.text, str(error), re.DOTALL) is not None


# The first row that fits counts. "driver_types.h" is NVIDIA's, "Data types used by CUDA Runtime", of CUDA 13; torch's
# files are of 2.13. `tests/kit/fault_texts.py` has the texts in full, and `tests/e2e/test_faults.py` checks them
# against the libraries that are installed.
TABLE: Final = (
    # memory ran out
    FaultRow(
        "torch_allocator",
        "out_of_memory",
        "",
        "torch.OutOfMemoryError; it gave its cache back first",
        ("OutOfMemoryError",),
    ),
    FaultRow("torch_allocator_text", "out_of_memory", "^CUDA out of memory", "c10/cuda/CUDACachingAllocator.cpp"),
    FaultRow(
        "python", "out_of_memory", "", "Python's MemoryError; pybind11 makes one of std::bad_alloc", ("MemoryError",)
    ),
    FaultRow("bad_alloc", "out_of_memory", "std::bad_alloc", "torch/csrc/Exceptions.h: a std::exception by its what()"),
    FaultRow("cpu_allocator", "out_of_memory", "can't allocate memory", "c10/core/impl/alloc_cpu.cpp"),
    FaultRow("mmap", "out_of_memory", "unable to mmap", "aten/src/ATen/MapAllocator.cpp"),
    FaultRow(
        "enomem",
        "out_of_memory",
        "Cannot allocate memory",
        "errno 12, in Python and in safetensors",
        ("OSError", "SafetensorError"),
    ),
    FaultRow(
        "cuda_memory",
        "out_of_memory_and_fatal",
        "^CUDA error: out of memory",
        "driver_types.h: 2, cudaErrorMemoryAllocation",
    ),
    FaultRow(
        "cudart_memory",
        "out_of_memory_and_fatal",
        r"^out of memory \(2\)",
        "torch/cuda/__init__.py: CudaError",
        ("CudaError",),
    ),
    FaultRow(
        "driver_memory",
        "out_of_memory_and_fatal",
        "^CUDA driver error: out of memory",
        "c10/cuda/driver_api.h; pytorch/pytorch#188008: of expandable segments, and a part stays mapped",
    ),
    FaultRow(
        "nvml_assert",
        "out_of_memory_and_fatal",
        "^NVML_SUCCESS == .*INTERNAL ASSERT FAILED",
        "pytorch/pytorch#185240: raised where the allocator asks what is free",
    ),
    FaultRow(
        "triton_memory",
        "out_of_memory_and_fatal",
        r"^Triton Error \[CUDA\]: out of memory",
        "triton/backends/nvidia/driver.c",
    ),
    FaultRow(
        "cublas_memory",
        "out_of_memory_and_fatal",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "cuBLAS, cublasStatus_t: a failed cudaMalloc()",
    ),
    FaultRow(
        "cublas_create",
        "out_of_memory_and_fatal",
        "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
        'cuBLAS, cublasStatus_t: "an error in the CUDA Runtime API called by the cuBLAS routine"; on a full card',
    ),
    FaultRow(
        "cudnn_memory",
        "out_of_memory_and_fatal",
        "CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN 8, cudnnStatus_t; cudnn_graph.h has it as deprecated",
    ),
    FaultRow(
        "cudnn_9_memory",
        "out_of_memory_and_fatal",
        "CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED",
        "cudnn_graph.h",
    ),
    FaultRow("cufft_memory", "out_of_memory_and_fatal", "CUFFT_ALLOC_FAILED", "cuFFT, cufftResult"),
    FaultRow(
        "cusolver_memory", "out_of_memory_and_fatal", "CUSOLVER_STATUS_ALLOC_FAILED", "cuSOLVER, cusolverStatus_t"
    ),
    # refused before anything ran
    FaultRow(
        "launch_shape",
        "harmless",
        "^CUDA error: invalid configuration argument",
        "driver_types.h: 9, never to be launched",
    ),
    FaultRow(
        "launch_resources",
        "harmless",
        "^CUDA error: too many resources requested for launch",
        "driver_types.h: 701, not launched",
    ),
    FaultRow("cublas_refuses", "harmless", "CUBLAS_STATUS_NOT_SUPPORTED", "cuBLAS, cublasStatus_t"),
    FaultRow("cudnn_refuses", "harmless", "CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM)", "cudnn_graph.h"),
    FaultRow("nvrtc", "harmless", "^CUDA NVRTC error: ", "aten/src/ATen/cuda/Exceptions.h: a compiler, without a card"),
    FaultRow(
        "triton_refuses",
        "harmless",
        "",
        "triton/runtime/errors.py: a kernel too large for the card",
        ("OutOfResources",),
    ),
    # the process is lost
    FaultRow(
        "allocator_assert",
        "fatal",
        "INTERNAL ASSERT FAILED at .*/cuda/",
        'pytorch/pytorch#188008: "every allocation in the process fails with the same assert"',
    ),
    FaultRow(
        "accelerator",
        "fatal",
        "",
        'torch.AcceleratorError: driver_types.h, "the process must be terminated"',
        ("AcceleratorError",),
    ),
    FaultRow(
        "cuda",
        "fatal",
        "^CUDA error: ",
        "c10/cuda/CUDAException.cpp; cuBLAS and cuSPARSE in aten/src/ATen/cuda/Exceptions.h",
    ),
    FaultRow("cudart", "fatal", "", "torch/cuda/__init__.py: CudaError", ("CudaError",)),
    FaultRow("driver", "fatal", "^CUDA driver error: ", "c10/cuda/driver_api.h"),
    FaultRow("cudnn", "fatal", "^cuDNN (Frontend )?error: ", "aten/src/ATen/cuda/Exceptions.h"),
    FaultRow("cufft", "fatal", "^cuFFT error: ", "aten/src/ATen/native/cuda/CuFFTUtils.h"),
    FaultRow("cusolver", "fatal", "^cusolver error: ", "aten/src/ATen/cuda/Exceptions.h"),
    FaultRow("triton", "fatal", r"^Triton Error \[CUDA\]: ", "triton/backends/nvidia/driver.c"),
    FaultRow("device_assert", "fatal", "device-side assert", 'driver_types.h: 710, "The device cannot be used again"'),
    FaultRow(
        "no_card",
        "fatal",
        "^(No CUDA GPUs are available|Found no NVIDIA driver|CUDA driver initialization failed|CUDA unknown error"
        "|Unexpected error from cudaGetDeviceCount|Cannot re-initialize CUDA in forked)",
        "c10/cuda/CUDAFunctions.cpp, torch/cuda/__init__.py: torch answers a process for ever with what it once found",
    ),
)


class Fault(Struct, frozen=True):
    """How a failure is reported. *fatal*: the process can no longer be trusted."""

    code: Literal["out_of_memory", "inference_failed", "invalid_input", "storage_failed"]
    message: str
    fatal: bool = False


def inference_fault(error: BaseException) -> Fault:
    """The fault of an inference. The message never repeats *error*'s own text, which may quote the prompt."""
    if isinstance(error, BadInput):
        return Fault("invalid_input", str(error))
    if isinstance(error, VideoNotWritten):
        return Fault("storage_failed", str(error))
    row = row_of(error)
    fatal = row is not None and "fatal" in row.verdict
    if row is not None and row.verdict.startswith("out_of_memory"):
        return Fault("out_of_memory", "the device ran out of memory; ask for fewer frames or a smaller size", fatal)
    if row is not None and fatal:
        return Fault("inference_failed", f"the device reported an error ({row.name}) {_place(error)}", fatal)
    if isinstance(error, OSError):
        return Fault("storage_failed", f"a file could not be read: {error.strerror or type(error).__name__}")
    return Fault("inference_failed", f"the pipeline raised {type(error).__name__} {_place(error)}")


def load_fault(error: BaseException) -> Fault:
    """The fault of a load, which has no input to hide: the message says what *error* says."""
    text = f"{type(error).__name__}: {error}"[:500]
    row = row_of(error)
    fatal = row is not None and "fatal" in row.verdict
    if row is not None and row.verdict.startswith("out_of_memory"):
        return Fault("out_of_memory", f"not enough memory to load the model: {text}", fatal)
    if isinstance(error, CheckpointUnusable):
        return Fault("storage_failed", str(error))
    if isinstance(error, OSError) and not fatal:
        return Fault("storage_failed", f"the checkpoint cannot be read: {text}")
    return Fault("inference_failed", f"the model cannot be loaded: {text}", fatal)


def row_of(error: BaseException) -> FaultRow | None:
    """The row of `TABLE` for *error*, its cause, or the error that it was raised in; None where there is none."""
    errors = tuple(_chain(error))
    return next((row for row in TABLE if any(row.is_of(each) for each in errors)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
