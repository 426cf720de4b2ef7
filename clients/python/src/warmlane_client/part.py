"""The file that a download grows in, beside the one that it becomes."""

import hashlib
import os
from pathlib import Path

from warmlane_client.errors import WarmlaneError

try:
    import fcntl
except ImportError:  # where there is none, two downloads of one video to one place are not told apart
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20


class PartInUse(WarmlaneError):
    """Another process downloads the same video to the same place."""


class PartFile:
    """*path* in the making: what is there already counts. Until it is sealed, *path* stays as it is.

    The name of the part has the hash of the video in it, so that what was left of another video is never taken for it.
    """

    def __init__(self, path: Path, part: Path | None, sha256: str, *, keep: bool) -> None:
        """Where the download fails, *keep* leaves what has come so far for the next one."""
        self._path, self._keep = path, keep
        self._part = part or path.with_name(f".{path.name}.{sha256[:12]}.part")
        self._sealed = False

    def open(self) -> "PartFile":
        """Itself, with what is there read. Raises PartInUse; OSError where it cannot be written."""
        self._file = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                raise PartInUse(f"{self._part} is being written by another process; wait for it") from error
        self._digest = hashlib.sha256()
        self.there = 0
        try:
            while block := self._file.read(_BLOCK):
                self._digest.update(block)
                self.there += len(block)
        except OSError:
            self._file.close()
            raise
        return self

    def write(self, content: bytes) -> None:
        """Adds *content*. Raises OSError."""
        self._file.write(content)
        self._digest.update(content)

    def restart(self) -> None:
        """Throws away what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()

    def seal(self, sha256: str) -> bool:
        """Whether the hash is *sha256*; then the file has its name, and its bytes are on the disk. Raises OSError."""
        if self._digest.hexdigest() != sha256:
            return False
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._part, self._path)
        self._sealed = True
        return True

    def close(self) -> None:
        """Closes the file; what is not sealed stays as a part, or goes."""
        try:
            self._file.close()
        finally:
            if not self._sealed and not self._keep:
                self._part.unlink(missing_ok=True)
