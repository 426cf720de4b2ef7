"""Plots, by matplotlib, which only some extras install."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


@contextmanager
def plot_into(path: Path, *, extra: str, size_in: tuple[float, float], font_size: float) -> Iterator[Any]:
    """An empty matplotlib figure of *size_in* inches, which is saved as *path* (.svg or .png) when its drawing is done.

    The same drawing gives the same bytes of SVG. Raises click.ClickException, which names the *extra* to install, where
    matplotlib is missing; OSError where the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the plot needs the package matplotlib, which is not installed; pip install -c constraints.txt -e "
            f"'.[{extra}]' in the checkout brings it"
        ) from error
    # text stays text, and the IDs of elements do not change from one run to the next
    with matplotlib.rc_context({"svg.hashsalt": "warmlane", "svg.fonttype": "none", "font.size": font_size}):
        figure = Figure(figsize=size_in, layout="constrained")
        yield figure
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
