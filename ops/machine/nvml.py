"""The NVIDIA cards of this machine and their memory: the only file that talks to NVML."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, Literal, NamedTuple, TypeVar

import psutil
import pynvml
import structlog
from msgspec import Struct

from contracts.settings import Tolerances
from ops.machine.host_memory import available_bytes, tree_bytes
from ops.machine.readings import GIB, Holder, Reading
from ops.machine.visible_cards import Card, visible_slots

MEASURED: Final = Tolerances()
# A driver that wakes a card up takes seconds; one that hangs never answers.
ANSWER_S: Final = 20.0
# An estimate: the memory that everything else on a machine takes and gives back within seconds, where cards share it.
UNIFIED_NOISE_BYTES: Final = GIB

# ValueError, KeyError: another kernel words its files differently
_SYSTEM_ERRORS: Final = (OSError, ValueError, KeyError, psutil.Error)

T = TypeVar("T")

log = structlog.get_logger("memory_probe")


class GpuInfo(Struct, frozen=True, kw_only=True):
    """One card, addressed by UUID: NVML ignores CUDA_VISIBLE_DEVICES, so an index would mislead.

    It may also be one MIG instance of a card that is split up: CUDA takes its UUID (`MIG-…`) as it takes a card's. A
    *unified* card has no memory of its own (GB10, Jetson): the figures are the system's, which the host uses too.
    """

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    holders: tuple[Holder, ...] = ()
    unified: bool = False


class Survey(Struct, frozen=True, kw_only=True):
    """The NVIDIA cards of this machine: *gpus* are those that can be used, in the order of use.

    By their UUIDs, *hidden* are those that CUDA_VISIBLE_DEVICES hides, and *undivided* those in MIG mode without an
    instance. *broken* has a text for each card on which the driver fails: which card, why, and what to do.
    """

    gpus: tuple[GpuInfo, ...] = ()
    hidden: tuple[str, ...] = ()
    undivided: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


class DriverUnusable(Exception):
    """There is an NVIDIA driver, but it fails or does not answer. The text has the driver's own words, and what to
    do."""


# What to do about an error of the driver. Errors that are not here pass by themselves, or nobody knows what they mean.
_ADVICE: Final = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the kernel module (`modprobe nvidia`), or restart the machine",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated under the loaded kernel module: restart the "
    "machine; where the module was loaded anew already, restart the worker",
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: "the driver is of another version than its library: reinstall it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the card has fallen off its bus: restart the machine, and look for Xid in `dmesg`",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset the card (`nvidia-smi --gpu-reset`), or restart the machine",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "connect the card's power cables",
    pynvml.NVML_ERROR_IRQ_ISSUE: "the kernel has an interrupt issue with the card: look at `dmesg`",
    pynvml.NVML_ERROR_NO_PERMISSION: "let this user read /dev/nvidia*",
    pynvml.NVML_ERROR_NOT_FOUND: "no such card is here: `nvidia-smi -L` lists them",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "the driver reports no memory of this card or instance",
    pynvml.NVML_ERROR_UNKNOWN: "look for Xid and NVRM in `dmesg`; a restart of the machine helps where it stays",
}


def in_words(error: pynvml.NVMLError) -> str:
    """The driver's own words, and what to do about the error where that is known."""
    advice = _ADVICE.get(error.value)
    return str(error) if advice is None else f"{error}: {advice}"


@contextlib.contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        yield False
        return
    except pynvml.NVMLError as error:
        raise DriverUnusable(in_words(error)) from error
    try:
        yield True
    except pynvml.NVMLError as error:
        raise DriverUnusable(in_words(error)) from error
    finally:
        with contextlib.suppress(pynvml.NVMLError):  # a lost card: the reading reports it
            pynvml.nvmlShutdown()


def survey(environ: Mapping[str, str] = os.environ) -> Survey:
    """The NVIDIA cards of this machine; none without a driver. In place of a card in MIG mode it has the card's
    instances.

    Raises DriverUnusable where a driver is loaded and fails (after an update without a restart, say) or fails on every
    card, or does not answer within ANSWER_S; AmbiguousOrder where it is not clear what CUDA_VISIBLE_DEVICES means.
    """
    return _within(ANSWER_S, lambda: _survey(environ))


