"""`warmlane submit`: one generation, from the command line to a file."""

import base64
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from contracts.api.tasks import TaskView
from contracts.generation.labels import LABELS_MAX
from contracts.images import BadImage, read_header
from contracts.tasks import Priority
from contracts.uploads import is_ref
from ops.commands.api.client import CommandClient
from ops.commands.api.options import Gateway, gateway_options
from ops.commands.api.problems import NotWarmlane, Refused
from ops.commands.durations import Duration, whole_seconds
from ops.commands.option_types import labels_given
from ops.commands.options import trace_link_option
from ops.commands.saving import require_writable, save
from ops.commands.trace import known_jaeger, trace_link
from warmlane_client.core.retries import SERVICE_UNAVAILABLE, Busy, pause_s

INTERRUPTED: Final = 130
OVERLOADED: Final = "queue_overloaded"


def data_uri(image: Path) -> str:
    """*image* as a request carries it. Raises click.BadParameter for a file that no gateway would take."""
    try:
        content = image.read_bytes()
        media_type = read_header(content).media_type
    except (OSError, BadImage) as error:
        raise click.BadParameter(f"{image}: {error}", param_hint="--image") from error
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


class ImageArgument(click.Path):
    """A file, or an image elsewhere: its address, or the reference of an upload."""

    name = "image"

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
            return {"url": value}
        if isinstance(value, str) and is_ref(value):
            return {"ref": value}
        return super().convert(value, param, ctx)


