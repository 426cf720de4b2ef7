"""`warmlane tasks`: list, show, cancel, forget and download tasks."""

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from contracts.api.lenient import lenient
from contracts.api.tasks import TaskView
from ops.commands.api.client import CommandClient
from ops.commands.api.options import Gateway, gateway_options, task_id_of
from ops.commands.api.problems import Refused
from ops.commands.option_types import labels_given
from ops.commands.saving import how_to_get, require_writable, save
from ops.commands.submit import INTERRUPTED, Bar, out_option, progress_line, reason_of, saved_line, waiting_line

STATUSES: Final = ("pending", "processing", "done", "failed")
# The most tasks that a gateway returns at once.
PAGE: Final = 100
CANCELLED: Final = "cancelled"
_WITH_LABEL: Final = "Only tasks with this label; repeat it for tasks that have all of several labels."
_EXAMPLE: Final = "01a2075b-3fa3-767e-89f5-d9efa4b99853"


@click.group(
    epilog="Examples:\n\n  warmlane tasks list --status failed\n\n"
    f"  warmlane tasks show {_EXAMPLE}\n\n  warmlane tasks cancel {_EXAMPLE}\n\n"
    f"  warmlane tasks download {_EXAMPLE} --out boat.mp4"
)
def command() -> None:
    """Look at tasks, cancel and forget them, and save their videos.

    With an API key, these are the tasks of its caller; a key of the scope `admin` sees those of all callers.
    """


@command.command(
    name="list",
    epilog="Examples:\n\n  warmlane tasks list\n\n  warmlane tasks list --status failed --model phr00t --limit 500\n\n"
    "  warmlane tasks list --all --json | jq -r '.tasks[].id'",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES),
    multiple=True,
    help="Only tasks of this status; may be repeated.",
)
@click.option("--model", help="Only tasks of this model, a name or an alias.")
@click.option("--label", "labels", multiple=True, callback=labels_given, metavar="KEY:VALUE", help=_WITH_LABEL)
@click.option("--created-after", metavar="TIME", help="Only tasks made then or later, as in 2026-05-01T12:00:00Z.")
@click.option("--created-before", metavar="TIME", help="Only tasks made before then.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many at most, over as many pages."
)
@click.option("--all", "everything", is_flag=True, help="All there are, instead of --limit.")
@click.option("--cursor", help="Go on where the list before ended: the cursor that it printed.")
@click.option("--json", "as_json", is_flag=True, help="Print what the gateway answers: an object as GET /tasks has it.")
@gateway_options
def list_command(
    statuses: tuple[str, ...],
    model: str | None,
    labels: Mapping[str, str] | None,
    created_after: str | None,
    created_before: str | None,
    limit: int,
    everything: bool,
    cursor: str | None,
    as_json: bool,
    gateway: Gateway,
) -> None:
    """List tasks, newest first: ID, status, model, time of creation (UTC), and the prompt or why the task failed."""
    query: dict[str, str | list[str] | None] = {
        "status": list(statuses) or None,
        "model": model,
        "label": [f"{key}:{value}" for key, value in (labels or {}).items()] or None,
        "created_after": created_after,
        "created_before": created_before,
    }
    asked = {name: value for name, value in query.items() if value is not None}
    with gateway.client() as client:
        found, following = listed(
            client,
            asked,
            limit=None if everything else limit,
            cursor=cursor,
        )
    if as_json:
        click.echo(json.dumps({"tasks": found, "next_cursor": following}))
        return
    for each in found:
        click.echo(fitted(line_of(msgspec.convert(each, lenient(TaskView), strict=False))))
    if not found:
        click.echo("no task matches" if asked else "no task", err=True)
    if following is not None:
        click.echo(f"there are more: --all, a larger --limit, or --cursor {following}", err=True)


