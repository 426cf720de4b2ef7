"""Files of the task in hand, in a folder of this process alone."""

import shutil
import time
from pathlib import Path
from typing import Final

KEPT_S: Final = 3_600.0


class Scratch:
    """`<data>/scratch/<slot>/<owner>`. The worker that this one replaces may still be finishing its task in its own."""

    def __init__(self, data_dir: Path, *, slot: str, owner: str) -> None:
        self._root = data_dir / "scratch" / slot
        self.folder = self._root / owner

    def make(self) -> None:
        """Makes the folder."""
        self.folder.mkdir(parents=True)

    def remove_what_others_left(self) -> None:
        """Removes the folders of workers that died: a predecessor may still be storing its last video, so only what
        is old is nobody's."""
        oldest_s = time.time() - KEPT_S
        for folder in self._root.iterdir():
            if folder != self.folder and folder.stat().st_mtime < oldest_s:
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Removes the folder, whatever is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
