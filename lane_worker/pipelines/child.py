"""The pipeline host: the process that holds a slot's lock and the one pipeline on it, and runs one task at a time.

Its main thread loads and infers. A second thread reads the pipe, so that pings and cancels are answered during an
inference, and so that the process ends at once when its worker does. The parent's side is `forking/host.py`.
"""

import contextlib
import os
import queue
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import msgspec
import torch
import transformers
from diffusers import WanImageToVideoPipeline, WanPipeline, WanVACEPipeline

from contracts.memory import MemoryReading
from lane_worker.forking.allocator import AllocatorMisconfigured
from lane_worker.forking.host_messages import (
    LENGTH,
    BadMessage,
    Cancel,
    Cancelled,
    Exit,
    Failed,
    Finished,
    Fork,
    FromChild,
    Generate,
    Load,
    Loaded,
    Ping,
    Pong,
    Ready,
    SlotBusy,
    StepFinished,
    ToChild,
    Unload,
    Unloaded,
    body_length,
    decode_to_child,
    frame,
)
from lane_worker.forking.slot import SlotHeld, SlotLock
from lane_worker.pipelines.allocation import check_allocator
from lane_worker.pipelines.cleanup import HEAP_KEPT_BYTES, Watched, begin, clean, forget, release
from lane_worker.pipelines.faults import Fault, inference_fault, load_fault
from lane_worker.pipelines.inputs import BadInput, read_image
from lane_worker.pipelines.load import LoadTimes, load_pipeline, needs_image, run_pipeline, with_suffix
from lane_worker.pipelines.oom_snapshots import OomSnapshots
from lane_worker.pipelines.rehearsal import rehearse
from lane_worker.pipelines.thumbnail import thumbnail_of
from lane_worker.pipelines.video import write_video
from ops.machine.visible_cards import VISIBLE

# diffusers imports lazily; these names make the fork server import what every child needs
PRELOADED = (WanImageToVideoPipeline, WanPipeline, WanVACEPipeline)
STANDARD_ERROR = 2
_NOT_READ = MemoryReading(rss_bytes=0)


def child_main(pipe: socket.socket, request: Fork) -> NoReturn:
    """Serve the worker at the other end of *pipe* until it says `Exit` or closes it. Never returns.

    Whatever is raised meanwhile goes into the worker's log, and to the worker as an answer where it waits for one.
    """
    status = 1
    child = _Child(pipe)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _be_quiet()
        child.serve(request)
        status = 0
    except BaseException as error:
        _print(error)
        child.give_up(error)
    finally:
        os._exit(status)  # not a return into the fork server's loop, and no teardown that could hang


class TaskCancelled(BaseException):
    """Raised from the step callback. No Exception, so that no handler in a pipeline takes it for its own."""


class _Job:
    def __init__(self, request: Generate) -> None:
        self.request = request
        self.cancelled = threading.Event()


