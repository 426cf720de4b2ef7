"""Decodes a client's image file as every viewer does: whatever stands beside the picture may be broken.

A file is first reduced to its picture: no profile, text, animation or thumbnail of it is ever unpacked.
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Final

from PIL import Image, ImageChops

from contracts.images import PNG_MAGIC, WEBP_PICTURES, BadImage, png_chunks, webp_chunks

_PNG_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})
_WEBP_KEPT: Final = frozenset({b"VP8X", b"ALPH", b"ANIM", b"EXIF", *WEBP_PICTURES})
_WEBP_HAS_ICC, _WEBP_HAS_XMP = 0x20, 0x04
_ORIENTATION: Final = 0x0112
# EXIF's orientation: how the picture is to be turned before it is shown.
_TURNED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_ENDS: Final = b"\xff\xd9"
# A decoder reads these as more of the picture, where that is incomplete. They hold no 0xff, which would be a marker.
_OTHER_BITS: Final = (b"\xaa\x55\xcc\x33\xe7" * 999, b"\xfe\xfd" * 999)
_JPEG_SEGMENT: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd9]")


def open_picture(content: bytes, kind: str) -> contextlib.AbstractContextManager[Image.Image]:
    """The file *content* of *kind* (Pillow's name), not decoded yet. Raises what Pillow raises."""
    reduced = {"PNG": _png, "WEBP": _webp}.get(kind, bytes)(content)
    return Image.open(io.BytesIO(reduced), formats=[kind])


def load_picture(image: Image.Image, content: bytes, kind: str) -> Image.Image:
    """The whole picture of *image*, which `open_picture` opened, turned as its EXIF says, if that can be read.

    A JPEG may lack its end marker, which many cameras and tools cut off, but nothing of its picture. Raises what Pillow
    raises.
    """
    try:
        image.load()
    except OSError:
        if kind != "JPEG":
            raise
        whole = _without_its_end_mark(content)
        if whole is None:
            raise
        return _turned(whole)
    return _turned(image)


def _turned(image: Image.Image) -> Image.Image:
    orientation = None
    # broken EXIF raises anything: SyntaxError, struct.error, ZeroDivisionError, …
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orientation = image.getexif().get(_ORIENTATION)
    return image.transpose(_TURNED[orientation]) if orientation in _TURNED else image


def _without_its_end_mark(content: bytes) -> Image.Image | None:
    """The picture of a JPEG that ends before its end marker; None where something of the picture is missing too.

    A decoder makes up what is missing from the bytes that follow. So a picture that is the same, whatever follows, is
    whole in the file.
    """
    cut = content.rstrip(b"\xff")
    if not _ends_in_a_last_scan(cut):
        return None
    whole = _ended(cut)
    others = (_ended(cut + bits) for bits in _OTHER_BITS)
    return whole if all(ImageChops.difference(whole, other).getbbox() is None for other in others) else None


def _ended(cut: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(cut + _JPEG_ENDS), formats=["JPEG"])
    image.load()
    return image


def _ends_in_a_last_scan(cut: bytes) -> bool:
    """Whether a JPEG ends within its finest scan: a progressive one has several, and the finest comes last."""
    finest, position = False, 2
    while (found := _JPEG_SEGMENT.search(cut, position)) is not None:
        position = found.end() + int.from_bytes(cut[found.end() : found.end() + 2], "big")
        if position > len(cut) or position < found.end() + 2:
            return False
        finest = found[0] == b"\xff\xda" and cut[position - 1] & 0x0F == 0
    return finest


def _png(content: bytes) -> bytes:
    kept = [PNG_MAGIC]
    with contextlib.suppress(BadImage):
        for chunk in png_chunks(content):
            if chunk.kind in _PNG_KEPT and chunk.kind != b"IEND":
                kept.append(content[chunk.start - 8 : chunk.end + 4])
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _webp(content: bytes) -> bytes:
    body = b"WEBP" + b"".join(_webp_kept(content))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_kept(content: bytes) -> Iterator[bytes]:
    for chunk in webp_chunks(content):
        if chunk.kind not in _WEBP_KEPT or chunk.end > len(content):
            continue
        data = content[chunk.start : chunk.end]
        if chunk.kind == b"VP8X" and data:
            data = bytes([data[0] & ~(_WEBP_HAS_ICC | _WEBP_HAS_XMP)]) + data[1:]
        yield chunk.kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
