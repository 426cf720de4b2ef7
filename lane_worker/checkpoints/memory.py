"""`warmlane models measure` and `warmlane models fit`: what an inference holds, and what a card can serve.

Nothing here needs a card. Of a model's files, only the headers in a prepared folder are read.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table

from contracts.cards import CARDS, Serving, cells, servings
from contracts.fit import Components, gb
from contracts.geometry import FRAMES_PER_POSITION, PIXELS_PER_POSITION, Size, default_size, largest_sizes
from contracts.measured import TRANSFORMER_MARGIN, VAE_MARGIN, Measured
from contracts.settings import ModelEntry, SettingsError, load_settings
from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import published_layouts
from lane_worker.checkpoints.tools import PROFILE, layout_of, pipelines_module
from ops.commands.options import data_dir_option, settings_option
from ops.machine.weights import WeightsUnreadable, weights_of

CONSOLE_COLUMNS: Final = 120
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _profile_option(command: _Command) -> _Command:
    return click.option("--profile", default=PROFILE, show_default=True, help="The profile of the settings.")(command)


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except (CheckpointRefused, SettingsError, WeightsUnreadable) as error:
        raise click.ClickException(str(error)) from error


def _entry(settings: Path | None, profile: str, model: str) -> ModelEntry:
    catalog = load_settings(settings).catalog(profile)
    entry = catalog.resolve(model)
    if entry is None:
        known = ", ".join(sorted(catalog.models))
        raise click.BadParameter(f"no model is called {model}; there are {known}", param_hint="MODEL")
    return entry


def _whole(size: Size) -> Size:
    """*size*, or a refusal: with another size the VAE would make other frames than those that were asked for."""
    sides = {"--width": size.width, "--height": size.height}
    for option, pixels in sides.items():
        if pixels < PIXELS_PER_POSITION or pixels % PIXELS_PER_POSITION:
            raise click.BadParameter(f"expected a multiple of {PIXELS_PER_POSITION}, got {pixels}", param_hint=option)
    if size.num_frames < 1 or (size.num_frames - 1) % FRAMES_PER_POSITION:
        text = f"expected {FRAMES_PER_POSITION} k + 1, got {size.num_frames}"
        raise click.BadParameter(text, param_hint="--num-frames")
    return size


@click.command(
    name="measure",
    epilog="Examples:\n\n  warmlane models measure anisora\n\n  warmlane models measure anisora --largest --json\n\n"
    "  warmlane models measure phr00t --width 1280 --height 720 --num-frames 81 --no-vae-tiling",
)
@click.argument("model")
@click.option("--width", type=int, help="Pixels, a multiple of 16. [default: that of the settings]")
@click.option("--height", type=int, help="Pixels, a multiple of 16. [default: that of the settings]")
@click.option("--num-frames", type=int, help="4k+1, such as 81. [default: that of the settings]")
@click.option("--largest", is_flag=True, help="The largest sizes that the settings admit, in the place of one size.")
@click.option("--vae-tiling/--no-vae-tiling", default=None, help="[default: checkpoint.vae_tiling of the settings]")
@settings_option
@_profile_option
@_json_option
def measure_command(
    model: str,
    width: int | None,
    height: int | None,
    num_frames: int | None,
    largest: bool,
    vae_tiling: bool | None,
    settings: Path | None,
    profile: str,
    as_json: bool,
) -> None:
    """Count what an inference of MODEL holds on a card beside the weights.

    The real classes run on tensors that have shapes and no memory: this takes seconds, and needs neither weights nor a
    card. Attention counts as the fused kernels of a card compute it, without the matrix of all scores. What backends
    take beside the tensors is not counted: activation_bytes, the figure for the settings, has a margin for that.
    """
    with _in_one_line():
        entry = _entry(settings, profile, model)
        if entry.checkpoint.random_weights is not None:
            raise click.BadParameter(f"the profile {profile} makes small random weights", param_hint="--profile")
        layout = layout_of(published_layouts(), entry.name, entry.checkpoint.pipeline)
        named = {"width": width, "height": height, "num_frames": num_frames}
        given = {name: value for name, value in named.items() if value is not None}
        if largest and given:
            raise click.UsageError("name a size, or --largest")
        default = msgspec.structs.replace(default_size(entry.constraints), **given)
        sizes = largest_sizes(entry.constraints) if largest else (_whole(default),)
        tiled = entry.checkpoint.vae_tiling if vae_tiling is None else vae_tiling
        checkpoint = msgspec.structs.replace(entry.checkpoint, vae_tiling=tiled)
        measured: Measured = pipelines_module("measure").measure(layout, checkpoint, entry.name, sizes)
    if as_json:
        figures = msgspec.to_builtins(measured) | {"activation_bytes": measured.activation_bytes}
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(measured, entry)


def _print(measured: Measured, entry: ModelEntry) -> None:
    tiled = "the VAE in tiles" if measured.vae_tiling else "the VAE whole"
    sizes = ", ".join(map(str, measured.sizes))
    click.echo(f"{measured.model}: {measured.pipeline}, {measured.dtype}, {tiled}, {sizes}")
    click.echo(f"  VAE decode   {gb(measured.decode_bytes):>9}")
    click.echo(f"  VAE encode   {gb(measured.encode_bytes):>9}")
    click.echo(f"  transformer  {gb(measured.transformer_bytes):>9}")
    click.echo(
        f"activation_bytes {measured.activation_bytes}, with a margin (VAE x {VAE_MARGIN:g}, transformer x "
        f"{TRANSFORMER_MARGIN:g}); the settings say {entry.checkpoint.activation_bytes}"
    )
    for size in measured.sizes:
        if size.volume > entry.constraints.max_volume:
            click.echo(f"a request of {size} is too large: max_volume is {entry.constraints.max_volume}")


@click.command(
    name="fit",
    epilog="Examples:\n\n  warmlane models fit\n\n  warmlane models fit --json --settings settings.json",
)
@data_dir_option
@settings_option
@_profile_option
@_json_option
def fit_command(data_dir: Path, settings: Path | None, profile: str, as_json: bool) -> None:
    """Say what a card of 16, 24, 48, 80 and 141 GB can serve of each model, and with which options.

    Counted for the largest video that the settings admit, from the headers of the prepared folder, or from the
    published shapes where there is none. The fastest options come first; fp8 is "layerwise_casting": "float8_e4m3fn".
    """
    rows: list[Serving] = []
    with _in_one_line():
        for entry in load_settings(settings).catalog(profile).models.values():
            rows += servings(entry.name, _components(entry, data_dir / "models"), entry.checkpoint)
    if as_json:
        click.echo(json.dumps({"cards": CARDS, "servings": msgspec.to_builtins(rows)}, indent=2))
        return
    table = Table(show_header=True)
    for heading in ("model", "options", "on the card", "on the host", *(f"{card} GB" for card in CARDS)):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    console.width = max(console.width, CONSOLE_COLUMNS)
    console.print(table)


def _components(entry: ModelEntry, models_dir: Path) -> Components | None:
    found = weights_of(models_dir / entry.checkpoint.folder)
    if found is not None or entry.checkpoint.random_weights is not None:
        return found
    layout = layout_of(published_layouts(), entry.name, entry.checkpoint.pipeline)
    components: Components = pipelines_module("measure").components_of(layout)
    return components
