"""The request to a script that calls the pipelines itself, and its answer: a line of JSON each."""

from msgspec import Struct

from contracts.tasks import GenerationParameters


class Job(Struct, frozen=True):
    """A video to make, with *model* and the parameters of the accepted task."""

    model: str
    parameters: GenerationParameters


class Made(Struct, frozen=True):
    """What was made. *seconds* is the time from reading the line until the video is complete in its file. *load_s* (0
    where the pipeline was resident) and *inference_s* are parts of it."""

    sha256: str
    seconds: float
    load_s: float
    inference_s: float
