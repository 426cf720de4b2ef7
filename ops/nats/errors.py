"""What a call to the server may end with.

A refusal and an unknown outcome are different errors: `StreamFull` and `WrongRevision` mean that nothing was stored,
`TransportUnavailable` means that nobody knows.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import nats.errors
import nats.js.errors

from contracts.topology import is_work_subject
from ops.nats.denials import Denied

# The code for whatever the server's store reports: that it is at a limit, or an error of the file system.
_STREAM_FULL: Final = 10077
_AT_A_LIMIT: Final = re.compile("maximum (?:messages|bytes)")
_WRONG_LAST_SEQUENCE: Final = 10071
# In a cluster, another write of the same key is being replicated. The server decides soon which of the two won.
UNDECIDED: Final = 10164
NO_MESSAGE: Final = 10037


class TransportUnavailable(Exception):
    """The server did not answer: whether the call took effect is unknown. Try the same call again."""


class StreamFull(Exception):
    """The work queue is at its limit; nothing was stored. For a bucket the error is TransportUnavailable."""


class WrongRevision(Exception):
    """Somebody else wrote the key first; nothing was stored."""


class NotAllowed(TransportUnavailable):
    """The server denied the call to this user: nothing was stored. It stays so until `nats.conf` is changed."""


class UnusableServer(Exception):
    """The server is too old, its clock is off, or it does not know this user. The text says what to do."""


@contextlib.contextmanager
def stored(subject: str) -> Iterator[None]:
    """As `translated`, for a message that is to be stored on *subject*: what it leaves is TransportUnavailable here."""
    try:
        with translated(subject):
            yield
    except StreamFull as full:
        if is_work_subject(subject):
            raise
        raise TransportUnavailable(
            f"{subject}: its stream is at a limit that Warmlane did not set; `warmlane provision --check` names it"
        ) from full
    except nats.js.errors.APIError as error:
        raise TransportUnavailable(f"{subject}: {error.description}") from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises errors of nats-py about *what* as errors of this file. A refusal that none of those stands for stays as it
    is."""
    try:
        yield
    except nats.js.errors.NotFoundError:
        raise
    except Denied as error:
        raise NotAllowed(f"{what}: {error}") from error
    except nats.js.errors.APIError as error:
        if error.err_code == _STREAM_FULL and _AT_A_LIMIT.match(error.description or ""):
            raise StreamFull(what) from error
        if error.err_code == _WRONG_LAST_SEQUENCE:
            raise WrongRevision(what) from error
        if (error.code is not None and error.code >= 500) or error.err_code in (10158, UNDECIDED):
            raise TransportUnavailable(f"{what}: {error.description}") from error
        raise
    except nats.errors.OutboundBufferLimitError as error:
        raise TransportUnavailable(f"{what}: not connected to nats-server") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise TransportUnavailable(f"{what}: {str(error) or type(error).__name__}") from error
