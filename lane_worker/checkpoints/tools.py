"""What the commands of `warmlane models` share. Imports no torch."""

import importlib
from typing import Any, Final

import click

from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.checkpoints.layouts import Layout

PROFILE: Final = "production"


def layout_of(layouts: tuple[Layout, ...], model: str, pipeline: str) -> Layout:
    """The published form of *model* that becomes a *pipeline*. Raises CheckpointRefused."""
    for layout in layouts:
        if (layout.model, layout.pipeline) == (model, pipeline):
            return layout
    known = ", ".join(layout.pipeline for layout in layouts if layout.model == model) or "none"
    raise CheckpointRefused(
        f"the settings load {model} with {pipeline}, for which no published form is known (known: {known}); correct "
        f"checkpoint.pipeline in the profile {PROFILE}"
    )


def pipelines_module(name: str) -> Any:
    """Imports the module *name* of `lane_worker.pipelines` only now: commands that need no torch work without it.

    Raises click.ClickException where a package is not installed.
    """
    try:
        return importlib.import_module(f"lane_worker.pipelines.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "lane_worker":
            raise
        raise click.ClickException(
            f"this needs the package {error.name}, which is not installed; "
            "pip install -c constraints.txt -e '.[worker]' in the checkout brings it"
        ) from error
