"""A fork server whose children run real pipelines, and misbehave as the prompt says.

`python -m tests.kit.rogue_host FD` runs it.

Each child is the product's own, but a few of its functions are replaced. The replacements look for a misdeed's name in
the prompt; a load has no prompt, so they look in the name of the checkpoint's folder. A prompt holds one misdeed; any
other text in it is ignored. "in a used host" after a misdeed limits it to a process that has run before: a fresh one
behaves.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from contracts.checkpoints import Checkpoint
from contracts.memory import MemoryReading
from contracts.tasks import GenerationParameters
from lane_worker.forking import host_messages
from lane_worker.forking.host_messages import FromChild, StepFinished
from lane_worker.pipelines import child, forkserver
from lane_worker.pipelines.child import TaskCancelled
from lane_worker.pipelines.cleanup import clean, release
from lane_worker.pipelines.load import LoadTimes, load_pipeline, run_pipeline
from lane_worker.pipelines.video import Frames
from tests.kit.fault_texts import SAMPLES
from tests.kit.gate import GATE

COMMAND: Final = (sys.executable, "-m", "tests.kit.rogue_host")
IN_A_USED_HOST: Final = "in a used host"
RAISE: Final = "raise "
"""The prefix of a name of `tests.kit.fault_texts.SAMPLES`."""
OUT_OF_MEMORY: Final = "CUDA out of memory. Tried to allocate 20.00 GiB."
BROKEN: Final = "CUDA driver error: unknown error"
LEAK: Final = re.compile(r"leak (\d+) MB")
LEAK_ON_CARD_BYTES: Final = 2 << 30  # twice what a probe of a card takes for noise
SMALL_CARD_VOLUME: Final = 96 * 64 * 17  # width x height x frames
GARBAGE: Final = b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1"

_kept: list[object] = []
_loads = 0
_runs = 0
_talks_garbage = False
_card = ""  # the words in the name of the checkpoint's folder, such as "small card"
_fails: str | None = None  # which of `clean` and `release` fails when it is called next


def main() -> None:
    """Replaces what the children use, and serves."""
    replacements = {"load_pipeline": _load, "run_pipeline": _run, "frame": _frame, "clean": _clean, "release": _release}
    for name, replacement in replacements.items():
        assert hasattr(child, name)
        setattr(child, name, replacement)
    forkserver.main()


def _load(checkpoint: Checkpoint, models_dir: Path, *, device: str, model: str, times: LoadTimes) -> Any:
    global _loads, _card
    _loads += 1
    _card = checkpoint.folder.replace("-", " ")
    misdeed = _misdeed(checkpoint.folder.replace("-", " "), used=_loads > 1)
    if "hang in load" in misdeed:
        _hang()
    _will_fail(misdeed)
    if "oom and fail" in misdeed:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)
    pipeline = load_pipeline(checkpoint, models_dir, device=device, model=model, times=times)
    if "oom in load" in misdeed:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)
    return pipeline


def _run(
    pipeline: Any, parameters: GenerationParameters, image: Image.Image | None, on_step: Callable[[int], None]
) -> Frames:
    global _runs, _talks_garbage
    _runs += 1
    if "small card" in _card and parameters.width * parameters.height * parameters.num_frames > SMALL_CARD_VOLUME:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)
    misdeed = _misdeed(parameters.prompt, used=_runs > 1)
    _will_fail(misdeed)
    if "oom and fail" in misdeed:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)
    if leak := LEAK.search(misdeed):
        _kept.append(bytearray(b"\x01") * (int(leak[1]) * 1_000_000))
    elif "leak outside torch" in misdeed:
        _kept.append(_device_memory(LEAK_ON_CARD_BYTES))
    elif "leak tensor" in misdeed:
        _kept.append(next(pipeline.transformer.parameters()).detach())  # its memory; the pipeline has no name for it
    elif "keep component" in misdeed:
        _kept.append(pipeline.text_encoder)
    elif "segfault" in misdeed:
        ctypes.string_at(0)
    elif "ignore SIGTERM" in misdeed:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _hang()
    elif "garbage" in misdeed:
        _talks_garbage = True
    elif "oom in text encoder" in misdeed:
        _fail_in(pipeline.text_encoder)
    elif "assert on the card" in misdeed:
        torch.zeros(2, device="cuda")[torch.full((1,), 9, device="cuda")].cpu()
    elif "fill the card" in misdeed:
        _fill_card()
    elif misdeed.startswith(RAISE):
        raise SAMPLES[misdeed.removeprefix(RAISE).removesuffix(IN_A_USED_HOST).strip()].make()
    elif "oom in vae" in misdeed:
        _fail_in(pipeline.vae.decoder)

    def step(number: int) -> None:
        if gate := GATE.search(misdeed):
            while not os.path.exists(gate[1]):
                on_step(number)
                time.sleep(0.02)  # between two looks
        if "ignore cancel" in misdeed:
            _ignore_cancel(on_step, number)
        else:
            on_step(number)
        if "oom in step 3" in misdeed and number == 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        if "cuda error" in misdeed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return run_pipeline(pipeline, parameters, image, step)


def _will_fail(misdeed: str) -> None:
    global _fails
    _fails = next((name for name in ("clean", "release") if f"fail in {name}" in misdeed), _fails)


def _clean(device: str, *, heap_kept_bytes: int = 0) -> MemoryReading:
    _fail_once("clean")
    return clean(device, heap_kept_bytes=heap_kept_bytes)


def _release(device: str) -> MemoryReading:
    _fail_once("release")
    return release(device)


def _fail_once(name: str) -> None:
    global _fails
    if _fails == name:
        _fails = None
        raise RuntimeError(BROKEN)


def _device_memory(size_bytes: int) -> int:
    """Allocates by the driver's own call, in the current context. torch's allocator knows nothing of this memory.
    Returns its address."""
    address = ctypes.c_uint64()
    status = ctypes.CDLL("libcuda.so.1").cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size_bytes))
    assert status == 0, f"cuMemAlloc answered {status}"
    return address.value


def _fill_card() -> None:
    piece_bytes = 1 << 30
    while piece_bytes >= 1 << 20:
        try:
            _kept.append(_device_memory(piece_bytes))
        except AssertionError:  # no piece of this size is left
            piece_bytes //= 2
    torch.cuda.empty_cache()
    while True:  # takes what torch has just given back
        try:
            _kept.append(_device_memory(1 << 20))
        except AssertionError:
            return


def _misdeed(text: str, *, used: bool) -> str:
    return "" if IN_A_USED_HOST in text and not used else text


def _frame(message: FromChild) -> bytes:
    return GARBAGE if _talks_garbage and isinstance(message, StepFinished) else host_messages.frame(message)


def _ignore_cancel(on_step: Callable[[int], None], number: int) -> None:
    try:
        while True:  # until somebody cancels it
            on_step(number)
            time.sleep(0.05)  # the misdeed itself: it goes on working, at a leisurely pace
    except TaskCancelled:
        _hang()


def _fail_in(module: torch.nn.Module) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    module.register_forward_pre_hook(fail)


def _hang() -> None:
    while True:
        time.sleep(1)  # the misdeed itself: it never returns


if __name__ == "__main__":
    main()