def request_body(
    model: str, prompt: str, image: Path | dict[str, str] | None, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of `POST /generate`: only what was given, so that the model's own values apply to the rest."""
    body = {"model": model, "prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
    if image is not None:
        body["image"] = data_uri(image) if isinstance(image, Path) else image
    return body


def waiting_line(task: TaskView) -> str:
    """What is shown of a task that waits: its place in the queue, and how long that will probably take."""
    if task.queue is None:
        return "waiting for a worker"
    place = f"waiting in place {task.queue.position}"
    expected_s = task.queue.expected_wait_s
    return place if expected_s is None else f"{place}, about {expected_s:.0f} s"


def progress_line(task: TaskView) -> str:
    """What is shown of a task that runs: its step, and how long it will probably take."""
    if task.progress is None:
        return ""
    step = f"step {task.progress.step} of {task.progress.steps}"
    left_s = task.progress.eta_s
    return step if left_s is None else f"{step}, about {left_s:.0f} s left"


def reason_of(task: TaskView) -> str:
    """Why *task* has no video."""
    return f"{task.error.code}: {task.error.message}" if task.error else task.status


def failure_text(task: TaskView, key: str) -> str:
    """Why *task* has no video, and what to do next where that is known."""
    text = f"task {task.id} failed: {reason_of(task)}"
    if task.error is not None and task.error.code == "queue_overloaded":
        text += f"\nNothing ran. Try again in a while, or with --retry 10m; --idempotency-key {key} may be used again."
    return text


class Bar:
    """A progress bar on standard error that follows one task."""

    def __init__(self, jaeger_url: str | None = None) -> None:
        """With *jaeger_url*, or where the environment names one, a trace is shown as a link."""
        self._jaeger_url = jaeger_url or known_jaeger()
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._row = self._progress.add_task("submitting", total=None, steps="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def accepted(self, client: CommandClient, task: TaskView) -> None:
        """Prints where *task* is, what the gateway changed in the request, and how to find the trace."""
        self.say(f"accepted: {client.url}/tasks/{task.id}")
        for warning in task.warnings:
            self.say(f"warning: {warning.message}")
        found = trace_link(task.trace_id, self._jaeger_url)
        if found is not None:
            self.say(f"trace {found}")

    def show(self, task: TaskView) -> None:
        """Draws the state of *task*."""
        if task.progress is None or task.progress.step == 0:
            what = waiting_line(task) if task.status == "pending" else f"starting on {task.worker or task.route}"
            self._progress.update(self._row, description=what, completed=0, total=None, steps="")
            return
        step, steps = task.progress.step, task.progress.steps
        what = "encoding" if step == steps else f"generating on {task.worker or task.route}"
        self._progress.update(self._row, description=what, completed=step, total=steps, steps=progress_line(task))


class SubmitRun:
    """One request: sent again where the system is busy, and followed to its end."""

    def __init__(self, client: CommandClient, body: Mapping[str, Any], key: str, *, retry_s: float = 0.0) -> None:
        """A 503 is tried again for *retry_s*, always under the same *key*."""
        self._client = client
        self._body = body
        self._key = key
        self._until_s = time.monotonic() + retry_s
        self._tries = 0
        self.task: TaskView | None = None
        """The task in hand; None before anything was accepted."""
        self.is_nowhere = True
        """Whether it is certain that no task of this request runs or waits."""

    def run(self, bar: "Bar") -> TaskView:
        """The task when it has ended. Raises what `CommandClient` raises."""
        while True:
            self._tries += 1
            try:
                self.is_nowhere = False
                # not held: the task shows its place in the queue, and Ctrl-C can cancel it by its id
                self.task, revision = self._client.submit(self._body, idempotency_key=self._key, hold=False)
            except (Refused, NotWarmlane) as error:
                busy, code = _busy(error)
                self.is_nowhere = code != "transport_unavailable"
                if not self._waits(bar, busy, code):
                    raise self._client.health.explained(error) from error
                continue
            bar.accepted(self._client, self.task)
            self.task = self._client.follow(self.task, revision, bar.show)
            if self.task.error is None or self.task.error.code != OVERLOADED:
                return self.task
            ended, self.task, self.is_nowhere = self.task, None, True
            if not self._waits(bar, Busy(SERVICE_UNAVAILABLE), OVERLOADED):
                return ended

    def _waits(self, bar: "Bar", busy: Busy, why: str) -> bool:
        wait_s = pause_s(busy, tries=self._tries, left_s=self._until_s - time.monotonic())
        if wait_s is None:
            return False
        bar.say(f"{why} ({busy.status}); trying again in {wait_s:g} s")
        time.sleep(wait_s)
        return True


def _busy(error: Refused | NotWarmlane) -> tuple[Busy, str]:
    if isinstance(error, Refused):
        return Busy(error.problem.status, error.retry_after_s), error.problem.code
    return Busy(error.status, error.retry_after_s), "unavailable"


def generate(
    client: CommandClient,
    body: Mapping[str, Any],
    key: str,
    out: Path | None,
    *,
    retry_s: float = 0.0,
    jaeger_url: str | None = None,
) -> int:
    """Submits *body*, follows the task, saves the video. Returns the exit status.

    A 503 is tried again for *retry_s*. Ctrl-C cancels the task. Raises NotSaved, and what `CommandClient` raises.
    """
    submission = SubmitRun(client, body, key, retry_s=retry_s)
    try:
        with Bar(jaeger_url) as bar:
            task = submission.run(bar)
        if task.video is None:
            click.echo(failure_text(task, key), err=True)
            return 1
        path = save(client, task, out)
    except KeyboardInterrupt:
        if submission.is_nowhere:
            click.echo("interrupted; nothing was accepted", err=True)
        else:
            click.echo(_interrupted(client, submission.task, body, key), err=True)
        return INTERRUPTED
    click.echo(saved_line(path, task))
    return 0


def saved_line(path: Path, task: TaskView) -> str:
    """What is shown of the video of *task* that was saved at *path*."""
    video = task.video
    assert video is not None
    return (
        f"{path}  {video.bytes:,} bytes, {video.width}x{video.height}, {video.frames} frames at {video.fps} fps, "
        f"seed {task.parameters.seed}"
    )


def _interrupted(client: CommandClient, task: TaskView | None, body: Mapping[str, Any], key: str) -> str:
    try:
        if task is None:
            # the answer had not been read: the same request with the same key finds the task, if it was accepted
            task = client.find(body, idempotency_key=key)
        if task.has_ended:
            return f"interrupted; the task is {task.status}, and its video stays at {client.url}/tasks/{task.id}/video"
        ended = client.cancel(task.id)
    except click.ClickException as error:
        if task is None:
            return (
                f"interrupted while submitting, and nobody knows whether it was accepted: {error.message}\n"
                f"--idempotency-key {key} finds the task, if it was"
            )
        return f"interrupted, but task {task.id} could not be cancelled: {error.message}"
    if ended.error is not None and ended.error.code == "cancelled":
        return f"cancelled task {task.id}"
    return f"interrupted; task {task.id} had ended already ({ended.status})"


out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the video, or a folder for it. [default: MODEL-ID.mp4 in the current folder]",
)
retry_option = click.option(
    "--retry",
    "retry_s",
    type=Duration(),
    help="Where the system has no room, or is away for a moment (503), try again when it says so, for this long in "
    "all, as in 30s or 10m. [default: not at all]",
)


@click.command(
    epilog="Examples:\n\n  warmlane submit anisora 'a red fox in fresh snow'\n\n"
    "  warmlane submit anisora 'the boat drifts away' --image boat.png --out boat.mp4\n\n"
    "  warmlane submit anisora 'the boat drifts away' --image https://images.example.com/boat.png\n\n"
    "  warmlane submit phr00t 'a lantern in the rain' --num-frames 33 --seed 7\n\n"
    "  warmlane submit phr00t 'a paper boat' --retry 10m   (waits for its turn where the system is busy)"
)
@click.argument("model")
@click.argument("prompt")
@click.option(
    "--image",
    type=ImageArgument(),
    metavar="FILE|URL|REF",
    help="A PNG, JPEG or WebP that the video starts from: a file, the address of one on a host from which the gateway "
    "fetches images, or the id of an image that was uploaded (img_…). The production profile's anisora needs one; for "
    "other models and profiles, `constraints.image` in GET /settings says whether it is required, optional or "
    "unsupported.",
)
@click.option("--negative-prompt", help="What should not be seen.")
@click.option("--width", type=int, help="Pixels, a multiple of 16.")
@click.option("--height", type=int, help="Pixels, a multiple of 16.")
@click.option("--num-frames", type=int, help="8k+1 with anisora, 4k+1 with phr00t, such as 17 or 81.")
@click.option("--fps", type=int, help="Frames per second.")
@click.option("--seed", type=int, help="The same seed gives the same video. Without it, one is chosen and shown.")
@click.option("--steps", type=int, help="Inference steps; fixed for most models, so best left out.")
@click.option("--cfg", type=float, help="Guidance scale; fixed for some models.")
@click.option(
    "--priority",
    type=click.Choice([each.value for each in Priority]),
    help="Its class: waiting tasks of a higher class start first. [default: standard, or what the API key may name]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=labels_given,
    metavar="KEY:VALUE",
    help=f"A name of your own, by which `warmlane tasks list --label` finds it. Up to {LABELS_MAX}, each repeated.",
)
@click.option(
    "--keep",
    "keep_s",
    type=Duration(),
    callback=whole_seconds,
    help="How long the task is kept once it has ended, as in 2h: then it is forgotten, with its video. From 1m to what "
    "the gateway keeps. [default: as long as the gateway keeps tasks]",
)
@click.option(
    "--idempotency-key",
    help="The same key and request lead to the same task, however often they are sent. [default: a new one]",
)
@out_option
@retry_option
@trace_link_option
@gateway_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    prompt: str,
    image: Path | dict[str, str] | None,
    idempotency_key: str | None,
    out: Path | None,
    retry_s: float | None,
    jaeger_url: str | None,
    gateway: Gateway,
    **fields: Any,
) -> None:
    """Generate one video and save it.

    MODEL is a name or an alias from GET /settings. The task's address is printed as soon as it is accepted; Ctrl-C
    cancels the task.
    """
    require_writable(out)
    body = request_body(model, prompt, image, fields)
    with gateway.client() as client:
        key = idempotency_key or str(uuid.uuid4())
        ctx.exit(generate(client, body, key, out, retry_s=retry_s or 0.0, jaeger_url=jaeger_url))
