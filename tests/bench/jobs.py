"""What a script that calls the pipelines itself is asked, and answers: a line of JSON each."""

from msgspec import Struct

from contracts.tasks import GenerationParameters


class Job(Struct, frozen=True):
    """A video to make: with *model*, and as the accepted task says it."""

    model: str
    parameters: GenerationParameters


class Made(Struct, frozen=True):
    """What was made. *seconds* from when the line was read, to the video complete in its file; how long thereof the
    load took (0 where the pipeline was there) and the inference."""

    sha256: str
    seconds: float
    load_s: float
    inference_s: float