class _Child:
    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._work: queue.SimpleQueue[Load | Unload | _Job] = queue.SimpleQueue()
        self._job: _Job | None = None
        self._owes = True  # whether the worker waits for an answer; the first one is `Ready`
        self._broken = False
        self._keep_slot: Callable[[], None] = lambda: None
        self._pipeline: Any = None
        self._model: str | None = None
        self._invents_images = False
        self._step_seconds = 0.0
        self._prompt_suffix = ""
        self._snapshots = OomSnapshots(Path(), kept=0)

    def serve(self, request: Fork) -> None:
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        try:
            lock = SlotLock.acquire(
                Path(request.lock_dir),
                request.slot,
                role=request.role,
                term=request.term,
                wait_s=request.lock_wait_s,
                worker=request.worker,
            )
        except SlotHeld as error:
            self._send(SlotBusy(error.holder))
            return
        # only now may CUDA start
        if request.slot.startswith("cpu-"):
            self._device = "cpu"
            os.environ[VISIBLE] = ""
            torch.set_num_threads(1)  # two threads on a small shared machine once took 20 times longer
        else:
            self._device = "cuda"
            os.environ[VISIBLE] = request.slot
        self._lock = lock
        self._keep_slot = lock.keep
        _warm_up(self._device)
        objection = _objection(self._device)
        if objection is not None:
            self._send(Failed(None, "inference_failed", objection, _NOT_READ, fatal=True, lasting=True))
            return
        # this process holds the slot, and with it the folder of the slot's name
        place = Path(request.lock_dir, f"{request.slot}.rehearsal")
        rehearsed = rehearse(request.rehearse, place, self._device) if request.rehearse else None
        if self._device == "cuda":
            self._snapshots = OomSnapshots(Path(request.oom_dir), kept=request.oom_snapshots)
            self._snapshots.record()
        self._send(Ready(os.getpid(), lock.unfinished, rehearsed))
        while not self._broken:
            self._owes = False
            work = self._work.get()
            self._owes = True
            match work:
                case Load():
                    self._load(work)
                case Unload():
                    self._unload()
                case _Job():
                    self._generate(work)

    def give_up(self, error: BaseException) -> None:
        """Answers a worker that waits with the reason why nothing else comes. Never raises."""
        if not self._owes:
            return
        if self._job is None:
            answer = Failed(None, "inference_failed", f"{type(error).__name__}: {error}"[:500], _NOT_READ, fatal=True)
        else:
            fault = inference_fault(error)
            answer = Failed(self._job.request.task_id, fault.code, fault.message, _NOT_READ, fatal=True)
        with contextlib.suppress(OSError):
            self._send(answer)

    # The reading thread

    def _read(self) -> None:
        try:
            with self._pipe.makefile("rb") as stream:
                while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                    self._receive(decode_to_child(stream.read(body_length(head))))
        except (OSError, BadMessage):
            pass
        except Exception as error:
            _print(error)
        finally:
            os._exit(1)  # the worker is gone, or speaks another protocol: nobody waits for what runs here

    def _receive(self, message: ToChild) -> None:
        match message:
            case Ping(number):
                with contextlib.suppress(OSError):  # a disk that is full or away: the next ping tries again
                    self._keep_slot()
                self._send(Pong(number))
            case Cancel(task_id):
                job = self._job
                if job is not None and job.request.task_id == task_id:
                    job.cancelled.set()
            case Generate():
                self._job = _Job(message)
                self._work.put(self._job)
            case Load() | Unload():
                self._work.put(message)
            case Exit():
                with self._sending:  # never between an answer and the note that the task is over
                    os._exit(0)

    def _send(self, message: FromChild) -> None:
        with self._sending:
            self._pipe.sendall(frame(message))

    # The main thread

    def _load(self, request: Load) -> None:
        started_s = time.perf_counter()
        if self._pipeline is not None:  # FR-001
            self._send(Failed(None, "inference_failed", "a pipeline is resident; unload it first", _NOT_READ))
            return
        fault, snapshot, times = None, "", LoadTimes()
        try:
            begin(self._device)
            check_allocator(self._device)
            self._pipeline = load_pipeline(
                request.checkpoint, Path(request.models_dir), device=self._device, model=request.model, times=times
            )
        except Exception as error:
            fault = load_fault(error)
            snapshot = self._snapshot(fault, request.model)
            forget(error)
        if fault is not None:
            memory = self._cleaned(is_broken=fault.fatal)
            self._send(Failed(None, fault.code, fault.message, memory, fault.fatal or self._broken, snapshot))
            return
        self._step_seconds = request.step_seconds
        self._prompt_suffix = request.checkpoint.prompt_suffix
        self._model = request.model
        self._invents_images = request.checkpoint.random_weights is not None
        self._lock.write(model=self._model)
        memory = clean(self._device)
        time.sleep(max(0.0, request.load_seconds - (time.perf_counter() - started_s)))
        seconds = time.perf_counter() - started_s
        self._send(Loaded(request.model, seconds, memory, times.read_s, times.copy_s))

    def _unload(self) -> None:
        started_s = time.perf_counter()
        watched = None
        if self._pipeline is not None:
            watched = Watched(self._pipeline)
            self._pipeline.remove_all_hooks()
        self._pipeline = self._model = None
        memory = release(self._device)
        alive = () if watched is None else watched.still_alive()
        self._lock.write()
        self._send(Unloaded(alive, memory.cuda_allocated_bytes, time.perf_counter() - started_s, memory))

    def _generate(self, job: _Job) -> None:
        request = job.request
        self._lock.write(model=self._model, task_id=request.task_id, attempt=request.attempt)
        begin(self._device)
        end = self._attempt(job)
        memory = self._cleaned(is_broken=isinstance(end, Failed) and end.fatal, heap_kept_bytes=HEAP_KEPT_BYTES)
        if isinstance(end, Failed) and self._broken:
            end = msgspec.structs.replace(end, fatal=True)
        with self._sending:
            self._pipe.sendall(frame(msgspec.structs.replace(end, memory=memory)))
            self._lock.write(model=self._model)
            self._job = None

    def _cleaned(self, *, is_broken: bool, heap_kept_bytes: int = 0) -> MemoryReading:
        """The reading after cleanup. A broken device is not asked again. Where the device breaks here, the process ends
        after the answer that is due, whatever that answer says."""
        if not is_broken:
            try:
                return clean(self._device, heap_kept_bytes=heap_kept_bytes)
            except Exception as error:
                _print(error)
                self._broken = True
        return clean("cpu", heap_kept_bytes=heap_kept_bytes)

    def _attempt(self, job: _Job) -> Finished | Cancelled | Failed:
        """Run *job*; the answer lacks only the memory reading. On return everything that the job made is dropped."""
        task_id = job.request.task_id
        try:
            return self._make_video(job)
        except TaskCancelled as stop:
            forget(stop)
            return Cancelled(task_id, _NOT_READ)
        except Exception as error:
            fault = inference_fault(error)
            snapshot = self._snapshot(fault, self._model or "")
            forget(error)
            return Failed(task_id, fault.code, fault.message, _NOT_READ, fault.fatal, snapshot)

    def _snapshot(self, fault: Fault, model: str) -> str:
        return self._snapshots.dump(model) if fault.code == "out_of_memory" and not fault.fatal else ""

    def _make_video(self, job: _Job) -> Finished:
        request, parameters = job.request, job.request.parameters
        task_id = request.task_id

        step_seconds = self._step_seconds if request.attempt else 0.0

        def on_step(step: int) -> None:
            if job.cancelled.wait(step_seconds):
                raise TaskCancelled
            self._send(StepFinished(task_id, step, parameters.steps, time.time()))

        image = None
        if parameters.image is not None and request.image_path is not None:
            image = read_image(
                Path(request.image_path), parameters.image, width=parameters.width, height=parameters.height
            )
        elif not self._invents_images and needs_image(self._pipeline):
            # the gateway requires one; a task that came another way gets no picture of our making
            raise BadInput("this model turns an image into a video; send the request again with an image")
        self._send(StepFinished(task_id, 0, parameters.steps, time.time()))
        started_s = time.perf_counter()
        frames = run_pipeline(self._pipeline, with_suffix(parameters, self._prompt_suffix), image, on_step)
        inferred_s = time.perf_counter()
        if job.cancelled.is_set():
            raise TaskCancelled
        video = write_video(frames, Path(request.video_path), fps=parameters.fps)
        with contextlib.suppress(Exception):  # a video without a thumbnail counts all the same
            video = msgspec.structs.replace(video, thumbnail=thumbnail_of(frames))
        return Finished(
            task_id=task_id,
            video=video,
            inference_s=inferred_s - started_s,
            encode_s=time.perf_counter() - inferred_s,
            memory=_NOT_READ,
        )


def _print(error: BaseException) -> None:
    """Writes *error* into the worker's log, without the errors that led to it: those are a pipeline's, and may quote a
    prompt. Where the log is on a full disk, the line is lost and the worker still gets its answer.
    """
    text = "".join(traceback.format_exception(error, chain=False))
    with contextlib.suppress(OSError):
        os.write(STANDARD_ERROR, text.encode("utf-8", "backslashreplace"))


def _be_quiet() -> None:
    # progress bars and warnings; some of the latter quote the prompt
    warnings.simplefilter("ignore")
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _warm_up(device: str) -> None:
    """Makes what every pipeline needs (a CUDA context, kernels), so that it does not count as part of the first one."""
    # a device that is broken or full fails again at the load, where the worker waits for the answer
    with contextlib.suppress(Exception), torch.inference_mode():
        torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        torch.conv3d(torch.ones(1, 4, 4, 8, 8, device=device), torch.ones(4, 4, 3, 3, 3, device=device))
        release(device)


def _objection(device: str) -> str | None:
    try:
        check_allocator(device)
    except AllocatorMisconfigured as error:
        return str(error)
    except Exception:  # a broken device fails again at the load, where the worker waits
        return None
    return None
