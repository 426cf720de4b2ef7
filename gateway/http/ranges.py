"""One byte range of a file: `Range` and `If-Range` as in RFC 9110 §14. Pure.

Several ranges, another unit and a header that is not understood mean the whole file, as the RFC allows.

The parser of `werkzeug.http` does not fit: it ignores `bytes=-0`, which must be a 416, as a header not understood.
"""

import re
from typing import Final

_ONE_RANGE: Final = re.compile(r"bytes=(?P<first>[0-9]*)-(?P<last>[0-9]*)", re.IGNORECASE | re.ASCII)
_DIGITS_MAX: Final = 18  # a position of more digits is beyond any file


class RangeNotSatisfiable(ValueError):
    """The range is well formed and no byte of the file lies in it (416); `Content-Range` is then `bytes */size`."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the file has {size_bytes} bytes and the range lies beyond them")
        self.size_bytes = size_bytes

    @property
    def content_range(self) -> str:
        """The value of `Content-Range` that says how long the file is."""
        return f"bytes */{self.size_bytes}"


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First and last byte, both included, that *header* asks of a file of *size_bytes*; None for the whole file.

    Raises RangeNotSatisfiable when the range begins behind the end, or asks for the last 0 bytes.
    """
    match = None if header is None else _ONE_RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match["first"], match["last"]
    if not first:
        return _suffix(last, size_bytes)
    start = _position(first)
    if last and _position(last) < start:
        return None  # the RFC calls this invalid, and an invalid header is ignored
    if start >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return start, min(_position(last), size_bytes - 1) if last else size_bytes - 1


def _suffix(length: str, size_bytes: int) -> tuple[int, int] | None:
    if not length or not size_bytes:
        return None
    wanted_bytes = _position(length)
    if wanted_bytes == 0:
        raise RangeNotSatisfiable(size_bytes)
    return max(0, size_bytes - wanted_bytes), size_bytes - 1


def _position(digits: str) -> int:
    # int() refuses texts of some thousand digits; no file reaches the bound used instead
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether `Range` is to be honoured, given `If-Range` and the file's strong *etag* (with its quotes).

    A weak tag, another tag and a date (videos have no Last-Modified) do not match: the whole file is sent.
    """
    return if_range is None or if_range.strip() == etag


def content_range(first: int, last: int, size_bytes: int) -> str:
    """The value of `Content-Range` in a 206 answer."""
    return f"bytes {first}-{last}/{size_bytes}"
