"""What a request may ask for: the models of the running profile."""

from typing import Literal

from msgspec import Struct

from contracts.fields import Enforcement, VideoGenerationConstraints
from contracts.keys import Scope
from contracts.tasks import Priority

# The names that model hubs and libraries use for what a model does.
Mode = Literal["text-to-video", "image-to-video"]


class ModelView(Struct, frozen=True, kw_only=True):
    """A model, and the limits of a request for it.

    *enforcement* says what becomes of a number other than a fixed one. `reject`: the gateway answers a `422`. `report`:
    it uses the fixed number, and the task lists that in `warnings`. *modes* says what the model makes a video from, in
    this profile: a prompt, a prompt and an image, or either; `constraints.image` has the limits of the image.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    enforcement: Enforcement
    modes: tuple[Mode, ...]
    constraints: VideoGenerationConstraints


class PriorityView(Struct, frozen=True, kw_only=True):
    """A class of requests; *allowed*: the caller's key may name it."""

    name: Priority
    allowed: bool


class CallerView(Struct, frozen=True, kw_only=True):
    """The caller and the scopes of the API key. *key_id* is null, and *is_open* true, while no key was ever made: then
    everybody on the gateway's machine may do everything. The bounds are those of the key; null means no bound."""

    name: str
    scopes: tuple[Scope, ...]
    key_id: str | None
    is_open: bool
    max_waiting: int | None
    max_running: int | None


class SettingsView(Struct, frozen=True, kw_only=True):
    """What a form needs: the models of the running profile with every limit, default and fixed value.

    *wait_limit_s* is the longest that a request waits for a worker (FR-017, FR-021 c). *priorities* are the classes,
    the highest first; a request that names none gets *default_priority*. The body of a request has at most
    *body_max_bytes*, including its image as base64. Tasks and their videos are kept for *keep_s*. *trace_url* leads to
    the trace of a task when `{trace_id}` in it is replaced; null if no address of Jaeger is set. *caller* and *version*
    are null only if a gateway of an earlier version answers.
    """

    profile: str
    wait_limit_s: float
    models: tuple[ModelView, ...]
    priorities: tuple[PriorityView, ...]
    default_priority: Priority
    body_max_bytes: int
    keep_s: float
    trace_url: str | None
    caller: CallerView | None
    version: str | None
