"""Input images as the gateway sees them: data URIs, magic numbers, dimensions, what is missing. Nothing is decoded.

A file that every viewer accepts is accepted: damage outside the picture is no reason to refuse it.
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC: Final = b"\xff\xd8\xff"
# Start-of-frame markers carry the size; C4, C8 and CC share their range and mean something else.
JPEG_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE_MARKERS: Final = frozenset(range(0xD0, 0xD9)) | {0x01}
JPEG_SCAN: Final = 0xDA
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
_SPELLINGS: Final = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
# By colour type (PNG, table 11.1).
PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
WEBP_PICTURES: Final = (b"VP8 ", b"VP8L", b"ANMF")
# A photo of 8 MiB has about 1,000.
CHUNKS_MAX: Final = 10_000


class BadImage(ValueError):
    """The image cannot be accepted. The text says what is wrong, without a byte of the image."""


class ImageHeader(Struct, frozen=True):
    """What an image file claims about itself."""

    media_type: str
    width: int
    height: int


def parse_data_uri(uri: str, *, max_bytes: int) -> tuple[str, bytes]:
    """The media type and the content of a base64 data URI, whose base64 may be wrapped into lines or lack its padding.

    Raises BadImage when it is no such URI, its base64 is broken, or it holds more than *max_bytes*.
    """
    head, comma, body = uri.partition(",")
    scheme, _, declared = head.lower().partition(":")
    media_type, *options = (part.strip() for part in declared.split(";"))
    if not comma or scheme != "data" or "base64" not in options:
        raise BadImage("not a data URI with base64 content, such as data:image/png;base64,…")
    body = "".join(body.split()).rstrip("=")
    body += "=" * (-len(body) % 4)
    if len(body) > (max_bytes + 2) // 3 * 4:
        raise BadImage(f"more than {max_bytes} bytes")
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadImage("its base64 is broken") from None
    if len(content) > max_bytes:
        raise BadImage(f"more than {max_bytes} bytes")
    return _SPELLINGS.get(media_type, media_type), content


# This many first bytes tell what a file is.
MAGIC_BYTES: Final = 12


def looks_like(head: bytes) -> str | None:
    """The media type of a file that begins with *head*, which is at least MAGIC_BYTES long; None for any other file."""
    if head.startswith(PNG_MAGIC):
        return "image/png"
    if head.startswith(JPEG_MAGIC):
        return "image/jpeg"
    return "image/webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def read_header(content: bytes) -> ImageHeader:
    """Media type and dimensions of a PNG, JPEG or WebP file. Raises BadImage for anything else, and for a file whose
    structure shows that a part of its picture is missing."""
    match looks_like(content[:MAGIC_BYTES]):
        case "image/png":
            return _png(content)
        case "image/jpeg":
            return _jpeg(content)
        case "image/webp":
            return _webp(content)
    raise BadImage("neither PNG, JPEG nor WebP, judging by its first bytes")


def _header(media_type: str, width: int, height: int) -> ImageHeader:
    if width < 1 or height < 1:
        raise BadImage("its header says that it has no pixels")
    return ImageHeader(media_type, width, height)


class Chunk(Struct, frozen=True):
    """A chunk of a PNG or WebP: its kind, and where its data begins and ends. The end may lie beyond that of the
    file."""

    kind: bytes
    start: int
    end: int


def png_chunks(content: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG up to `IEND`, or to where the file ends. Raises BadImage for more than CHUNKS_MAX."""
    position = len(PNG_MAGIC)
    for _ in range(CHUNKS_MAX):
        if position + 8 > len(content):
            return
        length, kind = struct.unpack_from(">I4s", content, position)
        yield Chunk(kind, position + 8, position + 8 + length)
        if kind == b"IEND":
            return
        position += 12 + length  # with its checksum
    raise BadImage(f"a PNG of more than {CHUNKS_MAX} chunks")


def webp_chunks(content: bytes) -> Iterator[Chunk]:
    """The chunks of a WebP, whatever length its header declares. Raises BadImage for more than CHUNKS_MAX."""
    position = 12
    for _ in range(CHUNKS_MAX):
        if position + 8 > len(content):
            return
        kind, length = struct.unpack_from("<4sI", content, position)
        yield Chunk(kind, position + 8, position + 8 + length)
        position += 8 + length + length % 2
    raise BadImage(f"a WebP of more than {CHUNKS_MAX} chunks")


def _png(content: bytes) -> ImageHeader:
    chunks = png_chunks(content)
    first = next(chunks, None)
    if first is None or first.kind != b"IHDR" or first.end > len(content) or first.end - first.start != 13:
        raise BadImage("a PNG without a header")
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", content, first.start)
    if depth not in PNG_DEPTHS.get(colour, ()) or interlace > 1:
        raise BadImage("a PNG with a header that no viewer knows")
    data = [chunk for chunk in chunks if chunk.kind == b"IDAT"]
    if not data or data[-1].end > len(content):
        raise BadImage("a PNG that is cut short")
    return _header("image/png", width, height)


def _jpeg(content: bytes) -> ImageHeader:
    for marker, start, end in _jpeg_segments(content):
        if marker == JPEG_SCAN:
            break
        if marker in JPEG_FRAME_MARKERS:
            if end - start < 6:
                break
            bits, height, width = struct.unpack_from(">BHH", content, start)
            if bits != 8:
                raise BadImage(f"a JPEG of {bits} bits a colour; send one of 8")
            return _header("image/jpeg", width, height)
    raise BadImage("a JPEG without a frame header")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    position = 2
    for _ in range(CHUNKS_MAX):
        # skips fill bytes, and stray bytes between two segments, as decoders do
        found = _JPEG_MARKER.search(content, position)
        if found is None or found.end() + 2 > len(content):
            return
        marker = content[found.end() - 1]
        if marker in JPEG_BARE_MARKERS:
            position = found.end()
            continue
        (length,) = struct.unpack_from(">H", content, found.end())
        position = found.end() + max(2, length)
        if position > len(content):
            return
        yield marker, found.end() + 2, position
    raise BadImage(f"a JPEG of more than {CHUNKS_MAX} segments before its picture")


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
    pictures = [chunk for chunk in webp_chunks(content) if chunk.kind in WEBP_PICTURES]
    if not pictures or pictures[0].end > len(content):
        raise BadImage("a WebP that is cut short")
    return _header("image/webp", width, height)
