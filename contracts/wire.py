"""Decodes bytes from outside within bounds; defines types whose values are bounded too.

A client that may write to nats-server can write anything. What is decoded here has a bounded size, moments with a time
zone in a plausible year, and names that are one token of a subject or a path. Anything else raises `Unreadable`, and
nothing but that.
"""

import re
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from contracts.nesting import Decoder

# A record of today has a few kB. The bound leaves room for a record to grow and still fit into a message (1 MB).
RECORD_MAX_BYTES: Final = 512 * 1024
ENTRY_MAX_BYTES: Final = 64 * 1024
FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 2199
REASON_MAX_CHARS: Final = 200

Moment = Annotated[datetime, Meta(tz=True)]
"""A moment with a time zone: one without cannot be compared with ours."""

Token = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,128}\Z")]
"""A name that is one token of a subject, and one part of a path."""

Counted = Annotated[int, Meta(ge=0, le=1_000_000)]
"""A number that only grows by one at a time."""

T = TypeVar("T", bound=Struct)


class Unreadable(ValueError):
    """The bytes are not what they should be. The text says why, without any of their content."""


def decode(data: bytes, decoder: Decoder[T], *, max_bytes: int = ENTRY_MAX_BYTES) -> T:
    """What *data* holds; fields that this version does not know are ignored. Raises Unreadable, and nothing else."""
    if len(data) > max_bytes:
        raise Unreadable(f"{len(data)} bytes, more than {max_bytes}")
    try:
        found = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unreadable(without_content(str(error))) from None  # its own text and traceback would show the content
    check_age(found)
    return found


def check_age(found: Struct) -> None:
    """Raises Unreadable where a field of *found* is a moment so far off that our arithmetic would overflow."""
    for name in found.__struct_fields__:
        value = getattr(found, name)
        if isinstance(value, datetime) and not FIRST_YEAR <= value.year <= LAST_YEAR:
            raise Unreadable(f"a moment outside the years {FIRST_YEAR} to {LAST_YEAR} - at `$.{name}`")


_QUOTES_CONTENT: Final = re.compile(r"Invalid enum value .*?(?P<place> - at `\$[^`]*`)?\Z", re.DOTALL)


def without_content(text: str) -> str:
    """*text*, a message of msgspec, shortened, and without the value that it repeats if that is not a known enum
    value."""
    quotes = _QUOTES_CONTENT.match(text)
    if quotes is not None:
        text = "Invalid enum value" + (quotes["place"] or "")
    return text[:REASON_MAX_CHARS]
