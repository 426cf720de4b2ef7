"""What can be asked for: the models of the running profile."""

from typing import Literal

from msgspec import Struct

from contracts.fields import Enforcement, VideoGenerationConstraints

# As model hubs and libraries call what a model does.
Mode = Literal["text-to-video", "image-to-video"]


class ModelView(Struct, frozen=True, kw_only=True):
    """A model and what a request for it is checked against.

    *enforcement* says what becomes of a number other than a fixed one: `reject`, a `422`, or `report`, the fixed one is
    used and the task says so in `warnings`. *modes* says what the model makes a video from, in this profile: a prompt,
    a prompt and an image, or either; `constraints.image` has the limits of the image.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    enforcement: Enforcement
    modes: tuple[Mode, ...]
    constraints: VideoGenerationConstraints


class SettingsView(Struct, frozen=True, kw_only=True):
    """What a form needs: the models of the running profile with every limit, default and fixed value.

    *wait_limit_s* is the longest that a request waits for a worker (FR-017, FR-021 c).
    """

    profile: str
    wait_limit_s: float
    models: tuple[ModelView, ...]
