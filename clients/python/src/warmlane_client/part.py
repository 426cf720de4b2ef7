"""The file that a download writes to, beside the one that it becomes."""

import hashlib
import os
from pathlib import Path

from warmlane_client.errors import WarmlaneError

try:
    import fcntl
except ImportError:  # without it, two downloads of one video to one place do not notice each other
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20


class PartInUse(WarmlaneError):
    """Another process downloads the same video to the same place."""


class PartFile:
    """The file that becomes *path*; bytes of an earlier download count. Until it is sealed, *path* stays as it is.

    The name of the part has the hash of the video in it, so that the part of another video is never taken for it.
    """

    def __init__(self, path: Path, part: Path | None, sha256: str, *, keep: bool) -> None:
        """If the download fails, *keep* leaves the part for the next one."""
        self._path, self._keep = path, keep
        self._part = part or path.with_name(f".{path.name}.{sha256[:12]}.part")
        self._sealed = False

    def open(self) -> "PartFile":
        """Opens the part, reads what is there, and returns itself. Raises PartInUse; OSError if it cannot be
        written."""
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
        """Whether the hash is *sha256*. If it is, the file now has its name, and its bytes are on the disk. Raises
        OSError."""
        if self._digest.hexdigest() != sha256:
            return False
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._part, self._path)
        self._sealed = True
        return True

    def close(self) -> None:
        """Closes the file. A part that is not sealed stays if *keep* says so, and is removed otherwise."""
        try:
            self._file.close()
        finally:
            if not self._sealed and not self._keep:
                self._part.unlink(missing_ok=True)
