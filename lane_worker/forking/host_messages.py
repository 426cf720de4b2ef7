"""The pipe between a worker and its pipeline host: every message, tagged, as MessagePack with a 4-byte length.

One protocol, one file; `tests/unit/lane_worker/test_host_messages.py` pins its bytes. The parent is
`host_child.py`; the child is `lane_worker/pipelines/child.py`. This module imports neither torch nor asyncio.
"""

import struct
from typing import Final, Literal

import msgspec
from msgspec import Struct

from contracts.checkpoints import Checkpoint
from contracts.memory import MemoryReading
from contracts.nesting import MsgpackDecoder
from contracts.tasks import GenerationParameters

MAX_MESSAGE_BYTES: Final = 1 << 20
LENGTH: Final = struct.Struct(">I")
PID: Final = struct.Struct(">q")
EXIT_CODE: Final = struct.Struct(">i")
"""What a host ended with, as its fork server reports it: an exit status, or a signal's number, negative."""
Role = Literal["lane", "degraded"]


class Fork(Struct, frozen=True, tag="fork"):
    """To the fork server, which answers with the child's pid (`PID`). It comes with the child's end of the pipe, and
    with a socket on which the fork server reports what the child ended with (`EXIT_CODE`).

    *role* and *term* go into the slot's note: they decide which leader may kill this child (`slot.may_take_over`).
    *oom_snapshots* is how many snapshots of memory that ran out are kept in *oom_dir*; with 0 none is made. The child
    loads, runs and releases a tiny pipeline for each of *rehearse* before it is ready.
    """

    slot: str
    lock_dir: str
    lock_wait_s: float
    role: Role
    term: int
    oom_dir: str = ""
    oom_snapshots: int = 0
    rehearse: tuple[Checkpoint, ...] = ()
    worker: str = ""
    """The name of the worker that asks, for the slot's note."""


class Load(Struct, frozen=True, tag="load"):
    """Load this checkpoint from *models_dir*; answered by `Loaded` or `Failed`. Tiny weights are made if absent.

    It takes *load_seconds* at least, and each step of its inferences *step_seconds* more: to imitate a real card.
    """

    model: str
    checkpoint: Checkpoint
    models_dir: str
    step_seconds: float = 0.0
    load_seconds: float = 0.0


class Unload(Struct, frozen=True, tag="unload"):
    """Drop the pipeline and give its memory back; answered by `Unloaded`, also where nothing is resident."""


class Generate(Struct, frozen=True, tag="generate"):
    """Run one inference and write an MP4 to *video_path*; answered by `StepFinished`…, then `Finished`,
    `Cancelled` or `Failed`.

    *attempt* 0 is a warm-up: `Load.step_seconds` does not slow it down.
    """

    task_id: str
    attempt: int
    parameters: GenerationParameters
    video_path: str
    image_path: str | None = None


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop *task_id* at the next step; answered by `Cancelled` unless it had ended."""

    task_id: str


class Ping(Struct, frozen=True, tag="ping"):
    """Answered at once by `Pong`, also during an inference."""

    number: int


class Exit(Struct, frozen=True, tag="exit"):
    """Leave, with exit status 0."""


ToChild = Load | Unload | Generate | Cancel | Ping | Exit


class Rehearsed(Struct, frozen=True):
    """The rehearsal took *seconds*; *error* is what went wrong in it, empty where nothing did."""

    seconds: float
    error: str = ""


class Ready(Struct, frozen=True, tag="ready"):
    """The child runs and holds the lock of its slot. *unfinished* is what the lock's last holder left undone.

    *rehearsed* is None where there was nothing to rehearse.
    """

    pid: int
    unfinished: "SlotNote | None" = None
    rehearsed: Rehearsed | None = None


class SlotBusy(Struct, frozen=True, tag="slot_busy"):
    """The slot's lock stayed with another process; the child leaves."""

    holder: "SlotNote | None"


class Loaded(Struct, frozen=True, tag="loaded"):
    """The model is resident. *read_s* and *copy_s* are parts of *seconds* (`SwapReceipt`)."""

    model: str
    seconds: float
    memory: MemoryReading
    read_s: float | None = None
    copy_s: float | None = None


class Unloaded(Struct, frozen=True, tag="unloaded"):
    """Nothing is resident any more, as far as the child knows: *alive* names the components it could not let go of.

    *allocated_bytes* is what torch's CUDA allocator still counts as in use; None without a card.
    """

    alive: tuple[str, ...]
    allocated_bytes: int | None
    seconds: float
    memory: MemoryReading


