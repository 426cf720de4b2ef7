"""The liveness and readiness probes of a process without an API, beside its metrics: `/livez` says whether to restart
the process, and `/readyz` whether it can do its work.

A judge decides that in the event loop of the process. The thread that answers a container engine or Kubernetes asks the
judge.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import msgspec
from msgspec import Struct

# How long an event loop may take to call a judge. After that the process counts as hung.
ANSWER_S: Final = 3.0


class ProcessHealth(Struct, frozen=True):
    """The health of a process: whether it is *ready*, its *state*, and the *reason* where it is not ready."""

    ready: bool
    state: str
    reason: str = ""


class Judging(Struct):
    """A judge of this process, and the event loop that calls it."""

    judge: Callable[[], ProcessHealth]
    loop: asyncio.AbstractEventLoop


_judging: list[Judging] = []
STARTING: Final = ProcessHealth(False, "starting", "this process has just been started")
HUNG: Final = ProcessHealth(False, "hung", f"the process did not answer within {ANSWER_S:g} s")


@contextlib.contextmanager
def judged_by(judge: Callable[[], ProcessHealth]) -> Iterator[None]:
    """While the block runs, `/readyz` answers what *judge* returns. The event loop that runs now calls it. Of several
    judges the innermost counts."""
    judging = Judging(judge, asyncio.get_running_loop())
    _judging.append(judging)
    try:
        yield
    finally:
        _judging.remove(judging)


def standing() -> ProcessHealth:
    """The health of this process now; HUNG where its event loop does not call the judge in time. Never call this in the
    event loop itself."""
    if not _judging:
        return STARTING
    judging = _judging[-1]
    answer: Future[ProcessHealth] = Future()

    def look() -> None:
        try:
            answer.set_result(judging.judge())
        except Exception as error:
            answer.set_exception(error)

    try:
        judging.loop.call_soon_threadsafe(look)
        return answer.result(timeout=ANSWER_S)
    except TimeoutError:
        return HUNG
    except RuntimeError:  # the loop has ended: the process leaves
        return ProcessHealth(False, "leaving", "this process ends")


def with_probes(metrics: WSGIApplication) -> WSGIApplication:
    """The application that answers the probes, and has *metrics* answer everything else."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        path = environ.get("PATH_INFO")
        if path not in ("/livez", "/readyz"):
            return metrics(environ, start_response)
        now = standing()
        is_well = now is not HUNG if path == "/livez" else now.ready
        body = msgspec.json.encode(now)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("200 OK" if is_well else "503 Service Unavailable", headers)
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]

    return answer


class _SilentRequests(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # the name of the base class
        """Logs nothing: a probe comes every few seconds."""


def probe_server(host: str, port: int, metrics: WSGIApplication) -> Any:
    """A server for probes and *metrics* at *host*, to be run in a thread. Raises OSError."""
    import socket

    from prometheus_client.exposition import ThreadingWSGIServer

    class ProbeServer(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return make_server(host, port, with_probes(metrics), server_class=ProbeServer, handler_class=_SilentRequests)
