"""`GenerationTask`: the record that says everything about where a task is. Queues only carry it to a worker."""

import hashlib
from enum import StrEnum
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from contracts.memory import MemoryReading, SwapReceipt
from contracts.nesting import Decoder, decode_json
from contracts.progress import StepsDone
from contracts.webhooks import TaskWebhook
from contracts.wire import RECORD_MAX_BYTES, Counted, Moment, Token, Unreadable, check_age, decode

TIMELINE_MAX: Final = 24
# This many workers may be asked to stop while they run a task, at no cost to it. Each further one costs an attempt.
HANDED_BACK_MAX: Final = 10


class TaskStatus(StrEnum):
    """The four statuses a user sees (spec, Observability)."""

    PENDING = "pending"
    PROCESSING = "processing"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (TaskStatus.DONE, TaskStatus.FAILED)


class Priority(StrEnum):
    """The class of a request, highest first: a task of a higher class starts first (`contracts/order.py`)."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BACKGROUND = "background"

    @property
    def rank(self) -> int:
        """0 for the highest."""
        return _PRIORITIES.index(self)


_PRIORITIES: Final = tuple(Priority)


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


class ImageReference(Struct, frozen=True, kw_only=True, gc=False):
    """An input image, which travels through the artifact store and not through the queue."""

    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    media_type: str
    bytes: int
    width: int
    height: int


class GenerationParameters(Struct, frozen=True, kw_only=True, gc=False):
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


_LabelText = Annotated[str, Meta(max_length=64)]
Labels = Annotated[dict[_LabelText, _LabelText], Meta(max_length=8)]
"""The labels of a task, by key (`contracts/generation/labels.py`)."""


KEEP_MIN_S: Final = 60
KEEP_MAX_S: Final = 10**10
"""A request may ask to keep its task, once it has ended, for a time between these and within the operator's
`--keep`."""


class ReplacedParameter(Struct, frozen=True, kw_only=True, gc=False):
    """A fixed parameter for which the request named another value, under the enforcement `report`.

    *used* is the fixed value; *got* is the request's number, or words for one that is too large to repeat.
    """

    field: Token
    used: int | float
    got: int | float | str


class TaskError(Struct, frozen=True, kw_only=True, gc=False):
    """Why a task failed, for a program and for a person."""

    code: FailureCode
    message: str


class ThumbnailFile(Struct, frozen=True, kw_only=True, gc=False):
    """A frame of a video, as WebP in the artifact store."""

    path: str
    bytes: int
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class VideoFile(Struct, frozen=True, kw_only=True, gc=False):
    """A finished MP4 in the artifact store. *thumbnail* is None where none could be made or stored, and in records of
    versions that made none."""

    path: str
    bytes: int
    sha256: Annotated[str, Meta(pattern=r"\A[ !#-~]{0,128}\Z")]
    width: int
    height: int
    frames: int
    fps: int
    thumbnail: ThumbnailFile | None = None


class LaneInput(Struct, frozen=True, kw_only=True, gc=False):
    """One lane as the routing decision saw it; *leaving_for* is the denial because of which it was leaving, if any."""

    worker: str
    state: str
    healthy_at: Moment
    leaving_for: Literal["quota"] | None = None


class RoutingDecision(Struct, frozen=True, kw_only=True, gc=False):
    """The inputs and the outcome of a routing decision, kept so that it can be derived again.

    *lanes_passed*: the lanes had their turn and did not take the task, because their queue was full or the wait ran
    out. A lane counts as lost after *health_timeout_s* of silence. *judged_at* is the moment up to which silence
    counts. None means *at*; otherwise the gateway had been cut off at that moment, and decided soon after it came back.
    """

    at: Moment
    forced_degraded: bool
    lanes: tuple[LaneInput, ...]
    outcome: str
    lanes_passed: bool = False
    health_timeout_s: Annotated[float, Meta(ge=0, le=1e6)] = 60.0
    judged_at: Moment | None = None


class WaitingGroup(Struct, frozen=True, kw_only=True, gc=False):
    """The tasks of one model and class that waited when a worker chose; the oldest had waited for *oldest_s*."""

    model: Token
    priority: Priority
    count: Counted
    oldest_s: float


class OrderDecision(Struct, frozen=True, kw_only=True, gc=False):
    """Why a worker started a task at *at*, and none of the others. *waiting* are all tasks that waited then, the
    started one among them.

    *rules* are those of `contracts.order.choose`. *loaded* is the model that was loaded then, *slice_left_s* what was
    left of its slice.
    """

    at: Moment
    order: str
    rules: tuple[int, ...]
    loaded: str | None
    slice_left_s: float
    waiting: tuple[WaitingGroup, ...]


class TimelineEntry(Struct, frozen=True, kw_only=True, gc=False):
    """One line of a task's short history."""

    at: Moment
    event: str
    detail: str = ""


