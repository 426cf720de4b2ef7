"""What nats-server denies or refuses, read from the errors that nats-py reports. Pure."""

import re
from typing import Final, Literal

import nats.errors
from msgspec import Struct

# nats-py lower-cases the server's error text.
_VIOLATION: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_UNAUTHORISED: Final = re.compile(r"authorization violation|authentication (?:timeout|expired|revoked)", re.IGNORECASE)


class Denied(nats.errors.Error):
    """nats-server does not let this user publish on the subject; nothing was stored."""


class PermissionDenial(Struct, frozen=True):
    """What the server denied. *subject* is in small letters, as nats-py reports it."""

    operation: Literal["publish", "subscription"]
    subject: str

    @property
    def kind(self) -> str:
        """One name for all denials that the same line of permissions would end: each task and each ack has a subject
        of its own."""
        tokens = self.subject.split(".")
        return f"{self.operation} {'.'.join(tokens[: 5 if tokens[0] == '$js' else 2])}"


def denial_in(error: Exception) -> PermissionDenial | None:
    """The denial that *error* of nats-py reports; None for every other error. Pure."""
    found = _VIOLATION.search(str(error))
    if found is None:
        return None
    return PermissionDenial("publish" if found[1].lower() == "publish" else "subscription", found[2].lower())


def is_unauthorised(error: Exception) -> bool:
    """Whether *error* says that the server does not accept this user, or this user's password. Pure."""
    return isinstance(error, nats.errors.AuthorizationError) or _UNAUTHORISED.search(str(error)) is not None