def driver_version() -> str | None:
    """The version of the NVIDIA driver, such as `580.65.06`; None without one. Raises DriverUnusable."""
    return _within(ANSWER_S, _driver_version)


def _driver_version() -> str | None:
    with _nvml() as usable:
        return str(pynvml.nvmlSystemGetDriverVersion()) if usable else None


def list_gpus() -> list[GpuInfo]:
    """The cards, or MIG instances, that can be used, in the order of use. Raises what `survey` does."""
    return list(survey().gpus)


def undivided_gpus() -> list[str]:
    """The UUIDs of cards that nothing can use: they are in MIG mode and have no instance. Raises what `survey` does."""
    return list(survey().undivided)


def _survey(environ: Mapping[str, str]) -> Survey:
    cards: list[Card] = []
    infos: dict[str, GpuInfo] = {}
    undivided, broken = [], []
    with _nvml() as usable:
        for index in range(pynvml.nvmlDeviceGetCount() if usable else 0):
            # one card that is lost leaves the others usable, and their numbers as they are
            try:
                card = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = str(pynvml.nvmlDeviceGetUUID(card)), str(pynvml.nvmlDeviceGetName(card))
                is_divided = _is_divided(card)
                its = [_info(handle) for handle in (_mig_instances(card) if is_divided else [card])]
            except pynvml.NVMLError as error:
                broken.append(f"card {index}: {in_words(error)}")
                cards.append(Card(f"card {index}", "", ()))
                continue
            undivided += [uuid] if is_divided and not its else []
            cards.append(Card(uuid, name, tuple(info.uuid for info in its)))
            infos |= {info.uuid: info for info in its}
    if broken and not infos and not undivided:
        raise DriverUnusable("; ".join(broken))
    seen = visible_slots(cards, environ)
    return Survey(
        gpus=tuple(infos[slot] for slot in seen),
        hidden=tuple(slot for slot in infos if slot not in seen),
        undivided=tuple(undivided),
        broken=tuple(broken),
    )


def _is_divided(card: object) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(card)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False  # a card, or a driver, without MIG
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_instances(card: object) -> list[object]:
    found: list[object] = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        # no instance has this number: the numbers of instances may have gaps
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
    return found


def _info(handle: object) -> GpuInfo:
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    memory = _memory(handle, uuid)
    return GpuInfo(
        uuid=uuid,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        holders=_holders(handle),
        unified=isinstance(memory, _SystemMemory),
    )


class _SystemMemory(NamedTuple):
    """The memory of the whole system, with NVML's field names."""

    total: int
    used: int
    free: int


def _memory(handle: object, uuid: str) -> Any:
    """The memory of the card, or instance; the system's where the card has none of its own.

    NVML answers Not Supported there, or zero: https://docs.nvidia.com/dgx/dgx-spark/known-issues.html
    """
    if uuid.startswith("MIG-"):
        return _device_memory(handle)
    try:
        memory = _device_memory(handle)
        return memory if memory.total else _system_memory()
    except pynvml.NVMLError_NotSupported:
        return _system_memory()


def _system_memory() -> _SystemMemory:
    system = psutil.virtual_memory()
    return _SystemMemory(int(system.total), int(system.total - system.available), available_bytes())


def _device_memory(handle: object) -> Any:
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_ArgumentVersionMismatch,
        pynvml.NVMLError_NotSupported,
    ):
        # This driver knows only the first version. After other errors the first version is not tried: it counts what
        # the driver reserves as used, and figures of both versions must never be compared.
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _processes(handle: object) -> list[Any]:
    """The processes on the card; an empty list where the driver, old or busy, does not list them."""
    try:
        # named with its version: with an old driver the name without one raises an exception that is no NVMLError
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
    except pynvml.NVMLError as error:
        log.debug("processes_unknown", error=str(error))
        return []