class GenerationTask(Struct, frozen=True, kw_only=True, gc=False):
    """One generation, from acceptance to its single end. Moved by compare-and-set only (design §4).

    - *epoch* grows by one with every new placement.
    - *attempt* counts claims. *handed_back* counts the claims that a worker gave back because it was asked to stop, up
      to HANDED_BACK_MAX.
    - *owner* is the nonce of the worker process that holds the task.
    - *deadline_at* is the end of the wait for a worker. *lease_expires_at* is when a silent owner loses the task.
    - *priority* is its class, which orders the tasks that wait (`contracts/order.py`).
    - *order* is why the worker of the newest claim started it when it did.
    - *displaced* is the task whose place on the full degraded queue it took; *displaced_by* is the task that took its
      own place (ADR 0039).
    - *promised*: a client was given the id. From then on only a cancel may take the task back.
    - *withdrawn*: every caller had hung up before any of them was given the id, or the batch that it came with was not
      accepted.
    - *replaced* is what the request asked for and did not get. It is stored for a client that asks later: after an
      answer was lost, or with the same Idempotency-Key.
    - *webhook* is the address that the request asked to be notified; *labels* are the labels of the request.
    - *keep_s* is how long the request asked to keep the task after its end; None means the operator's `--keep`.
    - *traceparent* is where the trace began. *attempt_traceparent* is the span of the newest claim; the process that
      finds the worker lost ends that span in the worker's stead.
    """

    id: Token
    model: Token
    parameters: GenerationParameters
    request_sha256: str
    status: TaskStatus
    route: Literal["lane", "degraded"]
    epoch: Counted
    created_at: Moment
    queued_at: Moment
    deadline_at: Moment
    caller: str = "anonymous"
    priority: Priority = Priority.STANDARD
    attempt: Counted = 0
    handed_back: Counted = 0
    owner: str | None = None
    worker: str | None = None
    decision: RoutingDecision | None = None
    order: OrderDecision | None = None
    displaced: Token | None = None
    displaced_by: Token | None = None
    claimed_at: Moment | None = None
    lease_expires_at: Moment | None = None
    finished_at: Moment | None = None
    progress: StepsDone | None = None
    error: TaskError | None = None
    video: VideoFile | None = None
    memory: MemoryReading | None = None
    swap: SwapReceipt | None = None
    promised: bool = True
    withdrawn: bool = False
    replaced: tuple[ReplacedParameter, ...] = ()
    webhook: TaskWebhook | None = None
    labels: Labels = {}
    keep_s: Annotated[int, Meta(ge=0, le=KEEP_MAX_S)] | None = None
    traceparent: str | None = None
    attempt_traceparent: str | None = None
    timeline: tuple[TimelineEntry, ...] = ()

    @property
    def message_id(self) -> str:
        """The duplicate key of this placement's queue message (`Nats-Msg-Id`)."""
        return f"{self.id}.{self.epoch}"

    @property
    def trace_id(self) -> str | None:
        """The id of its trace, as Jaeger shows it; None if it is not traced."""
        parts = (self.traceparent or "").split("-")
        return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None

    @property
    def lost_attempts(self) -> int:
        """How many of its claims count against the limit: all but those that were handed back."""
        return self.attempt - self.handed_back

    @property
    def was_refused(self) -> bool:
        """Whether it ended and its caller was asked to try again, so that its Idempotency-Key may be used again.
        Nothing had run, unless it was taken back with its batch."""
        if self.error is None:
            return False
        if self.withdrawn:
            return True
        return not self.attempt and self.error.code in (FailureCode.QUEUE_OVERLOADED, FailureCode.STORAGE_FAILED)

    @property
    def image_path(self) -> str | None:
        """Where the input image is in the artifact store; None without one."""
        image = self.parameters.image
        return None if image is None else f"images/{self.id}.{image.sha256[:16]}"

    @property
    def video_path(self) -> str:
        """Where the video of this placement goes. The epoch keeps a late loser from overwriting the winner."""
        return f"videos/{self.id}.{self.epoch}.mp4"

    @property
    def thumbnail_path(self) -> str:
        """Where a frame of that video goes."""
        return f"thumbnails/{self.id}.{self.epoch}.webp"


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = Decoder(GenerationTask)


