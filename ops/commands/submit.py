"""`warmlane submit`: one generation, from the command line to a file."""

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from contracts.images import BadImage, read_header
from ops.commands.client import Client, Gateway, Task, gateway_options
from ops.commands.trace import known_jaeger, trace_link

INTERRUPTED: Final = 130


def data_uri(image: Path) -> str:
    """*image* as a request carries it. Raises click.BadParameter for a file that no gateway would take."""
    try:
        content = image.read_bytes()
        media_type = read_header(content).media_type
    except (OSError, BadImage) as error:
        raise click.BadParameter(f"{image}: {error}", param_hint="--image") from error
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def request_body(model: str, prompt: str, image: Path | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of `POST /generate`: only what was given, so that the model's own values stand for the rest."""
    body = {"model": model, "prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
    if image is not None:
        body["image"] = data_uri(image)
    return body


def output_path(out: Path | None, task: Task) -> Path:
    """Where the video goes: *out*, or a name made of model and id, in the current folder or in the folder *out*."""
    name = f"{task.model}-{task.id[-12:]}.mp4"
    if out is None:
        return Path(name)
    return out / name if out.is_dir() else out


def waiting_line(task: Task) -> str:
    """What is told of a task that waits: its place in the queue, and how long that will probably take."""
    if task.queue is None:
        return "waiting for a worker"
    place = f"waiting in place {task.queue.position}"
    expected_s = task.queue.expected_wait_s
    return place if expected_s is None else f"{place}, about {expected_s:.0f} s"


def reason_of(task: Task) -> str:
    """Why *task* has no video."""
    return f"{task.error.code}: {task.error.message}" if task.error else task.status


def failure_text(task: Task, key: str) -> str:
    """Why *task* has no video, and what to do next where that is known."""
    told = f"task {task.id} failed: {reason_of(task)}"
    if task.error is not None and task.error.code == "queue_overloaded":
        told += f"\nNothing ran. Try again in a while; --idempotency-key {key} may be used again."
    return told


class Bar:
    """A progress bar on standard error that follows one task."""

    def __init__(self) -> None:
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

    def warn(self, task: Task) -> None:
        """Prints what the gateway did otherwise than it was asked to, a line each, above the bar."""
        for warning in task.warnings:
            self._progress.console.print(f"warning: {warning.message}", markup=False, highlight=False, soft_wrap=True)

    def trace(self, task: Task) -> None:
        """Prints what leads to the trace of *task*, where it is traced."""
        found = trace_link(task.trace_id, known_jaeger())
        if found is not None:
            self._progress.console.print(f"trace {found}", markup=False, highlight=False, soft_wrap=True)

    def show(self, task: Task) -> None:
        """Draws the state of *task*."""
        if task.progress is None or task.progress.step == 0:
            what = waiting_line(task) if task.status == "pending" else f"starting on {task.worker or task.route}"
            self._progress.update(self._row, description=what, completed=0, total=None, steps="")
            return
        step, steps = task.progress.step, task.progress.steps
        what = "encoding" if step == steps else f"generating on {task.worker or task.route}"
        self._progress.update(self._row, description=what, completed=step, total=steps, steps=f"step {step} of {steps}")


def generate(client: Client, body: Mapping[str, Any], key: str, out: Path | None) -> int:
    """Submits *body*, follows the task, saves the video. The exit status.

    Ctrl-C cancels the task. Raises what `Client` raises.
    """
    task: Task | None = None
    try:
        with Bar() as bar:
            # not held: the task shows its place in the queue, and Ctrl-C can cancel it by its id
            task, revision = client.submit(body, idempotency_key=key, hold=False)
            bar.warn(task)
            bar.trace(task)
            task = client.follow(task, revision, bar.show)
        if task.video is None:
            click.echo(failure_text(task, key), err=True)
            return 1
        path = output_path(out, task)
        client.download(task, path)
    except KeyboardInterrupt:
        click.echo(_interrupted(client, task, body, key), err=True)
        return INTERRUPTED
    except OSError as error:
        raise click.ClickException(f"the video cannot be saved ({error}); choose another place with --out") from error
    video = task.video
    click.echo(
        f"{path}  {video.bytes:,} bytes, {video.width}x{video.height}, {video.frames} frames at {video.fps} fps, "
        f"seed {task.parameters.seed}"
    )
    return 0


def _interrupted(client: Client, task: Task | None, body: Mapping[str, Any], key: str) -> str:
    try:
        if task is None:
            # its answer had not been read: the same request with the same key finds the task, if it was accepted
            task = client.find(body, idempotency_key=key)
        if task.has_ended:
            return f"interrupted; the task is {task.status}, and its video stays at {client.url}/tasks/{task.id}/video"
        ended = client.cancel(task)
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


@click.command(
    epilog="Examples:\n\n  warmlane submit anisora 'a red fox in fresh snow'\n\n"
    "  warmlane submit anisora 'the boat drifts away' --image boat.png --out boat.mp4\n\n"
    "  warmlane submit phr00t 'a lantern in the rain' --num-frames 33 --seed 7"
)
@click.argument("model")
@click.argument("prompt")
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A PNG, JPEG or WebP that the video starts from. The production profile's anisora needs one; for other models "
    "and profiles, `constraints.image` in GET /settings says whether it is required, optional or unsupported.",
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
    "--idempotency-key",
    help="The same key and request lead to the same task, however often they are sent. [default: a new one]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the video, or a folder for it. [default: MODEL-ID.mp4 in the current folder]",
)
@gateway_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    prompt: str,
    image: Path | None,
    idempotency_key: str | None,
    out: Path | None,
    gateway: Gateway,
    **fields: Any,
) -> None:
    """Generate one video and save it.

    MODEL is a name or an alias from GET /settings. Ctrl-C cancels the task.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    body = request_body(model, prompt, image, fields)
    with gateway.client() as client:
        ctx.exit(generate(client, body, idempotency_key or str(uuid.uuid4()), out))
