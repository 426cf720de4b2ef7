"""Input images as the gateway sees them: a data URI, a magic number and header dimensions. Nothing is decoded here."""

import base64
import binascii
import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC: Final = b"\xff\xd8\xff"
# Start-of-frame markers carry the size; C4, C8 and CC share their range and mean something else.
JPEG_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE_MARKERS: Final = frozenset(range(0xD0, 0xD9)) | {0x01}


class BadImage(ValueError):
    """The image cannot be accepted. The text says what is wrong, without a byte of the image."""


class ImageHeader(Struct, frozen=True):
    """What an image file claims about itself."""

    media_type: str
    width: int
    height: int


def parse_data_uri(uri: str, *, max_bytes: int) -> tuple[str, bytes]:
    """The media type and the content of a base64 data URI.

    Raises BadImage when it is no such URI, its base64 is broken, or it holds more than *max_bytes*.
    """
    head, comma, body = uri.partition(",")
    scheme, _, declared = head.partition(":")
    media_type, *options = declared.split(";")
    if not comma or scheme.lower() != "data" or "base64" not in options:
        raise BadImage("not a data URI with base64 content, such as data:image/png;base64,…")
    if len(body) > (max_bytes + 2) // 3 * 4:
        raise BadImage(f"more than {max_bytes} bytes")
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("its base64 is broken") from None
    if len(content) > max_bytes:
        raise BadImage(f"more than {max_bytes} bytes")
    return media_type.lower(), content


def read_header(content: bytes) -> ImageHeader:
    """Media type and dimensions from the first bytes of a PNG, JPEG or WebP file. Raises BadImage."""
    if content.startswith(PNG_MAGIC):
        return _png(content)
    if content.startswith(JPEG_MAGIC):
        return _jpeg(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    raise BadImage("neither PNG, JPEG nor WebP, judging by its first bytes")


def _header(media_type: str, width: int, height: int) -> ImageHeader:
    if width < 1 or height < 1:
        raise BadImage("its header says that it has no pixels")
    return ImageHeader(media_type, width, height)


def _png(content: bytes) -> ImageHeader:
    if len(content) < 24 or content[12:16] != b"IHDR":
        raise BadImage("a PNG without a header")
    width, height = struct.unpack(">II", content[16:24])
    return _header("image/png", width, height)


def _jpeg(content: bytes) -> ImageHeader:
    for marker, start, end in _jpeg_segments(content):
        if marker in JPEG_FRAME_MARKERS:
            if end - start < 5:
                break
            height, width = struct.unpack(">HH", content[start + 1 : start + 5])
            return _header("image/jpeg", width, height)
    raise BadImage("a JPEG without a frame header")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in JPEG_BARE_MARKERS:
            position += 2
            continue
        (length,) = struct.unpack(">H", content[position + 2 : position + 4])
        end = position + 2 + length
        if end > len(content):
            return
        yield marker, position + 4, end
        position = end


def _webp(content: bytes) -> ImageHeader:
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8X" and len(body) == 10:
        width = 1 + int.from_bytes(body[4:7], "little")
        height = 1 + int.from_bytes(body[7:10], "little")
    elif kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        width = int.from_bytes(body[6:8], "little") & 0x3FFF
        height = int.from_bytes(body[8:10], "little") & 0x3FFF
    else:
        raise BadImage("a WebP without a header")
    return _header("image/webp", width, height)
