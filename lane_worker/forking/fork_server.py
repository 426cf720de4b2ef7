"""The fork server of a worker: torch is imported once, and every pipeline host is a fork of it (ADR 0001, ADR 0018)."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from lane_worker.forking import allocator
from lane_worker.forking.host_messages import PID, Fork, encode_fork
from lane_worker.forking.outcome import HostLost
from lane_worker.forking.process_end import process_end
from ops.artifact_place import without_secrets
from ops.machine.fork_socket import SHARED_FORK_SERVER, importing
from ops.machine.visible_cards import VISIBLE
from ops.nats.access import environment_for

FORK_SERVER: Final = (sys.executable, "-m", "lane_worker.pipelines.forkserver")
# A process that has closed its socket is gone within this time.
END_S: Final = 1.0
SHARED_ANSWERS_S: Final = 5.0
# A worker waits this long for a shared fork server that still imports torch, and then imports torch itself.
SHARED_IMPORTS_S: Final = 60.0

log = structlog.get_logger("host")


class ForkServer:
    """The process that has torch imported and forks pipeline hosts. One can serve several `Host`s.

    It is a fork of the one that answers on the socket *shared*, or else a child of this process, made by *command*.
    WARMLANE_FORK_SERVER names the socket for workers (ADR 0018).
    """

    def __init__(self, command: Sequence[str] = FORK_SERVER, *, shared: str | None = None) -> None:
        self._command = command
        self._shared = os.environ.get(SHARED_FORK_SERVER) if command is FORK_SERVER and shared is None else shared
        self._process: asyncio.subprocess.Process | _Adopted | None = None
        self._control: socket.socket | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it unless it runs; its imports go on in the background. Raises OSError, AllocatorMisconfigured."""
        if self.pid is not None:
            return
        await self.close()
        if self._shared and await self._start_shared(self._shared):
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = host_environment(os.environ)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C goes to the worker only
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        log.info("fork_server_started", pid=self._process.pid, allocator=environment[allocator.NAMES[0]])

    async def _start_shared(self, path: str) -> bool:
        """Whether the shared fork server at *path* forked one for this worker. Logs what is wrong with it.

        The worker waits for a server that still imports torch: a second import beside it would take longer.
        """
        control = socket.socket(socket.AF_UNIX)
        control.setblocking(False)
        try:
            answers_s = await _connect(control, Path(path))
            async with asyncio.timeout(answers_s):
                socket.send_fds(control, [b"\0"], [1, 2])
                answer = await asyncio.get_running_loop().sock_recv(control, PID.size)
                self._process = _Adopted(PID.unpack(answer)[0])
        except (OSError, struct.error, AttributeError) as error:  # AttributeError: a system without pidfd_open
            control.close()
            log.warning("no_shared_fork_server", path=path, error=str(error), hint="start `warmlane fork-server` first")
            return False
        except BaseException:
            control.close()
            raise
        self._control = control
        log.info("fork_server_started", pid=self._process.pid, shared=path)
        return True

    async def fork(self, request: Fork, pipe: socket.socket, exit_writer: socket.socket) -> int:
        """The pid of a new pipeline host that has *pipe*. The server writes to *exit_writer* what the host ends with
        (`EXIT_CODE`).

        Raises HostLost when the server has died, AllocatorMisconfigured where it must not even start.
        """
        async with self._turn:
            await self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [encode_fork(request)], [pipe.fileno(), exit_writer.fileno()])
                answer = await asyncio.get_running_loop().sock_recv(self._control, PID.size)
                return int(PID.unpack(answer)[0])
            except (OSError, struct.error) as error:
                how = await self._how_it_ended()
                await self.close()
                raise HostLost(f"the fork server could not start a pipeline host; {how}") from error
            except BaseException:
                # the answer is still to come, and would be taken for that of the next request
                await self.close()
                raise

    async def _how_it_ended(self) -> str:
        """What an operator should know of its end. A worker that adopted it cannot learn how it ended."""
        if isinstance(self._process, asyncio.subprocess.Process):
            with contextlib.suppress(TimeoutError):  # it lives, and answered nonsense
                async with asyncio.timeout(END_S):
                    await self._process.wait()
            if self._process.returncode == -signal.SIGKILL:
                return (
                    "it was killed (SIGKILL), as the kernel does where memory runs out: the container's memory limit, "
                    "or the machine, is too small for it"
                )
        return "see its error output"

    async def close(self) -> None:
        """Kill and reap it. Hosts that it forked live on."""
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _connect(control: socket.socket, path: Path) -> float:
    """Connects to the shared fork server at *path*; the seconds within which it has to answer. Raises OSError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SHARED_ANSWERS_S):
        with contextlib.suppress(FileNotFoundError):
            await loop.sock_connect(control, str(path))
            return SHARED_ANSWERS_S
        with contextlib.suppress(FileNotFoundError):
            await loop.sock_connect(control, str(importing(path)))
            return SHARED_IMPORTS_S
        await loop.sock_connect(control, str(path))  # it became ready between the two looks
        return SHARED_ANSWERS_S


class _Adopted:
    """A fork server that is no child of ours, used like one. Raises OSError when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = process_end(pid)

    @property
    def returncode(self) -> int | None:
        """None while it runs. Only its parent learns what it ended with."""
        return 0 if self._ended.done() else None

    def kill(self) -> None:
        """Raises ProcessLookupError when it has ended."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def wait(self) -> None:
        await asyncio.shield(self._ended)
        os.close(self._descriptor)


def host_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment in which torch is imported; some of it is read at the import only.

    Raises AllocatorMisconfigured where *base* asks for another allocator (FR-010).
    """
    inherited = without_secrets(environment_for(None, base))
    # With a MIG instance in it (MIG-…), torch would start CUDA at its import, since it cannot count instances without
    # CUDA. No fork of the process could use CUDA then. Each host sets the variable to its own slot.
    inherited.pop(VISIBLE, None)
    return {
        # Without it MKL's rounding may depend on where in memory a tensor lies: one seed then made two videos on a CPU.
        "MKL_CBWR": "AUTO",
        # an attacker who takes over the process that decodes what clients send must not find a password there
        **inherited,
        **allocator.environment(base),
        # the libraries download nothing and log no warnings: a warning may quote a prompt
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