def listed(
    client: CommandClient, query: Mapping[str, str | list[str]], *, limit: int | None, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The newest *limit* tasks, or all of them, from *cursor* on, page after page; and the cursor of what follows."""
    found: list[dict[str, Any]] = []
    while True:
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        page: dict[str, str | list[str]] = {**query, "limit": str(wanted)} | (
            {} if cursor is None else {"cursor": cursor}
        )
        tasks, cursor = client.tasks(page)
        found.extend(tasks)
        if cursor is None or (limit is not None and len(found) >= limit):
            return found, cursor


def line_of(task: TaskView) -> str:
    """*task* in one line."""
    what = plain(reason_of(task) if task.status == "failed" else task.parameters.prompt)
    return f"{task.id}  {task.status:<10}  {task.model:<8}  {_moment(task.created_at)}  {what}"


def plain(text: str) -> str:
    """*text*, which a client wrote, without characters that would move a terminal's cursor or control the terminal."""
    return "".join(" " if unicodedata.category(letter) in {"Cc", "Cf", "Zl", "Zp"} else letter for letter in text)


def fitted(line: str) -> str:
    """*line* cut to the width of the terminal; whole for a file or a pipe."""
    if not sys.stdout.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return line if len(line) <= width else line[: width - 1] + "…"


@command.command(
    name="show",
    epilog=f"Examples:\n\n  warmlane tasks show {_EXAMPLE}\n\n  warmlane tasks show {_EXAMPLE} --json | jq .timeline",
)
@click.argument("task_id", metavar="ID", callback=task_id_of)
@click.option("--json", "as_json", is_flag=True, help="Print the task as GET /tasks/ID has it.")
@gateway_options
def show_command(task_id: str, as_json: bool, gateway: Gateway) -> None:
    """Show one task: what was asked for, where it is, how it ended, and its timeline."""
    with gateway.client() as client:
        task, answered = client.task(task_id)
        if as_json:
            click.echo(json.dumps(answered))
            return
        for line in shown(client, task):
            click.echo(line)


def shown(client: CommandClient, task: TaskView) -> Iterator[str]:
    """*task* as lines for a person."""
    asked = task.parameters
    yield f"{task.id} is {task.status}"
    if task.error is not None:
        yield f"  why       {plain(reason_of(task))}"
    if task.status == "pending":
        yield f"  queue     {waiting_line(task)}"
    if task.progress is not None and not task.has_ended:
        yield f"  progress  {progress_line(task)}"
    yield f"  model     {task.model}, {task.route}{'' if task.worker is None else f', {task.worker}'}"
    yield f"  attempt   {task.attempt}"
    yield f"  prompt    {plain(asked.prompt)}"
    yield f"  asked     {asked.width}x{asked.height}, {asked.num_frames} frames at {asked.fps} fps, seed {asked.seed}"
    for key, value in task.labels.items():
        yield f"  label     {plain(key)}:{plain(value)}"
    if task.keep_s is not None:
        yield f"  kept      for {task.keep_s} s after its end"
    for warning in task.warnings:
        yield f"  warning   {plain(warning.message)}"
    for event in task.timeline:
        yield f"  {_moment(event.at)}  {event.event}"
    if task.trace_id is not None:
        yield f"  trace     {task.trace_id}"
    yield f"  address   {client.url}/tasks/{task.id}"
    if task.video is not None:
        yield f"  video     {task.video.bytes:,} bytes; {how_to_get(client, task)}"


def _ids(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(task_id_of(ctx, parameter, value) for value in values)


@command.command(
    name="cancel",
    epilog=f"Examples:\n\n  warmlane tasks cancel {_EXAMPLE}\n\n"
    "  warmlane tasks cancel $(warmlane tasks list --status pending --all --json | jq -r '.tasks[].id')",
)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True, callback=_ids)
@gateway_options
@click.pass_context
def cancel_command(ctx: click.Context, /, task_ids: tuple[str, ...], gateway: Gateway) -> None:
    """Cancel tasks that wait or run.

    Exit status 1 when one of them had already ended, or does not exist; the others are cancelled all the same.
    """
    with gateway.client() as client:
        ctx.exit(_of_each(task_ids, "cancelled", partial(cancel, client)))


def cancel(client: CommandClient, task_id: str) -> str | None:
    """Cancels the task and returns None, or returns why it cannot. Raises Unreachable, NotWarmlane."""
    try:
        task, _ = client.task(task_id)
        if not task.has_ended:
            task = client.cancel(task.id)
            if task.error is not None and task.error.code == CANCELLED:
                return None
    except Refused as error:
        return error.message
    return f"it had ended already: {task.status if task.error is None else reason_of(task)}"


@command.command(
    name="forget",
    epilog=f"Examples:\n\n  warmlane tasks forget {_EXAMPLE}\n\n"
    "  warmlane tasks forget $(warmlane tasks list --label project:spring --all --json | jq -r '.tasks[].id')",
)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True, callback=_ids)
@gateway_options
@click.pass_context
def forget_command(ctx: click.Context, /, task_ids: tuple[str, ...], gateway: Gateway) -> None:
    """Remove tasks that have ended, for good: record, history, video, thumbnail, image and webhook deliveries.

    Earlier backups still hold them. A task that is already gone is no error, so that the command can be repeated. Exit
    status 1 when one of them has not ended; the others are forgotten all the same.
    """
    with gateway.client() as client:
        ctx.exit(_of_each(task_ids, "forgotten", partial(forget, client)))


