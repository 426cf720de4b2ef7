"""What is known of the current request, for its line in the access log. The code that learns something sets it."""

from contextvars import ContextVar
from typing import Final

from msgspec import Struct


class Noted(Struct):
    """*caller* and *key* (its id) are those that the request presents; *counts* is whether that key is in force. *code*
    is that of the problem document with which the gateway answered."""

    request_id: str = ""
    caller: str = ""
    key: str = ""
    counts: bool = True
    code: str = ""


_NOTED: Final[ContextVar[Noted | None]] = ContextVar("noted", default=None)


def noted() -> Noted:
    """The note of the current request; outside of any request, a note that nobody reads."""
    return _NOTED.get() or Noted()


def begin(request_id: str) -> Noted:
    """Begins a new note, for this context and those that are copied from it."""
    begun = Noted(request_id)
    _NOTED.set(begun)
    return begun
