"""nats-py's client, except that what nats-server denies is known at once and not after a time-out (design §10.8)."""

import asyncio
import re
from typing import Any, Final, Literal

import nats.aio.client
import nats.errors
from msgspec import Struct
from nats.aio.msg import Msg

# nats-py hands the server's words on in small letters.
_VIOLATION: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_UNAUTHORISED: Final = re.compile(r"authorization violation|authentication (?:timeout|expired|revoked)", re.IGNORECASE)


class Denied(nats.errors.Error):
    """nats-server does not let this user ask on the subject; nothing was stored."""


class Denial(Struct, frozen=True):
    """What the server denied. *subject* is in small letters, as nats-py tells it."""

    operation: Literal["publish", "subscription"]
    subject: str

    @property
    def kind(self) -> str:
        """The same for all denials that one line of permissions would end: tasks and acks have a subject each."""
        tokens = self.subject.split(".")
        return f"{self.operation} {'.'.join(tokens[: 5 if tokens[0] == '$js' else 2])}"


def denial_in(error: Exception) -> Denial | None:
    """What *error*, as nats-py reports it, says that the server denied; None for every other error. Pure."""
    found = _VIOLATION.search(str(error))
    if found is None:
        return None
    return Denial("publish" if found[1].lower() == "publish" else "subscription", found[2].lower())


def is_unauthorised(error: Exception) -> bool:
    """Whether *error* says that the server does not know this user, or not with this password. Pure."""
    return isinstance(error, nats.errors.AuthorizationError) or _UNAUTHORISED.search(str(error)) is not None


class Client(nats.aio.client.Client):
    """Tell it of denials (`deny`), which nats-py reports only to the error callback."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: dict[str, set[asyncio.Timeout]] = {}

    @property
    def speaks_tls(self) -> bool:
        """Whether the server that was reached last wants TLS, which is then spoken."""
        return bool(self._server_info.get("tls_required"))

    def deny(self, denial: Denial) -> None:
        """Ends the requests that wait on the denied subject."""
        now_s = asyncio.get_running_loop().time()
        for waiting in self._asking.get(denial.subject, ()):
            if not waiting.expired():
                waiting.reschedule(now_s)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """As nats-py's. Raises Denied as soon as the server denies it."""
        waiting = asyncio.timeout(None)
        same = self._asking.setdefault(subject.lower(), set())
        try:
            async with waiting:
                same.add(waiting)
                return await super().request(subject, payload, timeout, old_style, headers)
        except TimeoutError:
            if waiting.expired():
                raise Denied(f"the server denies this user to publish to {subject}") from None
            raise
        finally:
            same.discard(waiting)
            if not same:
                self._asking.pop(subject.lower(), None)
