"""Failures of something other than the task: how they are classified, and what happens to the process (ADR 0026)."""

import ctypes
import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
import torch
from msgspec.structs import replace

from contracts.settings import load_settings
from lane_worker.forking.fork_server import ForkServer
from lane_worker.forking.host import Host
from lane_worker.forking.host_messages import Failed, Finished, Generate
from lane_worker.pipelines.faults import TABLE, inference_fault, load_fault, row_of
from tests.bench.peers.heavy import parameters_of
from tests.kit.fault_texts import SAMPLES, Sample
from tests.kit.rogue_host import RAISE
from tests.kit.support import ROGUE_HOST, fork_server_at, is_running

ENTRY: Final = load_settings().catalog("tiny").models["phr00t"]
SECRET: Final = "what the caller wrote"
SITE: Final = Path(torch.__file__).parents[1]
CUDART: Final = SITE / "nvidia/cu13/lib/libcudart.so.13"
needs_cuda_build = pytest.mark.skipif(not CUDART.exists(), reason="CUDA's libraries come with torch's CUDA build only")


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_each_sample_is_classified_as_its_row_says(sample: Sample) -> None:
    error = sample.make()
    row = row_of(error)
    assert (None if row is None else row.name) == sample.row
    for fault in (inference_fault(error), load_fault(error)):
        assert (fault.code, fault.fatal) == (sample.code, sample.fatal)


def test_every_row_has_a_sample_and_a_name_of_its_own() -> None:
    names = [row.name for row in TABLE]
    assert set(names) == {sample.row for sample in SAMPLES.values()} - {None}
    assert len(set(names)) == len(names)


def test_a_prompt_quoted_in_an_error_is_no_failure_of_the_device() -> None:
    """Otherwise any client that may send a prompt could make a lane reload."""
    for sample in SAMPLES.values():
        quoted = ValueError(f"cannot tokenize {sample.make()}")
        assert not inference_fault(quoted).fatal
        assert row_of(quoted) is None


@needs_cuda_build
def test_the_texts_of_cuda_are_those_of_its_library() -> None:
    library = ctypes.CDLL(str(CUDART))
    library.cudaGetErrorString.restype = ctypes.c_char_p
    real = {library.cudaGetErrorString(code).decode() for code in range(1000)}
    texts = (str(sample.make()).partition("\n")[0] for sample in SAMPLES.values())
    for text in texts:
        plain = re.fullmatch(r"CUDA error: ((?!CUBLAS_).*)|(?:CUDA driver|Triton) [Ee]rror(?: \[CUDA\])?: (.*)", text)
        assert plain is None or (plain[1] or plain[2]) in real, text


@needs_cuda_build
@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("CUDNN_STATUS_ALLOC_FAILED", "nvidia/cudnn/include/cudnn_graph.h"),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "nvidia/cudnn/include/cudnn_graph.h"),
        ("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", "nvidia/cudnn/include/cudnn_graph.h"),
        ("CUDNN_STATUS_NOT_SUPPORTED", "nvidia/cudnn/include/cudnn_graph.h"),
        ("CUDNN_STATUS_BAD_PARAM", "nvidia/cudnn/include/cudnn_graph.h"),
        ("CUBLAS_STATUS_ALLOC_FAILED", "nvidia/cu13/include/cublas_api.h"),
        ("CUBLAS_STATUS_NOT_INITIALIZED", "nvidia/cu13/include/cublas_api.h"),
        ("CUFFT_ALLOC_FAILED", "nvidia/cu13/include/cufft.h"),
        ("CUSOLVER_STATUS_ALLOC_FAILED", "nvidia/cu13/include/cusolver_common.h"),
        ('"CUDA driver error: "', "torch/include/c10/cuda/driver_api.h"),
        ('"cuDNN error: "', "torch/include/ATen/cuda/Exceptions.h"),
        ('"cuDNN Frontend error: "', "torch/include/ATen/cuda/Exceptions.h"),
        ('"cusolver error: "', "torch/include/ATen/cuda/Exceptions.h"),
        ('"CUDA NVRTC error: "', "torch/include/ATen/cuda/Exceptions.h"),
        ('" when calling `" #EXPR "`"', "torch/include/ATen/cuda/Exceptions.h"),
        ("class CudaError(RuntimeError)", "torch/cuda/__init__.py"),
        ("class OutOfResources(", "triton/runtime/errors.py"),
        ('"Triton Error [CUDA]: "', "triton/backends/nvidia/driver.c"),
    ],
)
def test_the_texts_are_those_of_the_installed_libraries(text: str, file: str) -> None:
    if file.startswith("triton") and importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton here")
    assert text in (SITE / file).read_text(errors="replace")


def test_torchs_own_text_for_memory_that_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    row = row_of(caught.value)
    assert row is not None
    assert row.name == "cpu_allocator"


# ── in a real host ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    folder = tmp_path_factory.mktemp("faults")
    forks = ForkServer(ROGUE_HOST, shared=fork_server_at(ROGUE_HOST))
    host = Host(slot="cpu-0", lock_dir=folder, models_dir=folder / "models", fork_server=forks)
    yield host
    await host.close()
    await forks.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", {sample.row: name for name, sample in SAMPLES.items()}.values())
async def test_a_trusted_host_runs_on_and_another_ends(host: Host, tmp_path: Path, name: str) -> None:
    """Seen from outside: a host that can be trusted runs the next task; any other ends, and its memory is free."""
    if host.pid is None:
        await host.start()
        await host.load(ENTRY)
    pid = host.pid
    assert pid is not None
    failed = await host.generate(_request(tmp_path, RAISE + name), lambda _: None)
    assert isinstance(failed, Failed), failed
    assert (failed.code, failed.fatal) == (SAMPLES[name].code, SAMPLES[name].fatal)
    assert SECRET not in failed.message
    assert (host.pid, is_running(pid)) == ((None, False) if failed.fatal else (pid, True))
    if not failed.fatal:
        assert isinstance(await host.generate(_request(tmp_path, SECRET), lambda _: None), Finished)


def _request(folder: Path, prompt: str) -> Generate:
    parameters = replace(parameters_of(ENTRY, prompt), num_frames=1, width=32, height=32)
    return Generate("task", 1, parameters, str(folder / "video.mp4"))
