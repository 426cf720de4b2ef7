"""The requests of a demo, one after the other, and what became of each."""

import base64
import io
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from msgspec import Struct

from contracts.api.settings import ModelView
from contracts.api.tasks import TaskView
from ops.commands.api.client import CommandClient
from ops.commands.api.problems import Refused

PROMPTS: Final = (
    "a red fox in fresh snow",
    "a paper boat on a quiet lake",
    "a lantern in the rain",
    "cherry petals over a stone bridge",
    "a lighthouse in a winter storm",
    "a train through a field of rape",
    "a cat asleep on a warm roof",
    "steam above a bowl of noodles",
    "a kite over a grey beach",
    "fireflies between old cedars",
)


class Run(Struct, frozen=True, kw_only=True):
    """One request of the demo. If *task* is None, the gateway refused it, and *refusal* is the code."""

    number: int
    model: str
    accept_s: float
    task: TaskView | None = None
    refusal: str | None = None
    video: Path | None = None

    @property
    def is_done(self) -> bool:
        return self.task is not None and self.task.status == "done"

    @property
    def outcome(self) -> str:
        """`done`, `failed: CODE` or `refused: CODE`."""
        if self.task is None:
            return f"refused: {self.refusal}"
        return f"failed: {self.task.error.code}" if self.task.error else self.task.status


def model_switches(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs that follow each other and ask for different models."""
    return [(before, run) for before, run in itertools.pairwise(runs) if run.model != before.model]


class OnALane(click.ClickException):
    """A lane got a request that was meant for the degraded worker."""

    def __init__(self, model: str, models: Sequence[ModelView]) -> None:
        none = ",".join(f"{other.name}=0" for other in models)
        switches = "\n".join(f"  warmlane lane-mode {other.name} degraded" for other in models)
        super().__init__(
            f"the request for {model} went to a warm lane. Start a system without lanes:\n"
            f"  warmlane up --lanes {none}\n"
            f"or keep this one and send the models to the degraded worker (`auto` undoes it):\n{switches}"
        )


def run_one(
    client: CommandClient,
    number: int,
    body: Mapping[str, Any],
    out: Path,
    on_change: Callable[[TaskView], None] = lambda _: None,
) -> Run:
    """Submits *body*, waits for its end and saves its video in *out*; *on_change* sees every state of the task.

    Ctrl-C, or OnALane from *on_change*, cancels the task and is re-raised.
    """
    model = str(body["model"])
    begun_s = time.monotonic()
    try:
        task, revision = client.submit(body, idempotency_key=str(uuid.uuid4()))
    except Refused as error:
        return Run(number=number, model=model, accept_s=time.monotonic() - begun_s, refusal=error.problem.code)
    accept_s = time.monotonic() - begun_s
    try:
        task = client.follow(task, revision, on_change)
    except (KeyboardInterrupt, OnALane):
        client.cancel(task.id)
        raise
    video = None
    if task.video is not None:
        video = out / f"{number:02}-{model}.mp4"
        client.download(task, video)
    return Run(number=number, model=model, accept_s=accept_s, task=task, video=video)


def bodies(models: Sequence[ModelView], count: int) -> Iterator[dict[str, Any]]:
    """*count* requests that take the models in turn. Raises ImportError if one needs a picture and Pillow is absent."""
    for index in range(count):
        model = models[index % len(models)]
        body = {"model": model.name, "prompt": PROMPTS[index // len(models) % len(PROMPTS)]}
        if model.constraints.image.presence == "required":
            body["image"] = gradient_uri()
        yield body


def gradient_uri() -> str:
    """A small picture, for models that demand one. Raises ImportError without Pillow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
