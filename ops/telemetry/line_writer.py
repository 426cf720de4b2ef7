"""Writes whole lines to a descriptor that may fail: the log of a process, and what `warmlane up` prints."""

import contextlib
import errno
import io
import os
import select
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Final, TextIO

# A pipe that reports room has room for this much.
CHUNK_BYTES: Final = select.PIPE_BUF
# The wait for a reader that is merely slow, such as a busy terminal.
PATIENCE_S: Final = 0.1
# The line was cut, and could not be completed: others wrote behind it, or the file was made empty.
CUT: Final = "cut"

Losses = Mapping[str, int]
"""How many lines were lost, by the name of the error, such as ENOSPC."""


class LineWriter:
    """Writes lines to *fd* and never raises: the process goes on, whatever becomes of the line.

    1. A line of which only a part could be written is completed before anything else is written. If others have written
       behind that part, the next line begins on a line of its own.
    2. A line that could not be written is lost, and reported to *on_loss* with the name of the error.
    3. When lines can be written again, the first one is what *word_of* makes of the lines lost meanwhile.
    4. Where the reader of a pipe or a stopped terminal does not read, the writer waits for it once, for PATIENCE_S;
       then not at all until it reads again.
    """

    def __init__(
        self, fd: int, *, word_of: Callable[[Losses], bytes], on_loss: Callable[[str], None] = lambda _: None
    ) -> None:
        self.fd = fd
        self._word_of, self._on_loss = word_of, on_loss
        self._lock = threading.RLock()
        self._lost: dict[str, int] = {}
        self._rest = b""
        self._cut_at: int | None = None
        self._is_slow = False

    def write(self, line: bytes) -> None:
        """Writes *line*, which ends with its newline."""
        with self._lock:
            try:
                self._complete()
                self._report_losses()
                self._put(line)
            except OSError as error:
                self._lose(errno.errorcode.get(error.errno or 0, "unknown"))

    def _complete(self) -> None:  # 1
        if not self._rest:
            return
        size = self._size()
        if self._cut_at is not None and size != self._cut_at:
            self._lose(CUT)
            self._rest, self._cut_at = b"\n" if size else b"", None
        rest, self._rest = self._rest, b""
        self._put(rest, is_begun=True)

    def _report_losses(self) -> None:  # 3
        if self._lost:
            self._put(self._word_of(dict(self._lost)))
            self._lost.clear()

    def _lose(self, reason: str) -> None:  # 2
        self._lost[reason] = self._lost.get(reason, 0) + 1
        self._on_loss(reason)

    def _put(self, data: bytes, *, is_begun: bool = False) -> None:
        """Writes all of *data*, or raises OSError. Where a part was written, it keeps the rest for `_complete`
        instead."""
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except OSError:
            if is_begun or written:
                self._cut_at = None if is_begun and self._cut_at is None else self._size()
                self._rest = data[written:]
            if is_begun or not written:
                raise

    def _write_some(self, data: bytes) -> int:
        if not self._is_file():
            self._require_room()
            data = data[:CHUNK_BYTES]
        written = os.write(self.fd, data)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def _require_room(self) -> None:  # 4
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        self._is_slow = not poll.poll(0 if self._is_slow else PATIENCE_S * 1e3)
        if self._is_slow:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self.fd).st_mode)

    def _size(self) -> int:
        try:
            return os.fstat(self.fd).st_size
        except OSError:
            return 0


class SafeText(io.TextIOBase):
    """A text stream that is written by a `LineWriter`: for a `rich.console.Console` that must not end its process."""

    def __init__(self, stream: TextIO | None) -> None:
        """Stands in for *stream*, which is sys.stdout or sys.stderr, or None where there is none. A stream without a
        descriptor gets the text directly."""
        self._stream = stream
        self._lines: LineWriter | None = None
        with contextlib.suppress(OSError):
            if stream is not None:
                self._lines = LineWriter(stream.fileno(), word_of=_in_words)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property of the base class in its stubs alone
        return "utf-8" if self._stream is None else self._stream.encoding

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._lines is not None and text:
            self._lines.write(text.encode(self.encoding, "backslashreplace"))
        elif self._stream is not None and text:
            with contextlib.suppress(OSError):
                self._stream.write(text)
        return len(text)


def _in_words(lost: Losses) -> bytes:
    why = ", ".join(os.strerror(getattr(errno, name)) for name in lost if hasattr(errno, name))
    return f"({sum(lost.values())} lines could not be written here: {why or 'unknown error'})\n".encode(
        "ascii", "replace"
    )


def hold_standard_descriptors() -> None:
    """Opens the null device wherever standard input, output or error is closed.

    Otherwise the next file or connection would have that number, and what is logged would be written into it.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is *fd*
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115  # stays open
