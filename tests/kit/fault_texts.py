"""Failures as torch, CUDA's libraries and Python report them, and how the product has to classify each of them.

The texts are those of torch 2.13 with CUDA 13, with the lines that torch adds. `lane_worker.pipelines.faults.TABLE`
names their sources. `tests/kit/rogue_host.py` raises them in a real pipeline host.
"""

import errno
from collections.abc import Callable
from typing import Final, Literal

import torch
from msgspec import Struct

HELP: Final = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
CREATE: Final = "when calling `cublasCreate(handle)`"
GEMM: Final = "when calling `cublasGemmEx(handle, opa, opb, m, n, k, falpha, a, CUDA_R_16BF, lda, b, CUDA_R_16BF, ldb)`"


class CudaError(RuntimeError):
    """Stands for `torch.cuda.CudaError`, which needs CUDA's runtime for its text."""


class OutOfResources(Exception):
    """Stands for `triton.runtime.errors.OutOfResources`, which CPU builds do not have."""


class Sample(Struct, frozen=True):
    """*row* is the name of the failure's row in the table; None: it has no row."""

    row: str | None
    make: Callable[[], BaseException]
    code: Literal["out_of_memory", "inference_failed"]
    fatal: bool


def _oom(row: str, make: Callable[[], BaseException], *, fatal: bool) -> Sample:
    return Sample(row, make, "out_of_memory", fatal)


def _failed(row: str | None, make: Callable[[], BaseException], *, fatal: bool) -> Sample:
    return Sample(row, make, "inference_failed", fatal)


def _cuda(text: str) -> Callable[[], BaseException]:
    return lambda: torch.AcceleratorError(f"CUDA error: {text}{HELP}")


def _torch(text: str) -> Callable[[], BaseException]:
    return lambda: RuntimeError(text)


def _assert(what: str, file: str, line: int) -> Callable[[], BaseException]:
    at = f'INTERNAL ASSERT FAILED at "/__w/pytorch/pytorch/{file}":{line}, please report a bug to PyTorch. '
    return _torch(f"{what} {at}")


def _while_handling() -> BaseException:
    error = ValueError("cannot convert the output")
    error.__context__ = torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered{HELP}")
    return error


ALLOCATOR: Final = "c10/cuda/CUDACachingAllocator.cpp"

