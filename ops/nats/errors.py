"""The errors of a call to the server.

A refusal and an unknown outcome are different errors: `StreamFull` and `WrongRevision` mean that nothing was stored,
`TransportUnavailable` means that the outcome is unknown.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import nats.errors
import nats.js.errors

from contracts.topology import is_work_subject
from ops.nats.denials import Denied

# The server's code for every error of its store: a limit that is reached, or an error of the file system.
_STREAM_FULL: Final = 10077
_AT_A_LIMIT: Final = re.compile("maximum (?:messages|bytes)")
_WRONG_LAST_SEQUENCE: Final = 10071
# In a cluster, another write of the same key is being replicated. The server decides soon which of the two won.
UNDECIDED: Final = 10164
NO_MESSAGE: Final = 10037
# What nats-py raises from a call.
OF_NATS: Final = (nats.errors.Error, OSError, TimeoutError)


class TransportUnavailable(Exception):
    """The server did not answer: whether the call took effect is unknown. Try the same call again."""


class StreamFull(Exception):
    """The work queue is at its limit; nothing was stored. For a bucket the error is TransportUnavailable."""


class WrongRevision(Exception):
    """Somebody else wrote the key first; nothing was stored."""


class NotAllowed(TransportUnavailable):
    """The server denied the call to this user: nothing was stored. It denies every retry until `nats.conf` changes."""


class UnusableServer(Exception):
    """The server is too old, its clock is off, or it does not accept this user. The text says what to do."""


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises nats-py's errors about *what* as errors of this file. A refusal that has none here is raised unchanged."""
    try:
        yield
    except OF_NATS as error:
        found = translation(what, error)
        if found is error:
            raise
        raise found from error


def translation(what: str, error: Exception) -> Exception:
    """The error of this file for nats-py's *error* about *what*; *error* itself where this file has none. Pure."""
    match error:
        case nats.js.errors.NotFoundError():
            return error
        case Denied():
            return NotAllowed(f"{what}: {error}")
        case nats.js.errors.APIError():
            if error.err_code == _STREAM_FULL and _AT_A_LIMIT.match(error.description or ""):
                return StreamFull(what)
            if error.err_code == _WRONG_LAST_SEQUENCE:
                return WrongRevision(what)
            if (error.code is not None and error.code >= 500) or error.err_code in (10158, UNDECIDED):
                return TransportUnavailable(f"{what}: {error.description}")
            return error
        case nats.errors.OutboundBufferLimitError():
            return TransportUnavailable(f"{what}: not connected to nats-server")
        case _:
            return TransportUnavailable(f"{what}: {str(error) or type(error).__name__}")


def not_stored(subject: str, error: Exception) -> Exception:
    """As `translation`, for a message that was to be stored on *subject*. A refusal without an error of this file
    becomes TransportUnavailable, and so does StreamFull where *subject* is no work queue's. Pure."""
    found = translation(subject, error)
    if isinstance(found, StreamFull) and not is_work_subject(subject):
        detail = "its stream is at a limit that Warmlane did not set; `warmlane provision --check` names it"
        return TransportUnavailable(f"{subject}: {detail}")
    if isinstance(found, nats.js.errors.APIError):
        return TransportUnavailable(f"{subject}: {found.description}")
    return found
