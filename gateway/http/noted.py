"""What is known of the request in hand, for its line in the access log: set by whoever learns it."""

from contextvars import ContextVar
from typing import Final

from msgspec import Struct


class Noted(Struct):
    """*caller* and *key* (its id) as the request shows them, *counts* whether that key is one in force; *code* is that
    of the problem document it was answered with."""

    request_id: str = ""
    caller: str = ""
    key: str = ""
    counts: bool = True
    code: str = ""


_NOTED: Final[ContextVar[Noted | None]] = ContextVar("noted", default=None)


def noted() -> Noted:
    """What is noted of the request in hand; outside of any request, a note that nobody reads."""
    return _NOTED.get() or Noted()


def begin(request_id: str) -> Noted:
    """Begins a new note, for this context and those that are made of it."""
    begun = Noted(request_id)
    _NOTED.set(begun)
    return begun
