"""How many event streams each caller has open, and how many of its requests wait for the end of a task.

Each of them costs memory for as long as its client keeps it open.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

PER_CALLER_MAX: Final = 500
PER_GATEWAY_MAX: Final = 2_000
# Requests that wait: long-polls, and those that are answered with the end of their task.
WAITS_PER_CALLER_MAX: Final = 1_000
WAITS_PER_GATEWAY_MAX: Final = 2_000


class TooManyStreams(Exception):
    """The caller, or the whole gateway, has as many streams open as it may. The text says which."""


class Streams:
    """The open event streams of one gateway, or *what* else it holds open for its clients."""

    def __init__(
        self,
        *,
        per_caller_max: int = PER_CALLER_MAX,
        per_gateway_max: int = PER_GATEWAY_MAX,
        what: str = "event streams are open",
    ) -> None:
        self._what = what
        self._per_caller_max = per_caller_max
        self._per_gateway_max = per_gateway_max
        self._open: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def take(self, caller: str) -> "Place":
        """A place for one more stream of *caller*, which is taken until `Place.free`. Raises TooManyStreams."""
        if self._open[caller] >= self._per_caller_max:
            raise TooManyStreams(f"{self._per_caller_max} {self._what} already")
        if self._open.total() >= self._per_gateway_max:
            raise TooManyStreams(f"{self._per_gateway_max} {self._what} already, of all callers")
        self._open[caller] += 1
        return Place(self._open, caller)


class Place:
    """One open stream."""

    def __init__(self, taken: Counter[str], caller: str) -> None:
        self._taken, self._caller = taken, caller
        self._is_free = False

    def free(self) -> None:
        """The stream is over. A second call changes nothing."""
        if self._is_free:
            return
        self._is_free = True
        self._taken[self._caller] -= 1
        if not self._taken[self._caller]:
            del self._taken[self._caller]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Frees the place when the block ends, in whatever way."""
        try:
            yield
        finally:
            self.free()