class StepFinished(Struct, frozen=True, tag="progress"):
    """*step* of *steps* is finished; *at_s* is wall-clock time (Unix). Step 0 marks the start of the inference."""

    task_id: str
    step: int
    steps: int
    at_s: float


WebP = bytes  # in `WrittenVideo`, "bytes" is a number of them


class WrittenVideo(Struct, frozen=True):
    """The MP4 that was written to `Generate.video_path`, and a frame of it as WebP; empty where none could be made."""

    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    fps: int
    thumbnail: WebP = b""


class Finished(Struct, frozen=True, tag="finished"):
    """Done; memory is cleaned."""

    task_id: str
    video: WrittenVideo
    inference_s: float
    encode_s: float
    memory: MemoryReading


class Cancelled(Struct, frozen=True, tag="cancelled"):
    """Stopped on request; memory is cleaned, no video was left."""

    task_id: str
    memory: MemoryReading


class Failed(Struct, frozen=True, tag="failed"):
    """A load (*task_id* None) or an inference failed; memory is cleaned where that was possible.

    *fatal*: the process cannot be trusted any more (a CUDA error), so the parent kills it. *snapshot* is the file that
    was written because memory ran out, if any. Sent in place of `Ready`, it says why the child does not serve;
    *lasting* means that no other child would. Sent in place of `Unloaded`, it says what ended the child.
    """

    task_id: str | None
    code: Literal["out_of_memory", "inference_failed", "invalid_input", "storage_failed"]
    message: str
    memory: MemoryReading
    fatal: bool = False
    snapshot: str = ""
    lasting: bool = False


class Pong(Struct, frozen=True, tag="pong"):
    """The child's reader answers, so the process is alive and not stuck with the interpreter held."""

    number: int


FromChild = Ready | SlotBusy | Loaded | Unloaded | StepFinished | Finished | Cancelled | Failed | Pong


class SlotNote(Struct, frozen=True):
    """Content of a slot's lock file: who holds the slot, what is resident, and which task runs.

    *worker* and *host* name the worker and its machine or container, for people; empty in a note of an earlier version.
    *pid* and *started* (clock ticks since boot; None where the system does not say) identify one process for ever.
    *term* is the leadership that the process was started under, 0 in a lane. Where a holder ends in the middle of a
    task, the next one finds the task here and writes its memory line (FR-008, FR-009).
    """

    pid: int
    started: int | None
    role: Role
    term: int
    model: str | None = None
    task_id: str | None = None
    attempt: int = 0
    worker: str = ""
    host: str = ""

    @property
    def who(self) -> str:
        """The holder, for people: in a container its pid means nothing to anybody else."""
        if not self.worker:
            return f"process {self.pid}"
        return f"worker {self.worker} on host {self.host} (process {self.pid} there)"


class BadMessage(ValueError):
    """What came over the pipe is not of this protocol."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_FORK: Final[MsgpackDecoder[Fork]] = MsgpackDecoder(Fork)
_TO_CHILD: Final[MsgpackDecoder[ToChild]] = MsgpackDecoder(ToChild)
_FROM_CHILD: Final[MsgpackDecoder[FromChild]] = MsgpackDecoder(FromChild)


def frame(message: ToChild | FromChild) -> bytes:
    """*message* as it travels: its length, then its body."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message of {len(body)} bytes is over the limit")
    return LENGTH.pack(len(body)) + body


def body_length(head: bytes) -> int:
    """The length of the body that follows *head* (4 bytes). Raises BadMessage over the limit."""
    (length,) = LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message claims {length} bytes")
    return int(length)


def encode_fork(request: Fork) -> bytes:
    """*request* as it travels to the fork server, whole: no length comes before it."""
    return _ENCODER.encode(request)


def decode_fork(body: bytes) -> Fork:
    """Raises BadMessage."""
    try:
        return _FORK.decode(body)
    except msgspec.DecodeError as error:
        raise BadMessage(str(error)) from error


def decode_to_child(body: bytes) -> ToChild:
    """Raises BadMessage."""
    try:
        return _TO_CHILD.decode(body)
    except msgspec.DecodeError as error:
        raise BadMessage(str(error)) from error


def decode_from_child(body: bytes) -> FromChild:
    """Raises BadMessage."""
    try:
        return _FROM_CHILD.decode(body)
    except msgspec.DecodeError as error:
        raise BadMessage(str(error)) from error
