"""Where a command saves a video. It checks the place before the video is made. If it cannot save the video, the error
says where to find it."""

import contextlib
import os
import shlex
from pathlib import Path
from typing import Final

import click

from contracts.api.tasks import TaskView
from ops.commands.addresses import DEFAULT_URL
from ops.commands.api.client import CommandClient
from ops.commands.api.problems import DamagedVideo, Unreachable

# Before a video is made, this many bytes are written on trial where it will be saved.
PROBE_BYTES: Final = 1 << 20


class NotSaved(click.ClickException):
    """The video was made and could not be saved here. The text says where it is, and how to get it."""


def output_path(out: Path | None, task: TaskView) -> Path:
    """Where the video goes: *out*, or a name made of model and id, in the current folder or in the folder *out*."""
    name = f"{task.model}-{task.id[-12:]}.mp4"
    if out is None:
        return Path(name)
    return out / name if out.is_dir() else out


def require_writable(out: Path | None) -> None:
    """Checks, as far as possible before the video is made, that it can be saved at *out* (see `output_path`). Leaves
    nothing behind.

    Raises click.BadParameter, which says what is in the way.
    """
    folder = Path() if out is None else out if out.is_dir() else out.parent
    if not folder.is_dir():
        what = f"{folder} is a file, not a folder" if folder.exists() else f"there is no folder {folder}"
        raise click.BadParameter(what, param_hint="--out")
    if out is not None and out.exists() and not out.is_dir() and not out.is_file():
        raise click.BadParameter(f"{out} exists and is not a file that can be replaced", param_hint="--out")
    probe = _part(folder / "video.mp4" if out is None or out.is_dir() else out)
    try:
        with probe.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise click.BadParameter(f"{out or folder} cannot be written: {error.strerror}", param_hint="--out") from error
    finally:
        # if the folder cannot even be searched, no file was made in it
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def save(client: CommandClient, task: TaskView, out: Path | None) -> Path:
    """Downloads the video of *task*, which is done, to `output_path`: whole and checked, or not at all.

    Raises NotSaved, and whatever else `CommandClient.download` raises.
    """
    path = output_path(out, task)
    try:
        client.download(task, path, part=_part(path))
    except OSError as error:
        raise NotSaved(f"{path} cannot be written: {error.strerror or error}\n{how_to_get(client, task)}") from error
    except (Unreachable, DamagedVideo) as error:
        raise NotSaved(f"{error.message}\n{how_to_get(client, task)}") from error
    return path


def how_to_get(client: CommandClient, task: TaskView) -> str:
    """Where the video of *task* is or will be, and the command that downloads it."""
    where = "" if client.url == DEFAULT_URL else f" --url {shlex.quote(client.url)}"
    return (
        f"task {task.id} is at {client.url}/tasks/{task.id}; to save its video: "
        f"warmlane tasks download {task.id}{where} --wait"
    )


def _part(path: Path) -> Path:
    # with the pid: another process may be saving to the same place
    return path.with_name(f"{path.name}.{os.getpid()}.part")
