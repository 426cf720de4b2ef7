"""Texts that are made once and sent on many streams. In memory, pure."""

from collections.abc import Callable, Collection
from typing import Final

TEXTS_MAX: Final = 2_000


class KeptTexts:
    """The newest *most* texts. The key of each is the id of a task, and what distinguishes the texts of that task."""

    def __init__(self, most: int = TEXTS_MAX) -> None:
        self._most = most
        self._kept: dict[tuple[object, ...], bytes] = {}

    def of(self, what: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """The text of *what*, which *make* makes where it is not kept."""
        text = self._kept.get(what)
        if text is None:
            text = self._kept[what] = make()
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return text

    def forget(self, task_ids: Collection[str]) -> None:
        """Drops every text of those tasks."""
        for what in [each for each in self._kept if each[0] in task_ids]:
            del self._kept[what]