def _of_each(task_ids: Iterable[str], done: str, act: Callable[[str], str | None]) -> int:
    """Calls *act* for each task, and prints *done* with its ID, or what *act* returns. Returns the exit status."""
    failed = 0
    for task_id in task_ids:
        trouble = act(task_id)
        click.echo(f"{done} {task_id}" if trouble is None else f"{task_id}: {trouble}", err=trouble is not None)
        failed |= trouble is not None
    return failed


def forget(client: CommandClient, task_id: str) -> str | None:
    """Has the gateway forget the task. Returns None, even if the task was gone before; returns why if it cannot be
    forgotten. Raises Unreachable, NotWarmlane."""
    try:
        client.forget(task_id)
    except Refused as error:
        return None if error.problem.code == "task_not_found" else error.message
    return None


@command.command(
    name="download",
    epilog=f"Examples:\n\n  warmlane tasks download {_EXAMPLE}\n\n"
    f"  warmlane tasks download {_EXAMPLE} --out boat.mp4 --wait",
)
@click.argument("task_id", metavar="ID", callback=task_id_of)
@click.option("--wait", is_flag=True, help="Wait for the end of a task that is not done yet.")
@out_option
@gateway_options
@click.pass_context
def download_command(ctx: click.Context, /, task_id: str, wait: bool, out: Path | None, gateway: Gateway) -> None:
    """Save the video of a task that is done: whole and checked, or not at all.

    Exit status 1 when there is none: the task failed, or is not done and --wait was not given.
    """
    require_writable(out)
    with gateway.client() as client:
        ctx.exit(download(client, task_id, out, wait=wait))


def download(client: CommandClient, task_id: str, out: Path | None, *, wait: bool) -> int:
    """Saves the video of *task_id*, and returns the exit status. Raises NotSaved, and what `CommandClient` raises."""
    task, _ = client.task(task_id)
    try:
        if wait and not task.has_ended:
            with Bar() as bar:
                task = client.follow(task, "", bar.show)
        if task.status == "failed":
            click.echo(f"task {task.id} failed: {reason_of(task)}", err=True)
            return 1
        if task.video is None:
            click.echo(f"task {task.id} is {task.status}; --wait waits for its video", err=True)
            return 1
        path = save(client, task, out)
    except KeyboardInterrupt:
        click.echo(f"interrupted; {how_to_get(client, task)}", err=True)
        return INTERRUPTED
    click.echo(saved_line(path, task))
    return 0


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
