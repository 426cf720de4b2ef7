"""Images that lie or that are made to hurt, byte by byte."""

import io
import struct
import zlib
from typing import Any, Final

import numpy as np
from PIL import Image

from contracts.images import PNG_MAGIC

SIZE: Final = (33, 21)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG_MAGIC + header + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def with_size(content: bytes, at: int, form: str, *size: int) -> bytes:
    """*content* with another size in its header."""
    patched = bytearray(content)
    struct.pack_into(form, patched, at, *size)
    if content.startswith(PNG_MAGIC):
        struct.pack_into(">I", patched, 29, zlib.crc32(bytes(patched[12:29])))
    return bytes(patched)


def webp_in_canvas(frame: bytes, width: int, height: int) -> bytes:
    """A WebP whose extended header declares a canvas of another size than its only frame has."""
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + frame[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated(kind: str, **options: Any) -> bytes:
    frames = [Image.new("RGB", SIZE, (40 * number, 0, 0)) for number in range(5)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=10, **options)
    return out.getvalue()


def deep_grey() -> bytes:
    """16 bits a pixel, the left half dark and the right half half bright."""
    pixels = np.zeros(SIZE[::-1], np.uint16)
    pixels[:, SIZE[0] // 2 :] = 32_768
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def transparent_palette() -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 200, 30, 30])
    out = io.BytesIO()
    image.save(out, "PNG", transparency=1)
    return out.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    out = io.BytesIO()
    image = Image.new("RGB", SIZE, (250, 0, 0))
    image.paste((0, 0, 250), (0, 0, SIZE[0] // 2, SIZE[1]))
    image.save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


# The damage is outside the picture: every viewer shows these files


def photo(kind: str, **options: Any) -> bytes:
    """A photo whose corners all differ, so that a test notices a picture that was not turned."""
    across, down = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 32))
    out = io.BytesIO()
    Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)).save(out, kind, **options)
    return out.getvalue()


def bad_rational(orientation: int) -> bytes:
    """EXIF with a resolution of -1/0, which no rational number is, beside its orientation."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x011A, 10, 1, 38)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + b"\0\0\0\0" + struct.pack("<ii", -1, 0)


NO_TIFF: Final = b"XX*\0\x08\0\0\0\1\0"
BIG: Final = b"profile\0\0" + zlib.compress(b"x" * 1_500_000)


def in_png(kind: bytes, data: bytes) -> bytes:
    good = photo("PNG")
    return good[:33] + chunk(kind, data) + good[33:]


def in_jpeg(data: bytes) -> bytes:
    good = photo("JPEG")
    return good[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data + good[2:]


def in_webp(kind: bytes, data: bytes, *, flag: int) -> bytes:
    frame = photo("WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<II", 10, flag) + (47).to_bytes(3, "little") + (31).to_bytes(3, "little")
    body = b"WEBP" + canvas + frame + kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def junk_before_the_frame(good: bytes) -> bytes:
    at = good.index(b"\xff\xc0")
    return good[:at] + b"\0stray\xff\0bytes" + good[at:]


def text_bomb() -> bytes:
    """A function and no constant, because it takes a while: only the test that needs it pays, not every collection."""
    return in_png(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 70_000_000))
