"""`GenerationTask`: the record that says everything about where a task is. Queues only carry it to a worker."""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal
from uuid import UUID

import msgspec
from msgspec import Struct

TIMELINE_MAX: Final = 24


class TaskStatus(StrEnum):
    """The four statuses a user sees (spec, Observability)."""

    PENDING = "pending"
    PROCESSING = "processing"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (TaskStatus.DONE, TaskStatus.FAILED)


class FailureCode(StrEnum):
    """Why a task failed. Clients switch on these; the list only grows."""

    QUEUE_OVERLOADED = "queue_overloaded"
    CANCELLED = "cancelled"
    OUT_OF_MEMORY = "out_of_memory"
    INFERENCE_FAILED = "inference_failed"
    INFERENCE_TIMEOUT = "inference_timeout"
    WORKER_LOST = "worker_lost"
    INVALID_INPUT = "invalid_input"
    STORAGE_FAILED = "storage_failed"


class ImageReference(Struct, frozen=True, kw_only=True):
    """An input image, which travels through the artifact store and not through the queue."""

    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int


class GenerationParameters(Struct, frozen=True, kw_only=True):
    """The parameters as accepted: every default filled in, the seed that will be used."""

    prompt: str
    negative_prompt: str
    image: ImageReference | None
    width: int
    height: int
    num_frames: int
    fps: int
    seed: int
    steps: int
    cfg: float


class Progress(Struct, frozen=True, kw_only=True):
    """Inference steps finished, of how many."""

    step: int
    steps: int


class TaskError(Struct, frozen=True, kw_only=True):
    """Why a task failed, for a program and for a person."""

    code: FailureCode
    message: str


class VideoFile(Struct, frozen=True, kw_only=True):
    """A finished MP4 in the artifact store."""

    path: str
    bytes: int
    sha256: str
    width: int
    height: int
    frames: int
    fps: int


class MemoryReading(Struct, frozen=True, kw_only=True):
    """Memory of the host child after cleanup (FR-009), in bytes. CUDA figures are None without a card."""

    rss_bytes: int
    cuda_allocated_bytes: int | None = None
    cuda_reserved_bytes: int | None = None
    cuda_peak_allocated_bytes: int | None = None
    cleanup_s: float = 0.0


class LaneInput(Struct, frozen=True, kw_only=True):
    """One lane as the routing decision saw it."""

    worker: str
    state: str
    healthy_at: datetime


class RoutingDecision(Struct, frozen=True, kw_only=True):
    """The inputs and the outcome of a routing decision, kept so that it can be derived again."""

    at: datetime
    forced_degraded: bool
    lanes: tuple[LaneInput, ...]
    outcome: str


class TimelineEntry(Struct, frozen=True, kw_only=True):
    """One line of a task's short history."""

    at: datetime
    event: str
    detail: str = ""


class GenerationTask(Struct, frozen=True, kw_only=True):
    """One generation, from acceptance to its single end. Moved by compare-and-set only (design §4).

    *epoch* grows by one with every new placement; *attempt* counts claims; *owner* is the nonce of the worker
    process that holds it; *deadline_at* is the end of the wait for a worker; *lease_expires_at* is when a silent
    owner loses it.
    """

    id: str
    model: str
    parameters: GenerationParameters
    request_sha256: str
    status: TaskStatus
    route: Literal["lane", "degraded"]
    epoch: int
    created_at: datetime
    queued_at: datetime
    deadline_at: datetime
    caller: str = "anonymous"
    attempt: int = 0
    owner: str | None = None
    worker: str | None = None
    decision: RoutingDecision | None = None
    claimed_at: datetime | None = None
    lease_expires_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    error: TaskError | None = None
    video: VideoFile | None = None
    memory: MemoryReading | None = None
    traceparent: str | None = None
    timeline: tuple[TimelineEntry, ...] = ()

    @property
    def message_id(self) -> str:
        """The duplicate key of this placement's queue message (`Nats-Msg-Id`)."""
        return f"{self.id}.{self.epoch}"

    @property
    def image_path(self) -> str | None:
        """Where the input image is in the artifact store; None without one."""
        image = self.parameters.image
        return None if image is None else f"images/{self.id}.{image.sha256[:16]}"

    @property
    def video_path(self) -> str:
        """Where the video of this placement goes. The epoch keeps a late loser from overwriting the winner."""
        return f"videos/{self.id}.{self.epoch}.mp4"


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(GenerationTask)


class UnreadableTask(ValueError):
    """The bytes are not a GenerationTask."""


def encode_task(task: GenerationTask) -> bytes:
    """*task* as JSON, the form in which it is stored and queued."""
    return _ENCODER.encode(task)


def decode_task(data: bytes) -> GenerationTask:
    """The task in *data*. Unknown fields are ignored. Raises UnreadableTask on anything else."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec raises UnicodeDecodeError, not DecodeError, on bad UTF-8 inside a string (design §10.11), and
        # RecursionError on deep nesting, even inside a field that it skips
        raise UnreadableTask(str(error)) from error


def keyed_task_id(caller: str, key: str, n: int = 0) -> str:
    """The id of *caller*'s request with Idempotency-Key *key*, the *n*-th one after refusals (design §4)."""
    digest = hashlib.sha256(msgspec.json.encode([caller, key, n])).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76  # version 8: an application's own hash (RFC 9562)
    number = number & ~(0x3 << 62) | 2 << 62
    return str(UUID(int=number))


def seed_of(task_id: str, span: int) -> int:
    """The seed of a request that named none: derived from the id, so that every retry of it agrees."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "big") % span