SAMPLES: Final[dict[str, Sample]] = {
    "torch out of memory": _oom(
        "torch_allocator",
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.84 GiB. GPU 0 has a total capacity"),
        fatal=False,
    ),
    "torch out of memory, wrapped": _oom(
        "torch_allocator_text", _torch("CUDA out of memory. Tried to allocate 2.00 GiB."), fatal=False
    ),
    "python out of memory": _oom("python", MemoryError, fatal=False),
    "bad_alloc": _oom("bad_alloc", _torch("std::bad_alloc"), fatal=False),
    "host memory": _oom(
        "cpu_allocator",
        _torch(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4611686018427387904 bytes. Error code 12 (Cannot allocate memory)"
        ),
        fatal=False,
    ),
    "mmap": _oom(
        "mmap", _torch("unable to mmap 68719476736 bytes from file <model>: Cannot allocate memory (12)"), fatal=False
    ),
    "ENOMEM": _oom("enomem", lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), fatal=False),
    "cuda out of memory": _oom("cuda_memory", _cuda("out of memory"), fatal=True),
    "cudart out of memory": _oom("cudart_memory", lambda: CudaError("out of memory (2)"), fatal=True),
    "driver out of memory": _oom("driver_memory", _torch("CUDA driver error: out of memory"), fatal=True),
    "nvml assert": _oom(
        "nvml_assert", _assert("NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_()", ALLOCATOR, 1377), fatal=True
    ),
    "triton out of memory": _oom("triton_memory", _torch("Triton Error [CUDA]: out of memory"), fatal=True),
    "cublas allocation": _oom("cublas_memory", _torch(f"CUDA error: CUBLAS_STATUS_ALLOC_FAILED {CREATE}"), fatal=True),
    "cublas creation": _oom("cublas_create", _torch(f"CUDA error: CUBLAS_STATUS_NOT_INITIALIZED {CREATE}"), fatal=True),
    "cudnn 8 allocation": _oom("cudnn_memory", _torch("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), fatal=True),
    "cudnn allocation": _oom(
        "cudnn_9_memory", _torch("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), fatal=True
    ),
    "cufft allocation": _oom("cufft_memory", _torch("cuFFT error: CUFFT_ALLOC_FAILED"), fatal=True),
    "cusolver allocation": _oom(
        "cusolver_memory",
        _torch("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        fatal=True,
    ),
    "launch shape": _failed("launch_shape", _cuda("invalid configuration argument"), fatal=False),
    "launch resources": _failed("launch_resources", _cuda("too many resources requested for launch"), fatal=False),
    "cublas refuses": _failed("cublas_refuses", _torch(f"CUDA error: CUBLAS_STATUS_NOT_SUPPORTED {GEMM}"), fatal=False),
    "cudnn refuses": _failed(
        "cudnn_refuses",
        _torch(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
        ),
        fatal=False,
    ),
    "nvrtc": _failed("nvrtc", _torch("CUDA NVRTC error: NVRTC_ERROR_COMPILATION"), fatal=False),
    "triton refuses": _failed(
        "triton_refuses",
        lambda: OutOfResources(
            "out of resource: shared memory, Required: 262144, Hardware limit: 232448. Reducing block sizes or "
            "`num_stages` may help."
        ),
        fatal=False,
    ),
    "allocator assert": _failed("allocator_assert", _assert("!handles_.at(i)", ALLOCATOR, 467), fatal=True),
    **{
        text: _failed("accelerator", _cuda(text), fatal=True)
        for text in (
            "an illegal memory access was encountered",
            "unspecified launch failure",
            "device-side assert triggered",
            "misaligned address",
            "an illegal instruction was encountered",
            "uncorrectable ECC error encountered",
            "the launch timed out and was terminated",
            "CUDA-capable device(s) is/are busy or unavailable",
            "no CUDA-capable device is detected",
            "system not yet initialized",
            "Invalid access of peer GPU memory over nvlink or a hardware error",
            "the MPS client has been terminated by the server",
            "unknown error",
        )
    },
    "an older CUDA error": _failed("cuda", _torch("CUDA error: an illegal memory access was encountered"), fatal=True),
    "cublas": _failed("cuda", _torch(f"CUDA error: CUBLAS_STATUS_EXECUTION_FAILED {GEMM}"), fatal=True),
    "cudart": _failed("cudart", lambda: CudaError("unspecified launch failure (719)"), fatal=True),
    "driver": _failed("driver", _torch("CUDA driver error: unknown error"), fatal=True),
    "cudnn": _failed("cudnn", _torch("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), fatal=True),
    "cudnn frontend": _failed("cudnn", _torch("cuDNN Frontend error: CUDNN_BACKEND_EXECUTE_FAILED"), fatal=True),
    "cufft": _failed("cufft", _torch("cuFFT error: CUFFT_INTERNAL_ERROR"), fatal=True),
    "cusolver": _failed("cusolver", _torch("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED"), fatal=True),
    "triton": _failed("triton", _torch("Triton Error [CUDA]: an illegal memory access was encountered"), fatal=True),
    "an older assert": _failed("device_assert", _torch("cuda runtime error (59) : device-side assert"), fatal=True),
    "no card": _failed("no_card", _torch("No CUDA GPUs are available"), fatal=True),
    "while handling another": _failed("accelerator", _while_handling, fatal=True),
    # failures of the task itself
    "a shape": _failed(None, _torch("The size of tensor a (3) must match the size of tensor b (4)"), fatal=False),
    "an assert elsewhere": _failed(None, _assert("dim > 0", "aten/src/ATen/native/Resize.cpp", 9), fatal=False),
    "a prompt that was quoted": _failed(
        None, lambda: ValueError("no token for 'CUDA error: out of memory'"), fatal=False
    ),
}