def _by_pid(handle: object) -> dict[int, int]:
    return {each.pid: each.usedGpuMemory for each in _processes(handle) if each.usedGpuMemory is not None}


def _holders(handle: object) -> tuple[Holder, ...]:
    """The processes on the card, the one that holds most first."""
    processes = _processes(handle)
    holders = [Holder(pid=each.pid, used_bytes=each.usedGpuMemory, name=_name_of(each.pid)) for each in processes]
    return tuple(sorted(holders, key=lambda holder: -(holder.used_bytes or 0)))


def _name_of(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, OSError, ValueError):  # ValueError: not a pid of this system
        return None


def _within(limit_s: float, ask: Callable[[], T]) -> T:
    """What *ask* returns or raises. Raises DriverUnusable after *limit_s*, and leaves its thread to the driver."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    # a daemon: a thread that the driver never lets go must not keep this process from ending
    threading.Thread(target=run, name="nvml", daemon=True).start()
    try:
        return answer.result(timeout=limit_s)
    except FutureTimeout:
        raise DriverUnusable(
            f"it did not answer within {limit_s:g} s: see whether `nvidia-smi` does; in persistence mode "
            "(`nvidia-smi -pm 1`) cards need not wake up first"
        ) from None


def has_nvml() -> bool:
    """Whether this machine has the NVML library. Raises DriverUnusable where it does not answer within ANSWER_S."""
    return _within(ANSWER_S, _has_nvml)


def _has_nvml() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return not isinstance(error, pynvml.NVMLError_LibraryNotFound)
    pynvml.nvmlShutdown()
    return True


class NvmlProbe:
    """The memory of a whole card, or MIG instance. What other processes hold there counts: the next pipeline cannot
    have it either.

    A card without memory of its own shares the system's. The probe then reads the system's memory, and from the first
    reading on *name* is `unified`. There the pipeline host's own figure includes its resident memory.
    """

    def __init__(self, uuid: str, tolerances: Tolerances = MEASURED) -> None:
        """*uuid* of a card or of a MIG instance."""
        self.name: Literal["nvml", "unified"] = "nvml"
        self.absolute_bytes = tolerances.card_bytes
        self.poll_s = 0.25
        self.deadline_s = 10.0
        self.trouble = ""
        self._uuid = uuid
        self._handle: object | None = None
        self._was_read = False

    def read(self, pid: int | None) -> Reading | None:
        try:
            device = self._device()
            memory, by_pid = self._memory_of(device), _by_pid(device)
            if self.name == "unified" and pid in by_pid:
                by_pid[pid] += tree_bytes(pid)
        except pynvml.NVMLError as error:
            self._fails(in_words(error))
            self._handle = None
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            return None
        except _SYSTEM_ERRORS as error:
            self._fails(repr(error))
            return None
        self.trouble, self._was_read = "", True
        return Reading(used_bytes=int(memory.used), free_bytes=int(memory.free), by_pid=by_pid)

    def _memory_of(self, device: object) -> Any:
        if self.name == "unified":
            return _system_memory()
        if self._was_read:  # figures of the card and of the system must never be compared
            return _device_memory(device)
        memory = _memory(device, self._uuid)
        if isinstance(memory, _SystemMemory):
            self.name = "unified"
            self.absolute_bytes = max(self.absolute_bytes, UNIFIED_NOISE_BYTES)
        return memory

    def _fails(self, trouble: str) -> None:
        self.trouble = trouble
        log.warning("memory_unreadable", gpu=self._uuid, error=trouble)

    def holders(self) -> tuple[Holder, ...]:
        try:
            return _holders(self._device())
        except pynvml.NVMLError:  # `read` reports it, and asks anew
            return ()

    def _device(self) -> object:
        if self._handle is None:
            pynvml.nvmlInit()  # and stays initialised: otherwise every look would wake up an idle card
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        elif self._uuid.startswith("MIG-"):
            # the handle of an instance that was removed may be that of another one now
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
        return self._handle
