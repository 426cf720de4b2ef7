"""Logs now and then what would otherwise be logged again and again: an outage is worth one line of each kind, not eight
a second."""

import time
from collections.abc import Callable
from typing import Any, Final

LOG_EVERY_S: Final = 60.0


class Seldom:
    """Remembers what was logged when. An event of a *kind* that was logged within the last *every_s* seconds is no
    news."""

    def __init__(self, every_s: float = LOG_EVERY_S) -> None:
        self._every_s = every_s
        self._logged_s: dict[str, float] = {}

    def is_news(self, kind: str) -> bool:
        """Whether to log something of *kind* now. It remembers every kind for good, so use few kinds."""
        now_s = time.monotonic()
        logged_s = self._logged_s.get(kind)
        if logged_s is not None and now_s < logged_s + self._every_s:
            return False
        self._logged_s[kind] = now_s
        return True

    def log(self, say: Callable[..., Any], event: str, **fields: Any) -> None:
        """Logs *event* by *say*, a method of a logger, unless that was done lately."""
        if self.is_news(event):
            say(event, **fields)
