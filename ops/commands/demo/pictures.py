"""The contact sheet of a demo."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from ops.commands.demo.runs import Run

FRAMES_SHOWN: Final = 4
FRAME_WIDTH: Final = 144
CAPTION_HEIGHT: Final = 22
GAP: Final = 8


def contact_sheet(runs: Sequence[Run], columns: int, path: Path) -> None:
    """A picture of every run that has a video: a few of its frames and a caption, *columns* runs in a row.

    Every frame of every video is decoded. Raises ImportError without PyAV or Pillow.
    """
    import av
    from PIL import Image, ImageDraw, ImageFont

    def strip(run: Run, video: Path) -> list[Image.Image]:
        assert run.task is not None
        assert run.task.video is not None
        last = run.task.video.frames - 1
        wanted = {round(last * index / (FRAMES_SHOWN - 1)) for index in range(FRAMES_SHOWN)}
        with av.open(str(video)) as container:
            pictures = [frame.to_image() for index, frame in enumerate(container.decode(video=0)) if index in wanted]
        return [picture.resize((FRAME_WIDTH, picture.height * FRAME_WIDTH // picture.width)) for picture in pictures]

    tiles = [(run, strip(run, run.video)) for run in runs if run.video is not None]
    frame_height = max(picture.height for _, pictures in tiles for picture in pictures)
    tile_width, tile_height = FRAMES_SHOWN * FRAME_WIDTH + GAP, frame_height + CAPTION_HEIGHT + GAP
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * tile_width + GAP, rows * tile_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for index, (run, pictures) in enumerate(tiles):
        left, top = GAP + index % columns * tile_width, GAP + index // columns * tile_height
        for position, picture in enumerate(pictures):
            sheet.paste(picture, (left + position * FRAME_WIDTH, top))
        seed = run.task.parameters.seed if run.task else ""
        draw.text((left, top + frame_height + 3), f"{run.number}  {run.model}  seed {seed}", fill="black", font=font)
    sheet.save(path)


def save_sheet(console: Console, runs: Sequence[Run], columns: int, out: Path) -> None:
    """Makes the contact sheet, or prints what it needs."""
    if not any(run.video for run in runs):
        return
    sheet = out / "contact-sheet.png"
    try:
        contact_sheet(runs, columns, sheet)
    except ImportError as error:
        console.print(
            f"no contact sheet: {error.name} is not installed; pip install -e '.[demo]' in the checkout",
            highlight=False,
        )
        return
    console.print(f"videos and {sheet.name} are in {out}", highlight=False)