class UnreadableTask(Unreadable):
    """The bytes are not a GenerationTask."""


class UnreadableRecord(UnreadableTask):
    """A record of the task exists, cannot be read, and may be of a newer version: the task's message is left alone."""


def encode_task(task: GenerationTask) -> bytes:
    """*task* as JSON, the form in which it is stored and queued."""
    return _ENCODER.encode(task)


def decode_task(data: bytes) -> GenerationTask:
    """The task in *data*. Unknown fields are ignored. Raises UnreadableTask on anything else.

    Names in the decoded task can be used in subjects, and its paths are those of its own files in the artifact store.
    """
    try:
        task = decode(data, _DECODER, max_bytes=RECORD_MAX_BYTES)
        if task.decision is not None:
            check_age(task.decision)
    except Unreadable as error:
        raise UnreadableTask(str(error)) from None
    if task.video is not None and not _is_path_in("videos", task.video.path, task.id):
        raise UnreadableTask("a path that is not one of the task's videos - at `$.video.path`")
    thumbnail = None if task.video is None else task.video.thumbnail
    if thumbnail is not None and not _is_path_in("thumbnails", thumbnail.path, task.id):
        raise UnreadableTask("a path that is not one of the task's thumbnails - at `$.video.thumbnail.path`")
    return task


def may_be_newer(task_id: str, data: bytes) -> bool:
    """Whether *data*, which this version cannot read, may be the task *task_id* as a newer version writes it.

    Data that is not JSON, is too large, or belongs to another task will never be readable.
    """
    try:
        decode_task(data)
        return False
    except UnreadableTask:
        pass
    try:
        found = decode_json(data, object) if len(data) <= RECORD_MAX_BYTES else None
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and found.get("id") == task_id


def decode_task_of(task_id: str, data: bytes) -> GenerationTask:
    """As `decode_task`, for the record of *task_id*. Raises UnreadableTask also for the record of another task."""
    task = decode_task(data)
    if task.id != task_id:
        raise UnreadableTask("it is another task's - at `$.id`")
    return task


def _is_path_in(folder: str, path: str, task_id: str) -> bool:
    return path.startswith(f"{folder}/{task_id}.") and "/" not in path.removeprefix(f"{folder}/") and ".." not in path


def keyed_task_id(caller: str, key: str, n: int = 0) -> str:
    """The id of *caller*'s request with Idempotency-Key *key*, after *n* refusals (design §4)."""
    digest = hashlib.sha256(msgspec.json.encode([caller, key, n])).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76  # version 8: an application's own hash (RFC 9562)
    number = number & ~(0x3 << 62) | 2 << 62
    return str(UUID(int=number))


def seed_of(task_id: str, span: int) -> int:
    """The seed of a request that named none: derived from the id, so that every retry of it agrees."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "big") % span
