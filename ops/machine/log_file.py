"""The file that a child process writes its log into, kept small while it runs.

The process that started the child keeps the file small. The child, and those that it starts, append to the one file
that they inherited, and need not know. A pipe to a collector would hold the child up whenever the collector stops, and
lose the child's last lines where the collector is killed first.
"""

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO, Final

import structlog

LOG_MAX_BYTES: Final = 20 * 1024 * 1024
LOOK_EVERY_S: Final = 0.5
CHUNK_BYTES: Final = 1024 * 1024
# A log that is this many times too large is made empty, if it cannot be copied or grows faster than it is copied.
HOPELESS: Final = 2
# A line that crosses a page of the file may be seen in halves while its process is in the middle of writing it.
WHOLE_LINE_LOOKS: Final = 100
WHOLE_LINE_LOOK_EVERY_S: Final = 0.005

log = structlog.get_logger("log_file")


class LogFile:
    """The log at *path*, and beside it, as `NAME.old.log`, what it held before. Together they have twice *max_bytes* at
    most, plus what is written within LOOK_EVERY_S.

    1. A log that is larger than *max_bytes* is copied to the old log and then made empty. Lines stay whole, since each
       is appended in one write and the copy waits for the end of the last line, for half a second at most. A line that
       comes in the few microseconds between the last read and the cut is lost. When a log grows faster than it is
       copied (3), its last line is lost as well if only the first half was copied.
    2. The old log is removed first, so that there is room for the copy on a full disk.
    3. A log that cannot be copied may grow to HOPELESS times *max_bytes*, and is then made empty all the same.
    4. An error here is logged once, and ends nothing.
    """

    def __init__(self, path: Path, *, max_bytes: int = LOG_MAX_BYTES) -> None:
        self.path = path
        self.old_path = path.with_suffix(".old.log")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._logged: str | None = None

    def open(self) -> BinaryIO:
        """The file to append to, or the null device where there can be none."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("ab")
        except OSError as error:  # 4
            self._log_once("log_not_opened", error)
            return open(os.devnull, "ab")

    async def keep(self) -> None:
        """Keeps the log small, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._is_large():
                await asyncio.to_thread(self.keep_small)

    def keep_small(self) -> None:
        """Moves what is in the log to the old log, if the log is too large."""
        with self._lock:
            try:
                if self._is_large():
                    self._move()
                    self._logged = None
            except OSError as error:  # 4
                self._log_once("log_not_rotated", error)

    def _is_large(self) -> bool:
        try:
            return self.path.stat().st_size > self._max_bytes
        except OSError:
            return False

    def _move(self) -> None:
        with self.path.open("r+b", buffering=0) as current:
            try:
                self.old_path.unlink(missing_ok=True)  # 2
                self._copy(current)
            except OSError:
                with contextlib.suppress(OSError):
                    self.old_path.unlink(missing_ok=True)
                if os.fstat(current.fileno()).st_size <= HOPELESS * self._max_bytes:  # 3
                    raise
            os.ftruncate(current.fileno(), 0)  # 1

    def _copy(self, current: BinaryIO) -> None:
        """Copies until nothing more comes and the last line is whole, or until it is too much."""
        copied_bytes, whole_bytes, looks_left = 0, 0, WHOLE_LINE_LOOKS
        with self.old_path.open("wb") as old:
            while copied_bytes <= HOPELESS * self._max_bytes:
                if chunk := current.read(CHUNK_BYTES):
                    old.write(chunk)
                    old.flush()
                    if newline := chunk.rfind(b"\n") + 1:
                        whole_bytes = copied_bytes + newline
                    copied_bytes += len(chunk)
                elif whole_bytes == copied_bytes or not looks_left:
                    return
                else:
                    looks_left -= 1
                    time.sleep(WHOLE_LINE_LOOK_EVERY_S)
            old.truncate(whole_bytes or copied_bytes)

    def _log_once(self, event: str, error: OSError) -> None:
        if self._logged != event:
            self._logged = event
            log.warning(
                event, path=self.path, error=error, advice="make room on its disk, or choose another --data-dir"
            )
