"""What the shells of both clients share. Nothing here waits."""

from collections.abc import Callable

import httpx
from msgspec import Struct

from warmlane_client.core.effects import Reply, Report, ReportBytes, ReportIdle, Restart, Seal, Write
from warmlane_client.models import Task
from warmlane_client.part import PartFile


class Listeners(Struct, frozen=True, kw_only=True):
    """The callbacks of the caller."""

    on_change: Callable[[Task], object] | None = None
    on_idle: Callable[[Task], object] | None = None
    on_bytes: Callable[[int, int], object] | None = None

    def report(self, effect: Report | ReportIdle | ReportBytes) -> object:
        """Calls the listener of *effect* and returns its result, which is an awaitable if the listener is a coroutine
        function."""
        match effect:
            case Report(task):
                return self.on_change and self.on_change(task)
            case ReportIdle(task):
                return self.on_idle and self.on_idle(task)
            case ReportBytes(done, total):
                return self.on_bytes and self.on_bytes(done, total)


def answer_of(reply: httpx.Response, body: bytes, at_s: float) -> Reply:
    """*reply* in the form that a flow gets."""
    headers = {name.lower(): value for name, value in reply.headers.items()}
    return Reply(status=reply.status_code, url=str(reply.request.url), headers=headers, body=body, at_s=at_s)


def filed(effect: Write | Restart | Seal, file: PartFile | None) -> bool:
    """Carries out *effect* on *file*, which must be there. Returns False only for a Seal whose hash is wrong. Raises
    OSError."""
    assert file is not None
    match effect:
        case Write(content):
            file.write(content)
        case Restart():
            file.restart()
        case Seal(sha256):
            return file.seal(sha256)
    return True
