"""`warmlane models`: makes the folders that a lane loads from published checkpoints, verifies and lists them.

`prepare`, `verify` and `measure` need torch, and so does `fit` for a model without a folder. They import it when they
are called.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from contracts.settings import SettingsError, load_settings
from lane_worker.checkpoints.folder import PART, Manifest, quick_faults, read_manifest
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import Layout, published_layouts
from lane_worker.checkpoints.memory import fit_command, measure_command
from lane_worker.checkpoints.tools import PROFILE, layout_of, pipelines_module
from ops.commands.options import data_dir_option, settings_option

# in a folder of random weights, which a worker makes by itself
RECIPE: Final = "recipe.json"


def table_of(models_dir: Path) -> Table:
    """The folders in the models folder, one row each."""
    table = Table(show_header=True)
    for heading in ("folder", "model", "variant", "GB", "prepared (UTC)", "state"):
        table.add_column(heading, overflow="fold")
    for folder in sorted(models_dir.iterdir() if models_dir.is_dir() else []):
        if folder.is_dir() and not folder.name.startswith("."):
            table.add_row(*map(escape, _row(folder)))
    return table


def _row(folder: Path) -> tuple[str, ...]:
    unknown = (folder.name, "-", "-", "-", "-")
    if folder.name.endswith(PART):
        return (*unknown, "not finished: run the same `warmlane models prepare` again")
    if (folder / RECIPE).is_file():
        return (*unknown, "random weights, made by Warmlane itself")
    try:
        manifest = read_manifest(folder)
    except CheckpointRefused:
        return (*unknown, "not made by `warmlane models prepare`")
    faults = list(quick_faults(folder, manifest))
    state = "whole, by names and sizes" if not faults else f"{faults[0]} ({len(faults)} in all)"
    when = manifest.prepared_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return (folder.name, manifest.model, manifest.variant, f"{manifest.size_bytes / 1e9:.1f}", when, state)


class _Sha256(click.ParamType[str]):
    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            self.fail(f"{value!r} is not a SHA-256: it needs 64 hexadecimal digits", param, ctx)
        return str(value).lower()


@contextmanager
def _in_one_line(part: Path | None = None) -> Iterator[None]:
    """Shows refusals, and failures of the disk, as one line."""
    kept = "" if part is None else f"; what is finished is kept in {part}: run the same command again"
    try:
        yield
    except (CheckpointRefused, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        place = error.filename or part or ""
        raise click.ClickException(f"{place}: {error.strerror or error}{kept}") from error
    except KeyboardInterrupt:
        if part is not None and part.exists():
            click.echo(kept.removeprefix("; "), err=True)
        raise


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@click.group(
    epilog="Examples:\n\n  warmlane models prepare anisora --from Index-anisora/V3.2 --base Wan2.2-I2V-A14B "
    "--to models/anisora-v3.2\n\n  warmlane models verify models/anisora-v3.2\n\n  warmlane models list"
    "\n\n  warmlane models measure anisora\n\n  warmlane models fit"
)
def command() -> None:
    """Prepare published checkpoints for the production profile, once and offline; verify and list them; say what they
    need of a card."""


command.add_command(measure_command)
command.add_command(fit_command)


@command.command(
    name="prepare",
    epilog="Examples:\n\n  warmlane models prepare anisora --from Index-anisora/V3.2 --base Wan2.2-I2V-A14B "
    "--to models/anisora-v3.2\n\n  warmlane models prepare phr00t --from wan2.2-t2v-rapid-aio-v10.safetensors "
    "--base Wan2.2-I2V-A14B --to models/phr00t-aio",
)
@click.argument("model")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="What was downloaded: the folder of AniSora V3.2, or Phr00t's one file. It is read and never changed.",
)
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to make. Until it is complete, the work is kept beside it, in DIR.part.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of Wan2.2-I2V-A14B as the Wan authors publish it: text encoder, VAE and tokenizer are taken from "
    "there where --from lacks them or has them in fewer bits. It is read and never changed.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the tokenizer google/umt5-xxl. [default: google/umt5-xxl beside or in --from, or in --base]",
)
@click.option(
    "--sha256",
    type=_Sha256(),
    help="Expected SHA-256 of the one file of --from, from its download page; any other file is refused before "
    "anything is converted.",
)
@click.option("--restart", is_flag=True, help="Throw away what an earlier run left in DIR.part.")
@settings_option
@click.pass_context
def prepare_command(
    ctx: click.Context,
    model: str,
    source: Path,
    target: Path,
    base: Path | None,
    tokenizer: Path | None,
    sha256: str | None,
    restart: bool,
    settings: Path | None,
) -> None:
    """Make a diffusers folder of MODEL (anisora or phr00t) from the published files.

    Keys and shapes are checked before anything is written. The same command resumes a run that was cut off.
    """
    source, target = source.absolute(), target.absolute()
    base, tokenizer = base and base.absolute(), tokenizer and tokenizer.absolute()
    part = target.with_name(target.name + PART)
    with _in_one_line(part):
        entry = load_settings(settings).catalog(PROFILE).resolve(model)
        if entry is None:
            raise click.BadParameter(f"no model is called {model}", param_hint="MODEL")
        layout = layout_of(ctx.obj or published_layouts(), entry.name, entry.checkpoint.pipeline)
        if sha256 is not None and layout.form != "all-in-one":
            raise click.BadParameter(f"{layout.title} consists of several files", param_hint="--sha256")
        if target.exists() and _is_prepared(target, layout, source, base, sha256):
            return
        planned = pipelines_module("preparing.planning").plan(layout, source, base=base, tokenizer=tokenizer)
        with _bar() as bar:
            task = bar.add_task("")

            def on_progress(done_bytes: int, total_bytes: int, file: str) -> None:
                bar.update(task, description=file, completed=done_bytes, total=total_bytes)

            manifest = pipelines_module("preparing.writing").prepare(
                planned, target, now=datetime.now(UTC), on_progress=on_progress, sha256=sha256, restart=restart
            )
    click.echo(f"prepared: {target} holds {layout.title}, {_size(manifest)}")
    lent = [name for name in planned.sources if not planned.is_given(name)]
    if lent:
        click.echo(f"taken from --base: {', '.join(sorted(lent))}")
    if target.name != entry.checkpoint.folder:
        click.echo(f"a lane looks for it as {entry.checkpoint.folder} in the models folder (models, below --data-dir)")


def _is_prepared(target: Path, layout: Layout, source: Path, base: Path | None, sha256: str | None) -> bool:
    """Whether there is nothing to do. Raises CheckpointRefused where *target* is something else."""
    manifest = read_manifest(target)
    if (manifest.model, manifest.variant) != (layout.model, layout.variant):
        raise CheckpointRefused(
            f"{target} holds {manifest.model} {manifest.variant}, not {layout.model} {layout.variant}; name "
            "another --to"
        )
    folders = [source if source.is_dir() else source.parent, *([] if base is None else [base])]
    for file in manifest.sources:
        sizes = [(folder / file.path).stat().st_size for folder in folders if (folder / file.path).is_file()]
        # --sha256 pins the one file of --from; the files of --base are torch's
        others = file.path.endswith(".safetensors") and sha256 not in {None, file.sha256}
        if others or (source.exists() and file.bytes not in sizes):
            raise CheckpointRefused(
                f"{target} was prepared from other files ({file.path}, {file.bytes:,} bytes); name another --to, or "
                "move it away first"
            )
    click.echo(f"{target} is prepared already, {_size(manifest)}; `warmlane models verify` reads all of it again")
    return True


@command.command(name="verify", epilog="Example:\n\n  warmlane models verify models/phr00t-aio")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
def verify_command(ctx: click.Context, folder: Path) -> None:
    """Read all of a prepared folder: sizes and SHA-256 against its manifest, keys and shapes against the model."""
    with _in_one_line():
        total_bytes = read_manifest(folder).size_bytes
        verify = pipelines_module("preparing.verifying").verify
        with _bar() as bar:
            task = bar.add_task("verify", total=total_bytes)
            manifest, faults = verify(
                folder, ctx.obj or published_layouts(), lambda read_bytes: bar.update(task, advance=read_bytes)
            )
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        raise click.ClickException(
            f"{folder} is not whole ({len(faults)} faults); move it away and run `warmlane models prepare` again"
        )
    click.echo(f"{folder} is whole: {manifest.model} {manifest.variant}, {_size(manifest)}")


@command.command(
    name="list", epilog="Examples:\n\n  warmlane models list\n\n  warmlane models list --data-dir /srv/warmlane"
)
@data_dir_option
def list_command(data_dir: Path) -> None:
    """Show what the models folder holds, and whether names and sizes are those of the manifests."""
    table = table_of(data_dir / "models")
    if table.row_count:
        Console().print(table)
    else:
        click.echo(f"nothing is in {data_dir / 'models'} yet")


def _size(manifest: Manifest) -> str:
    return f"{len(manifest.files)} files, {manifest.size_bytes:,} bytes"
