"""`warmlane resubmit`: sends the request of a failed task again, as a new task.

A task that has ended stays as it is (design §4, invariant 1), so the command does not requeue it. It sends the task's
request again, with the same parameters and the same seed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from contracts.api.tasks import TaskView
from contracts.tasks import ImageReference, Priority
from ops.commands.api.client import CommandClient
from ops.commands.api.options import Gateway, gateway_options, task_id_of
from ops.commands.saving import how_to_get, require_writable, save
from ops.commands.submit import INTERRUPTED, Bar, data_uri, out_option, reason_of, saved_line

FAILED: Final = "failed"
DONE: Final = "done"


class NotToBeSent(click.ClickException):
    """Nothing was sent. The text says why, and what to do instead."""


def resubmit_key(task_id: str) -> str:
    """The Idempotency-Key of the new task, so that sending twice makes only one task."""
    return f"resubmit-{task_id}"


def request_again(original: TaskView, parameters: Mapping[str, Any], image: Path | None, *, url: str) -> dict[str, Any]:
    """The body of `POST /generate` that asks for what *original* asked for; *image* is the file that it started from.

    Its *parameters* are passed on as the gateway answered them, including those that a later version adds.

    Raises NotToBeSent if the task has not failed or its image is not given, click.BadParameter if *image* is another.
    """
    if original.status == DONE:
        raise NotToBeSent(
            f"task {original.id} is done: its video is at {url}/tasks/{original.id}/video, and the same request would "
            "give the same one; for another, use `warmlane submit`"
        )
    if original.status != FAILED:
        raise NotToBeSent(
            f"task {original.id} is {original.status}: it may still end well. To give it up first, "
            f"`warmlane tasks cancel {original.id}`"
        )
    body = {"model": original.model, **parameters}
    if original.priority != Priority.STANDARD:  # gateways of an earlier version do not know the field
        body["priority"] = str(original.priority)  # as the gateway answered it: it may be a class of a later version
    if original.labels:
        body["labels"] = original.labels
    if original.keep_s is not None:
        body["keep_s"] = original.keep_s
    body.pop("image", None)
    had = original.parameters.image
    if had is None and image is not None:
        raise click.BadParameter(f"task {original.id} started from no image; leave it out", param_hint="--image")
    if had is not None:
        body["image"] = _same_image(original.id, had, image)
    return body


def _same_image(task_id: str, had: ImageReference, image: Path | None) -> str:
    known = f"({had.media_type}, {had.bytes:,} bytes, SHA-256 {had.sha256})"
    if image is None:
        raise NotToBeSent(
            f"task {task_id} started from an image {known}; name its file with --image. If a worker had begun the "
            f"task, the artifact store still has it: images/{task_id}.{had.sha256[:16]}"
        )
    uri = data_uri(image)
    found = hashlib.sha256(image.read_bytes()).hexdigest()
    if found != had.sha256:
        raise click.BadParameter(
            f"{image} is not the image that task {task_id} started from {known}: its SHA-256 is {found}",
            param_hint="--image",
        )
    return uri


def resubmit(client: CommandClient, task_id: str, image: Path | None, out: Path | None, *, wait: bool) -> int:
    """Sends the request of *task_id* again; with *wait*, follows the new task and saves its video as `warmlane submit`
    does. Returns the exit status.

    Ctrl-C does not cancel the new task. Raises NotToBeSent, click.BadParameter, NotSaved, and what `CommandClient`
    raises.
    """
    original, answered = client.task(task_id)
    body = request_again(original, answered["parameters"], image, url=client.url)
    task, revision = client.submit(body, idempotency_key=resubmit_key(original.id), hold=False)
    click.echo(f"{task.id} is {task.status}: the request of {original.id} again, seed {task.parameters.seed}")
    if not wait:
        return 0
    try:
        with Bar() as bar:
            bar.accepted(client, task)
            task = client.follow(task, revision, bar.show)
        if task.video is None:
            click.echo(f"task {task.id} failed: {reason_of(task)}\n`warmlane resubmit {task.id}` tries again", err=True)
            return 1
        path = save(client, task, out)
    except KeyboardInterrupt:
        click.echo(f"interrupted; it goes on: {how_to_get(client, task)}", err=True)
        return INTERRUPTED
    click.echo(saved_line(path, task))
    return 0


@click.command(
    epilog="Examples:\n\n  warmlane resubmit 01a2075b-3fa3-767e-89f5-d9efa4b99853 --out boat.mp4\n\n"
    "  warmlane resubmit 01a2075b-3fa3-767e-89f5-d9efa4b99853 --image boat.png --no-wait"
)
@click.argument("task_id", callback=task_id_of)
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The file that the task started from, if it had one. Another file is refused.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Follow the new task and save its video, as `warmlane submit` does; or print its ID and exit.",
)
@out_option
@gateway_options
@click.pass_context
def command(
    ctx: click.Context, /, task_id: str, image: Path | None, wait: bool, out: Path | None, gateway: Gateway
) -> None:
    """Submit the request of a failed task again, with the same parameters and seed, and save the video.

    It makes a new task and prints the new task's ID; TASK_ID stays failed. Running it twice makes only one new task.
    The new task belongs to the caller of the API key in use, whoever owned the failed one. Ctrl-C does not cancel the
    new task.

    Exit status 1 when the new task fails too.
    """
    if wait:
        require_writable(out)
    elif out is not None:
        raise click.UsageError("--out has no use with --no-wait, which saves nothing")
    with gateway.client() as client:
        ctx.exit(resubmit(client, task_id, image, out, wait=wait))
