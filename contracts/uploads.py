"""Images that were uploaded on their own: their references, and where they are until they expire (ADR 0048). Pure.

An object's name holds everything: the owner, as a hash of the caller, and the time until which the image stays. So no
record can be lost or be out of date, and a caller who asks for another caller's reference finds nothing.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Final

FOLDER: Final = "uploads"
_REF: Final = re.compile(r"img_[0-9a-f]{32}", re.ASCII)
_PATH: Final = re.compile(rf"{FOLDER}/(?P<ref>img_[0-9a-f]{{32}})\.(?P<owner>[0-9a-f]{{16}})\.(?P<until>[0-9]{{1,12}})")


def ref_of(caller: str, sha256: str) -> str:
    """The reference of *caller*'s image with this hash: always the same one, and never that of another caller."""
    return "img_" + hashlib.sha256(f"{caller}\0{sha256}".encode()).hexdigest()[:32]


def is_ref(text: str) -> bool:
    """Whether *text* has the form of a reference."""
    return _REF.fullmatch(text) is not None


def owner_of(caller: str) -> str:
    """How a path names *caller*: by a hash, since a name may hold what no path may."""
    return hashlib.sha256(caller.encode()).hexdigest()[:16]


def expiries(now: datetime, keep_s: int) -> tuple[int, int]:
    """Until when an image that is uploaded now stays, and until when one of the previous period does, in seconds since
    1970.

    Time is cut into periods of *keep_s*, and an image stays until the period after its own is over: for *keep_s* at
    least, and twice that at most. So a repeated upload writes another object than the one that is about to be removed,
    and the janitor never removes an image that was just promised to a caller.
    """
    period = int(now.timestamp()) // keep_s
    return (period + 2) * keep_s, (period + 1) * keep_s


def upload_path(ref: str, caller: str, until: int) -> str:
    """Where *caller*'s image *ref*, which stays *until* then, is in the artifact store."""
    return f"{FOLDER}/{ref}.{owner_of(caller)}.{until}"


def owner_and_ref(path: str) -> tuple[str, str] | None:
    """The owner of the image at *path*, in the form of `owner_of`, and its reference; None for what is no upload."""
    found = _PATH.fullmatch(path)
    return None if found is None else (found["owner"], found["ref"])


def is_upload(path: str) -> bool:
    """Whether *path* is in the folder of uploads, whatever its name."""
    return path.startswith(f"{FOLDER}/")


def is_over(path: str, now: datetime) -> bool:
    """Whether the upload at *path* has expired; False for any other object."""
    found = _PATH.fullmatch(path)
    return found is not None and int(found["until"]) <= now.timestamp()


def moment(until: int) -> datetime:
    """An expiry as a time."""
    return datetime.fromtimestamp(until, UTC)
